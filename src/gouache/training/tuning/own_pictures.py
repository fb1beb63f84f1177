"""What lies in a folder of pictures, and what is said of each. Names and texts only: no picture is decoded."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from gouache.data.caption_text import decode_text
from gouache.data.readers import repeats_of, text_beside
from gouache.data.subsets.planes import CAPTION_SUFFIXES, PICTURE_SUFFIXES, Planes
from gouache.errors import DataError, InvalidInput

CaptionsFrom = Literal["names", "folder"]
TABLES = ("metadata.jsonl", "metadata.csv")
SHARDS = (".parquet", ".tar")
SIDES = re.compile(r"\b(left|right|links|rechts|gauche|droite)\b|左|右", re.IGNORECASE)
"""Words that a mirror image makes wrong."""
NUMBERS = re.compile(r"[\s_.-]*\(?\d+\)?$")
"""What tells files of one name apart: "fox 2", "fox_03", "fox (4)"."""
CURE = (
    'Say what they show: --caption "a photo of sks dog" for all of them, --caption-from names if the files are named'
    " for what they show, --caption-from folder, or a .txt beside each picture."
)


@dataclass(frozen=True, slots=True)
class OwnPictures:
    """The pictures of a folder.

    Attributes:
        folder: where they lie.
        captions: of every picture by its path in the folder; empty for one that has none.
        table: the file that says all captions where there is one; then `captions` is empty.
        mark: changes with the files' names, sizes and times.
    """

    folder: Path
    captions: dict[str, tuple[str, ...]]
    table: str
    mark: str

    @property
    def captioned(self) -> int:
        """How many have a caption."""
        return sum(bool(said) for said in self.captions.values())

    @property
    def first_caption(self) -> str:
        """The first one; empty if a table says them."""
        return next((said[0] for said in self.captions.values() if said), "")

    @property
    def speaks_of_sides(self) -> bool:
        """Whether some caption may become wrong in a mirror; of a table that is not known."""
        return bool(self.table) or any(SIDES.search(text) for said in self.captions.values() for text in said)


def look_at(folder: Path) -> OwnPictures:
    """Look through a folder.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        given = "a file" if folder.exists() else "no such folder"
        raise DataError(str(folder), given=given, expected="a folder of pictures", cure="Check the path.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    mark = hashlib.sha256(repr(about).encode()).hexdigest()
    if table := next((path.name for path in files if path.name in TABLES or path.suffix in SHARDS), ""):
        return OwnPictures(folder, {}, table, mark)
    pictures, _ = Planes(folder, files).pictures()
    if not pictures:
        given = f"{len(files)} files, no picture" if files else "nothing in it"
        raise DataError(str(folder), given=given, expected=f"pictures ({' '.join(PICTURE_SUFFIXES)})")
    return OwnPictures(
        folder, {path.relative_to(folder).as_posix(): _said(folder, path) for path in pictures}, "", mark
    )


def with_captions(
    own: OwnPictures, *, caption: str = "", caption_from: CaptionsFrom | None = None, trigger: str = ""
) -> OwnPictures:
    """The same pictures with captions where they had none.

    Args:
        caption: for every picture without one.
        caption_from: for pictures without one: what their file is named, without its number; or their folder.
        trigger: put in front of every caption that doesn't have it.

    Raises:
        InvalidInput: both, or any of them although a table says the captions.
        DataError: some pictures, and not one caption.
    """
    asked = [f"--{name}" for name, given in (("caption", caption), ("trigger", trigger)) if given]
    asked += [f"--caption-from {caption_from}"] if caption_from else []
    if own.table:
        if asked:
            cure = f"Change the captions there, or leave out {' and '.join(asked)}."
            raise InvalidInput(
                asked[0], given=f"captions in {own.table}", expected="a folder without a table", cure=cure
            )
        return own
    if caption and caption_from:
        raise InvalidInput("--caption", given="--caption-from too", expected="one of the two")
    said = {key: texts or _made_up(own.folder, key, caption, caption_from) for key, texts in own.captions.items()}
    if not any(said.values()):
        given = f"{len(said)} pictures, no caption" if len(said) > 1 else "one picture, no caption"
        raise DataError(str(own.folder), given=given, expected="captions", cure=CURE)
    if trigger:
        said = {key: tuple(_triggered(trigger, text) for text in texts) for key, texts in said.items()}
    return OwnPictures(own.folder, said, "", hashlib.sha256(f"{own.mark}{sorted(said.items())}".encode()).hexdigest())


def written(own: OwnPictures, as_found: OwnPictures, folder: Path) -> Path:
    """A folder in which the captions lie beside the pictures: the pictures' own, or a copy in `folder`."""
    if own.captions == as_found.captions:
        return own.folder
    if folder.exists():
        shutil.rmtree(folder)
    for number, (key, captions) in enumerate(own.captions.items()):
        if captions:
            # A number before the name: in a folder of its own each name would be free, here two may be alike.
            repeats = PurePosixPath(key).parent.name if repeats_of(key)[1] else "."
            place = folder / repeats / f"{number:05d}-{PurePosixPath(key).name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own.folder / key, place)
            place.with_suffix(CAPTION_SUFFIXES[0]).write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def _said(folder: Path, picture: Path) -> tuple[str, ...]:
    beside = text_beside(picture)
    if beside is None:
        return tuple(filter(None, (repeats_of(picture.relative_to(folder).as_posix())[1],)))
    try:
        text = decode_text(beside.read_bytes(), beside.name).text
    except DataError:  # In an encoding that it alone doesn't tell; reading the set looks at the others too.
        text = beside.read_bytes().decode("utf-8", "replace")
    return tuple(filter(None, map(str.strip, text.removeprefix("\ufeff").splitlines())))


def _made_up(folder: Path, key: str, caption: str, caption_from: CaptionsFrom | None) -> tuple[str, ...]:
    if caption_from is None:
        return tuple(filter(None, (caption.strip(),)))
    path = folder / key
    name = path.parent.resolve().name if caption_from == "folder" else path.stem
    return tuple(filter(None, (re.sub(r"[\s_]+|(?<=\w)-(?=\w)", " ", NUMBERS.sub("", name)).strip(),)))


def _triggered(trigger: str, text: str) -> str:
    return text if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text) else f"{trigger}, {text}"
