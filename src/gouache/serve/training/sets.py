"""Folders of captioned pictures to train on: below `training` in the data folder, put there by hand or uploaded."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gouache.data.caption_text import decode_text
from gouache.data.readers import CAPTION_COLUMNS, FILE_COLUMNS, repeats_of, text_beside
from gouache.data.subsets.planes import CAPTION_SUFFIXES
from gouache.errors import DataError, InvalidInput, NotFound
from gouache.files import write_bytes
from gouache.pipeline.inputs.images import read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TEXTS = (*CAPTION_SUFFIXES, ".jsonl", ".csv")
TABLES = ("metadata.jsonl", "metadata.csv")
THUMBNAILS = ".thumbnails"
LONGEST_CAPTION = 4000
MOST_FILES = 20_000
MOST_BYTES = 512 * 2**20
"""Of one zip, unpacked: all of it is looked at in memory before anything is written."""
BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    UnicodeError,
)
"""What Python's reader raises for zips that are damaged, locked or packed in a way that it does not know."""
_NAME = re.compile(r"\w[\w .()-]{0,79}")
_FILE = re.compile(r"[^.\x00-\x1f/\\:*?\"<>|][^\x00-\x1f/\\:*?\"<>|]{0,119}")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A folder of pictures.

    Attributes:
        name: of the folder.
        pictures: how many files are pictures.
        captioned: how many of them have a text of their own name, or all if there is a table of captions.
        bytes: of all files.
    """

    name: str
    pictures: int
    captioned: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SetPicture:
    """A picture of a set.

    Attributes:
        file: its path in the set's folder.
        caption: what is said of it, one caption a line; empty if nothing.
        bytes: of its file.
        version: changes with the file.
    """

    file: str
    caption: str
    bytes: int
    version: str


def checked_name(where: str, name: str) -> str:
    """A name that can be a folder's or a file's: letters of any script, digits, and a few signs.

    Raises:
        InvalidInput: anything else, so that no name leads out of its folder.
    """
    plain = name.strip()
    if not _NAME.fullmatch(plain) or plain.endswith("."):
        expected = "1 to 80 letters, digits, spaces, dots, dashes or brackets, a letter or digit first"
        raise InvalidInput(where, given=repr(name)[:80], expected=expected)
    return plain


def checked_file(name: str) -> str:
    """The last part of a file's name, if it can stand in a folder of any system.

    Raises:
        InvalidInput: it can't.
    """
    plain = PurePosixPath(name.replace("\\", "/")).name
    if not _FILE.fullmatch(plain) or len(plain.encode("utf-8", "replace")) > 200:
        raise InvalidInput("file", given=repr(name)[:80], expected="a name of at most 120 plain characters")
    return plain


class TrainingSets:
    """The folders below one root.

    Args:
        root: made when something is uploaded.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> list[DataSet]:
        """Every folder, by name."""
        if not self.root.is_dir():
            return []
        folders = [path for path in sorted(self.root.iterdir()) if not path.name.startswith(".")]
        return [_counted(path) for path in folders if path.is_dir() and self._is_inside(path)]

    def folder(self, name: str) -> Path:
        """Where a set lies.

        Raises:
            InvalidInput: no name of a folder.
            NotFound: no such set.
        """
        path = self.root / checked_name("data", name)
        if not path.is_dir() or not self._is_inside(path):
            known = ", ".join(each.name for each in self.listing()) or "none is there yet"
            raise NotFound("data", given=repr(name), expected=f"a set of pictures ({known})", cure="Upload one.")
        return path

    def add(self, name: str, file: str, data: bytes) -> DataSet:
        """Put one file into a set: a picture, a caption or table of captions, or a zip of such files.

        Raises:
            InvalidInput: a name or a kind of file that can't be used.
            PictureError: no picture although its name says so.
            DataError: a zip that is broken, too large, or holds nothing of use.
        """
        folder = self.root / checked_name("data", name)
        kind = PurePosixPath(file).suffix.lower()
        if kind == ".zip":
            parts = _unpacked(data)
        elif kind in (*PICTURES, *TEXTS):
            parts = {checked_file(file): data}
        else:
            expected = f"a .zip, or a file of the kinds {' '.join((*PICTURES, *TEXTS))}"
            raise InvalidInput("file", given=repr(file)[-80:], expected=expected)
        for part, content in parts.items():
            if PurePosixPath(part).suffix.lower() in PICTURES:
                read_picture(content, where=part)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder(name)  # A link that leads elsewhere is refused before anything is written.
        for part, content in parts.items():
            write_bytes(folder / part, content, force=True)
        return _counted(folder)

    def pictures(self, name: str) -> list[SetPicture]:
        """What is in a set, by name.

        Raises:
            InvalidInput, NotFound: as `folder`.
        """
        folder = self.folder(name)
        said = dict(_told_by_tables(folder))
        return [_shown(folder, path, said) for path in _pictures_in(folder)]

    def picture(self, name: str, file: str) -> Path:
        """Where a picture of a set lies.

        Raises:
            InvalidInput, NotFound: as `folder`, or the set has no such picture.
        """
        folder = self.folder(name)
        path = next((path for path in _pictures_in(folder) if path.relative_to(folder).as_posix() == file), None)
        if path is None:
            raise NotFound("file", given=repr(file)[:140], expected=f"a picture of the set {name!r}")
        return path

    def caption(self, name: str, file: str, caption: str) -> SetPicture:
        """Say what a picture shows, one caption a line; nothing takes its captions away.

        Raises:
            InvalidInput, NotFound: as `picture`, or the caption is too long.
        """
        path, plain = self.picture(name, file), "\n".join(filter(None, map(str.strip, caption.splitlines())))
        if len(plain) > LONGEST_CAPTION:
            given = f"{len(plain)} characters"
            raise InvalidInput("caption", given=given, expected=f"at most {LONGEST_CAPTION} characters")
        folder = self.folder(name)
        _unfold_tables(folder)
        beside = text_beside(path) or path.with_suffix(CAPTION_SUFFIXES[0])
        if plain:
            write_bytes(beside, f"{plain}\n".encode(), force=True)
        else:
            beside.unlink(missing_ok=True)
        return _shown(folder, path, {})

    def remove(self, name: str, file: str) -> DataSet:
        """Delete a picture with its captions.

        Raises:
            InvalidInput, NotFound: as `picture`.
        """
        path, folder = self.picture(name, file), self.folder(name)
        _unfold_tables(folder)
        for suffix in CAPTION_SUFFIXES:
            path.with_suffix(suffix).unlink(missing_ok=True)
        path.unlink()
        return _counted(folder)

    def delete(self, name: str) -> None:
        """Delete a set with everything in it.

        Raises:
            InvalidInput, NotFound: as `folder`.
        """
        shutil.rmtree(self.folder(name))
        shutil.rmtree(self.root / THUMBNAILS / name, ignore_errors=True)

    def thumbnail(self, name: str, file: str) -> Path:
        """Where a small copy of a picture is kept, once it is made; errors as `picture`."""
        path = self.picture(name, file)
        mark = hashlib.sha256(f"{file}/{_version(path)}".encode()).hexdigest()[:24]
        return self.root / THUMBNAILS / self.folder(name).name / f"{mark}.webp"

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().parent == self.root.resolve()


