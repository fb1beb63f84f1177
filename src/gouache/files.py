"""Writing files whole or not at all, never over another one unless told to; and names for pictures."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gouache.errors import PictureError

LONGEST_SLUG = 60
LONGEST_IN_PART = 48
"""Characters of a name that its temporary file repeats: at most 192 bytes, so that this one's name is not too long."""
BINARY = getattr(os, "O_BINARY", 0)
"""Windows would translate line ends without it; other systems have no such flag."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}


def existing(name: str | Path) -> Path | None:
    """The file or folder that somebody's text names, ~ being their home; None if there is none, or the text is none
    of a path (longer than a file system takes, with a NUL, the home of nobody)."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def slug(words: str) -> str:
    """Words as a file name of letters, digits and dashes; any script's letters stay.

    >>> slug("A red Fire-engine, 3D style!")
    'a-red-fire-engine-3d-style'
    >>> slug("../..")
    'untitled'
    """
    folded = unicodedata.normalize("NFC", words).lower()
    joined = re.sub(r"[\W_]+", "-", folded).strip("-")
    while len(joined.encode()) > 3 * LONGEST_SLUG or len(joined) > LONGEST_SLUG:
        head, dash, _ = joined[:-1].rpartition("-")
        joined = head if dash and len(head) > LONGEST_SLUG // 2 else joined[:LONGEST_SLUG].rstrip("-")
        joined = joined.encode()[: 3 * LONGEST_SLUG].decode("utf-8", "ignore")
    return joined or "untitled"


def check_target(path: Path, *, force: bool = False) -> None:
    """Refuse before the work what writing would refuse after it; a folder that is missing will be made.

    Raises:
        PictureError: the folder can't be made or written, or the file is there already and `force` is off.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    if not folder.is_dir():
        raise PictureError(str(folder), given="a file", expected="a folder", cure="Choose another folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PictureError(
            str(folder), given="a folder that can't be written", expected="one that can", cure="Choose another folder."
        )
    if path.exists() and not force:
        raise PictureError(
            str(path),
            given="a file that exists",
            expected="a free name",
            cure="Choose another name or seed, or use --force.",
        )


def write_bytes(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file whole or not at all, and never over another one unless forced. Missing folders are made.

    Raises:
        PictureError: the file exists, the folder can't be made or written, or the disk is full.
    """
    try:
        # Where a file of the folder's name stands, opening says so.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, force=force) as file:
            file.write(data)
    except FileExistsError as error:
        raise PictureError(
            str(path), given="a file that exists", expected="a free name", cure="Choose another name, or use --force."
        ) from error
    except OSError as error:
        raise PictureError(
            str(path),
            given=(error.strerror or str(error)).lower(),
            expected="a folder with room that can be written",
            cure="Free some space or choose another folder; nothing was written.",
        ) from error


@contextmanager
def atomic_write(path: Path, *, force: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that takes its name only when it is whole and on the disk.

    The temporary file lies beside `path`, since a rename is atomic only within one file system.

    Args:
        path: the file's name.
        force: replace a file of that name.

    Raises:
        FileExistsError: there is one and `force` is off.
        OSError: as the system says; nothing is left behind.
    """
    part = path.parent / f".{path.name[:LONGEST_IN_PART]}.{secrets.token_hex(6)}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            part.replace(path)
        else:
            _move_if_free(part, path)
        _sync_folder(path.parent)
    finally:
        # In a folder that is none, or can't be written, there is nothing to clear away either.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _move_if_free(temporary: Path, path: Path) -> None:
    """A hard link fails if the name is taken, even if it was taken a moment ago; some file systems have no links."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "the file exists", str(path)) from error
        temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last: POSIX keeps it in the folder's own data."""
    if os.name != "posix":
        return
    # A folder that may be written to but not read can't be opened for this; the file is there all the same.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class CountedFile:
    """A file that tells its length after each piece that is written; what the listener raises stops the writing.

    Args:
        file: open for writing.
        listener: told how many bytes there are.
        before: added to them.
    """

    def __init__(self, file: BinaryIO, listener: Callable[[int], object], before: int = 0) -> None:
        self._file, self._listener, self._before = file, listener, before

    def write(self, piece: bytes) -> int:
        """Write, and tell."""
        written = self._file.write(piece)
        self._listener(self._before + self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
