"""Folders of captioned pictures to train on: below `training` in the data folder, put there by hand or uploaded."""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gouache.errors import DataError, InvalidInput, NotFound
from gouache.files import write_bytes
from gouache.pipeline.inputs.images import read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TEXTS = (".txt", ".jsonl", ".csv")
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

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().parent == self.root.resolve()


def _counted(folder: Path) -> DataSet:
    files = [path for path in folder.rglob("*") if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    has_table = any(path.name in ("metadata.jsonl", "metadata.csv") for path in files)
    captioned = pictures if has_table else [path for path in pictures if path.with_suffix(".txt").is_file()]
    return DataSet(folder.name, len(pictures), len(captioned), sum(path.stat().st_size for path in files))


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
        for info in wanted:
            name = checked_file(info.filename)
            if name in parts:
                raise DataError("zip", given=f"two files named {name}", expected="names that differ")
            parts[name] = archive.read(info)
    except BROKEN as error:
        raise DataError("zip", given=str(error)[:100], expected="a whole zip without a password") from error
    if not parts:
        raise DataError("zip", given="no picture and no caption", expected="pictures with their captions")
    return parts


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not info.is_dir() and not hidden and path.suffix.lower() in (*PICTURES, *TEXTS)