def _pictures_in(folder: Path) -> list[Path]:
    """Its pictures, and none that a link leads out of it."""
    root = folder.resolve()
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    return sorted(path for path in found if path.resolve().is_relative_to(root))


def _version(path: Path) -> str:
    about = path.stat()
    return f"{about.st_size:x}-{about.st_mtime_ns:x}"


def _shown(folder: Path, path: Path, said: dict[str, str]) -> SetPicture:
    file = path.relative_to(folder).as_posix()
    beside = text_beside(path)
    if said:  # a table says all
        caption = said.get(file, "")
    elif beside is not None:
        try:
            caption = decode_text(beside.read_bytes(), beside.name).text.removeprefix("\ufeff").strip()
        except DataError:  # in an encoding that it alone doesn't tell
            caption = beside.read_bytes().decode("utf-8", "replace").strip()
    else:
        caption = repeats_of(file)[1]
    return SetPicture(file, caption, path.stat().st_size, _version(path))


def _told_by_tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Pictures and captions of the set's tables, which say all where there is one; a broken row says nothing."""
    for table in (path for path in sorted(folder.rglob("metadata.*")) if path.name in TABLES):
        text = table.read_bytes().decode("utf-8-sig", "replace")
        rows: Iterator[object] = iter(csv.DictReader(io.StringIO(text)))
        if table.suffix == ".jsonl":
            rows = _parsed(text)
        for row in rows:
            if not isinstance(row, dict):
                continue
            name = next((row[key] for key in FILE_COLUMNS if row.get(key)), None)
            caption = next((row[key] for key in CAPTION_COLUMNS if row.get(key)), "")
            if isinstance(name, str):
                lines = caption if isinstance(caption, list) else [caption]
                place = PurePosixPath(table.parent.relative_to(folder).as_posix()) / name
                yield place.as_posix(), "\n".join(str(line).strip() for line in lines)


