"""Names for pictures, and writing them: whole or not at all, and never over another file unless told to."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import unicodedata
from pathlib import Path

from gouache.errors import PictureError

LONGEST_SLUG = 60
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}


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


def free_name(path: Path) -> Path:
    """`path`, or the first of `name-2.png`, `name-3.png`, ... that is free."""
    candidate, k = path, 1
    while candidate.exists():
        k += 1
        candidate = path.with_stem(f"{path.stem}-{k}")
    return candidate


def check_target(path: Path, *, force: bool = False) -> None:
    """Refuse before the work what writing would refuse after it.

    Raises:
        PictureError: the folder is missing or can't be written, or the file is there already and `force` is off.
    """
    folder = path.parent
    if not folder.is_dir():
        raise PictureError(str(folder), given="no such folder", expected="a folder", cure="Make the folder first.")
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
    """Write a file whole or not at all, and never over another one unless forced.

    Raises:
        PictureError: the file exists, the folder is missing or can't be written, or the disk is full.
    """
    temporary = path.parent / f".gouache-{secrets.token_hex(8)}.part"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            _move_if_free(temporary, path)
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
    finally:
        # In a folder that is none, or can't be written, there is nothing to clear away either.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
