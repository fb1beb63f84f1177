"""The studio's files: finished pictures, thumbnails, pictures that came with requests, explanations. Every name is
generated.

They lie in the data folder, or in an object store (`object_store.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

from gouache.errors import NotFound, PictureError, StoreAway, StoreError
from gouache.files import atomic_write

Folder = Literal["pictures", "thumbnails", "attachments", "tasks", "explanations"]
Passing = Literal["tasks", "explanations"]
"""Folders whose files go by their age alone."""
FOLDERS: tuple[Folder, ...] = ("pictures", "thumbnails", "attachments", "tasks", "explanations")
_NAME = re.compile(r"[0-9a-f]{32,64}(-[0-9]{4}p?)?(\.(png|jpeg|webp))?")
THUMBNAIL_SIDE = 320


_FULL = {errno.ENOSPC, errno.EDQUOT}


class NoRoom(StoreAway):
    """The disk is full, or nearly so."""


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    """What the system refuses is no fault of the request at hand, and may work later; the paths stay in the log."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> StoreAway:
    """What the system says about the disk, without the path."""
    kind, cure = (NoRoom, "Make room in the data folder.") if error.errno in _FULL else (StoreAway, "Try again.")
    given = (error.strerror or type(error).__name__).lower()
    return kind("disk", given=given, expected="a data folder that can be read and written", cure=cure)


def is_of_disk(error: BaseException | None) -> bool:
    """Whether it says that the disk can't be used, whoever used it."""
    return isinstance(error, OSError) and error.errno in (*_FULL, errno.EROFS, errno.EIO, errno.ESTALE)


def _dropped(path: Path, aside: Path, before: float) -> bool:
    """Remove a file that is old. Aside first: who renews it at this very moment meets no file, or is seen here."""
    if path.stat().st_mtime >= before:
        return False
    path.rename(aside)
    if aside.stat().st_mtime >= before:
        aside.rename(path)
        return False
    aside.unlink()
    return True


def thumbnail_of(file: str) -> str:
    """The name of a stored picture's thumbnail."""
    return Path(file).with_suffix(".webp").name


def not_uploaded(name: str) -> PictureError:
    """No such attachment, as far as whoever asks is concerned."""
    return PictureError(
        "picture", given=repr(name)[:100], expected="an attachment that you uploaded", cure="Upload it first."
    )


def given_picture(task_id: str) -> str:
    """The name of the picture that came with a task."""
    return f"{task_id}-0000.png"


def made_picture(task_id: str) -> str:
    """The name of the picture that a worker made of it."""
    return f"{task_id}-0001.png"


def checked(name: str) -> str:
    """The name, if gouache made it.

    Raises:
        NotFound: it didn't.
    """
    if not _NAME.fullmatch(name):
        raise NotFound("file", given=repr(name), expected="the name of a stored file")
    return name


def is_stored_name(name: str) -> bool:
    """Whether gouache made this name."""
    return _NAME.fullmatch(name) is not None