def _parsed(text: str) -> Iterator[object]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            yield None


def _unfold_tables(folder: Path) -> None:
    """Write what the tables say beside each picture, where it can be changed one by one, and take them away."""
    said = dict(_told_by_tables(folder))
    tables = [path for path in folder.rglob("metadata.*") if path.name in TABLES]
    if not tables:
        return
    for path in _pictures_in(folder):
        # Where there is a table, a text beside a picture counts for nothing.
        for suffix in CAPTION_SUFFIXES:
            path.with_suffix(suffix).unlink(missing_ok=True)
        if caption := said.get(path.relative_to(folder).as_posix()):
            write_bytes(path.with_suffix(CAPTION_SUFFIXES[0]), f"{caption}\n".encode(), force=True)
    for table in tables:
        table.unlink()


def _counted(folder: Path) -> DataSet:
    files = [path for path in folder.rglob("*") if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if any(path.name in TABLES for path in files):
        captioned = len(pictures)
    else:
        named = (text_beside(path) or repeats_of(path.relative_to(folder).as_posix())[1] for path in pictures)
        captioned = sum(bool(one) for one in named)
    return DataSet(folder.name, len(pictures), captioned, sum(path.stat().st_size for path in files))


def _unpacked(data: bytes) -> dict[str, bytes]:
    """The usable files of a zip by name; folders in it are flattened, everything else in it is left out."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        wanted = [info for info in archive.infolist() if _is_wanted(info)]
        size = sum(info.file_size for info in wanted)
        if len(wanted) > MOST_FILES or size > MOST_BYTES:
            given = f"{len(wanted)} files of {size} bytes unpacked"
            raise DataError("zip", given=given, expected=f"at most {MOST_FILES} files and {MOST_BYTES} bytes")
        parts: dict[str, bytes] = {}
        places: dict[str, str] = {}
        for info in wanted:
            name = checked_file(info.filename)
            if name in parts:
                raise DataError("zip", given=f"two files named {name}", expected="names that differ")
            parts[name] = archive.read(info)
            places[name] = info.filename.replace("\\", "/")
    except BROKEN as error:
        raise DataError("zip", given=str(error)[:100], expected="a whole zip without a password") from error
    if not parts:
        raise DataError("zip", given="no picture and no caption", expected="pictures with their captions")
    return parts | _said_by_folders(parts, places)


def _said_by_folders(parts: dict[str, bytes], places: dict[str, str]) -> dict[str, bytes]:
    """Captions of pictures that lie in kohya's folders ``10_name`` and have none of their own."""
    found: dict[str, bytes] = {}
    for name, place in places.items():
        stem, said = PurePosixPath(name).stem, repeats_of(place)[1]
        is_picture = PurePosixPath(name).suffix.lower() in PICTURES
        if is_picture and said and not any(f"{stem}{suffix}" in parts for suffix in CAPTION_SUFFIXES):
            found[f"{stem}{CAPTION_SUFFIXES[0]}"] = said.encode()
    return found


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not info.is_dir() and not hidden and path.suffix.lower() in (*PICTURES, *TEXTS)
