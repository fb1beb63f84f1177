"""A data set's folder appears whole, in one rename, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gouache.errors import DataError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that becomes `folder`, which is absent or empty, when the context ends without an error.

    It lies next to `folder`, so that the rename stays on one file system, and is named by process, so that two builds
    don't mix. Files must be written, not memory-mapped: a mapped page that finds no room kills the process.

    Raises:
        DataError: the disk is full; nothing is kept.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise DataError(
            str(folder),
            given=f"a full disk{where}",
            expected="room for the whole data set",
            cure="Nothing was kept of it, and nothing else was touched. Free some space, or build it on another disk.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