class FileStore(ABC):
    """Five folders of files, wherever they lie.

    Every use of it raises `StoreAway` while that place can't be used, `NoRoom` if that is because it is full.
    """

    @abstractmethod
    def check_room(self) -> None:
        """Refuse what is new while what was accepted can still be finished.

        Raises:
            NoRoom: less is free than is to stay free.
        """

    @abstractmethod
    def keep(self, folder: Folder, name: str, data: bytes) -> None:
        """Store bytes, whole or not at all.

        Raises:
            NotFound: no name that gouache made.
        """

    @abstractmethod
    def read(self, folder: Folder, name: str) -> bytes:
        """A file's bytes.

        Raises:
            NotFound: not there.
        """

    @abstractmethod
    def remove(self, folder: Folder, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def names(self, folder: Folder) -> list[str]:
        """Every file of a folder, those included that are set aside to be removed."""

    @abstractmethod
    def drop_old(self, folder: Passing, before: float) -> None:
        """Remove the files that were written before this time, in seconds since 1970."""

    @abstractmethod
    def drop_attachments(self, needed: Container[str], before: float) -> int:
        """Remove attachments that nobody needs; gives how many went.

        Args:
            needed: digests that stay.
            before: only those that were last attached, or named by a new job, before this time.
        """

    @abstractmethod
    def _renewed(self, digest: str) -> bool:
        """Count an attachment's time from now on; False if it is gone."""

    def attach(self, data: bytes) -> str:
        """Store a picture that a request names; gives the `sha256:<hex>` that names it.

        Raises:
            NoRoom: there is no room for it.
        """
        self.check_room()
        digest = sha256(data).hexdigest()
        if not self._renewed(digest):
            self.keep("attachments", digest, data)
        return f"sha256:{digest}"

    def renew(self, names: Iterable[str]) -> None:
        """Count the time that attachments are kept without need from now on.

        Raises:
            PictureError: one is gone.
        """
        for name in names:
            if not self._renewed(name.removeprefix("sha256:")):
                raise PictureError(
                    "picture", given=repr(name), expected="an attachment that is still kept", cure="Upload it again."
                )

    def discard(self, file: str) -> None:
        """Remove a picture's file and its thumbnail, if they are there."""
        self.remove("pictures", file)
        self.remove("thumbnails", thumbnail_of(file))

    def attachment(self, name: str) -> bytes:
        """The bytes behind `sha256:<hex>`.

        Raises:
            PictureError: no such attachment. A path is never read.
        """
        prefix, _, digest = name.partition(":")
        if prefix != "sha256":
            raise PictureError(
                "picture", given="a path", expected="sha256:<hex> of an attachment", cure="Upload the picture first."
            )
        try:
            return self.read("attachments", digest)
        except NotFound as error:
            raise not_uploaded(name) from error


class DiskStore(FileStore):
    """Five folders in the data folder.

    Args:
        data: the data folder; made, for the user alone, if it is missing.
        reserve: bytes on the disk that nothing new may take.

    Raises:
        StoreError: the data folder can't be made or written.
    """

    def __init__(self, data: Path, reserve: int = 0) -> None:
        self.root, self.reserve = data, reserve
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(OSError):  # There is none, or `tasks` is in use already.
                (data / "errands").rename(data / "tasks")  # Its name until version 2 of the tables.
            for name in FOLDERS:
                (data / name).mkdir(exist_ok=True, mode=0o700)
                # A folder that is there may still be one that can't be written.
                with tempfile.TemporaryFile(dir=data / name):
                    pass
        except OSError as error:
            if error.errno in _FULL:  # It is cleaned up by what serves it, which has to start for that.
                return
            raise StoreError(
                f"data folder {data}",
                given=(error.strerror or str(error)).lower(),
                expected="a folder that can be made and written",
                cure="Choose another with --data, or change its permissions.",
            ) from error

    def check_room(self) -> None:
        """As much must be free as `reserve` says."""
        with _on_disk():
            free = shutil.disk_usage(self.root).free
        if free < self.reserve:
            raise NoRoom(
                "disk",
                given=f"{free // 2**20} MiB free",
                expected=f"at least {self.reserve // 2**20} MiB",
                cure="Make room in the data folder.",
            )

    def path(self, folder: Folder, name: str) -> Path:
        """Where a file lies.

        Raises:
            NotFound: no name that gouache made, or one that leads out of its folder (a link).
        """
        root = (self.root / folder).resolve()
        path = root / checked(name)
        if path.resolve().parent != root:
            raise NotFound("file", given=repr(name), expected="the name of a stored file")
        return path

    def keep(self, folder: Folder, name: str, data: bytes) -> None:
        """Store bytes, whole or not at all: temporary file, fsync, rename, fsync of the folder."""
        path = self.path(folder, name)
        try:
            with _on_disk(), atomic_write(path) as file:
                file.write(data)
        except FileNotFoundError as error:
            given = f"no folder {folder!r} in the data folder"
            raise StoreAway("disk", given=given, expected="the one that was there at the start") from error

    def read(self, folder: Folder, name: str) -> bytes:
        """A file's bytes; as `FileStore.read`."""
        path = self.path(folder, name)
        try:
            with _on_disk():
                return path.read_bytes()
        except FileNotFoundError as error:
            raise NotFound("file", given=repr(name), expected="a stored file") from error

    def remove(self, folder: Folder, name: str) -> None:
        """Remove a file if it is there."""
        with _on_disk():
            self.path(folder, name).unlink(missing_ok=True)

    def names(self, folder: Folder) -> list[str]:
        """Every file of a folder; one that a crash left aside has a dot before its name, which is taken off."""
        with _on_disk():
            return [path.name.removeprefix(".") for path in (self.root / folder).iterdir()]

    def drop_old(self, folder: Passing, before: float) -> None:
        """Remove old files; as `FileStore.drop_old`."""
        with _on_disk():
            for path in (self.root / folder).iterdir():
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)

    def _renewed(self, digest: str) -> bool:
        try:
            with _on_disk():
                os.utime(self.path("attachments", digest))
        except FileNotFoundError:
            return False
        return True

    def drop_attachments(self, needed: Container[str], before: float) -> int:
        """Remove attachments that nobody needs; as `FileStore.drop_attachments`."""
        removed = 0
        for path in (self.root / "attachments").iterdir():
            name = path.name.removeprefix(".")  # One that a crash left aside has its dot.
            if name in needed or not is_stored_name(name):
                continue
            # Another server of the same store may be faster.
            with contextlib.suppress(FileNotFoundError):
                removed += _dropped(path, path.with_name(f".{name}"), before)
        return removed
