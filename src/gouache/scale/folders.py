"""A folder that finished files go to: on this machine, or in an object store by an address such as `s3://bucket/prefix`.

Object stores are reached through fsspec; what an address needs (keys, an endpoint of its own) is read from the places
where its library looks, for S3 the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gouache.errors import InvalidInput, MissingDependency, PictureError, StoreAway, StoreError
from gouache.files import check_target, write_bytes

T = TypeVar("T")
READERS = 16
"""Files of an object store that are read at the same time."""


class Folder(Protocol):
    """Files by name; a file is there whole or not at all."""

    def check(self) -> None:
        """Refuse before the work what writing would refuse after it."""
        ...

    def names(self) -> set[str]:
        """The names of the files in it, those of folders inside it aside."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, over one of that name."""
        ...

    def address(self, name: str) -> str:
        """The file's path or address, for people."""
        ...


def is_address(place: str | None) -> bool:
    """Whether a place is one of an object store.

    >>> is_address("s3://bucket/prefix"), is_address("pictures")
    (True, False)
    """
    return place is not None and "://" in place


def open_folder(place: str | None) -> Folder:
    """The folder of a path or an address; None is the current one.

    Raises:
        InvalidInput: an address of a kind that no installed library knows.
        MissingDependency: the library for this kind is not installed.
    """
    return ObjectFolder(place) if place is not None and is_address(place) else LocalFolder(Path(place or "."))


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuse before the work what writing would refuse after it.

        Raises:
            PictureError: the folder can't be made or written.
        """
        check_target(self.path / "name", force=True)

    def names(self) -> set[str]:
        """The names of the files in it; none while it isn't there."""
        if not self.path.is_dir():
            return set()
        return {path.name for path in self.path.iterdir() if path.is_file()}

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            PictureError: it can't be read.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            given = (error.strerror or str(error)).lower()
            raise PictureError(str(self.path / name), given=given, expected="a file that can be read") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file, over one of that name.

        Raises:
            PictureError: the folder is full or can't be written.
        """
        write_bytes(self.path / name, data, force=True)

    def address(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)


class ObjectFolder:
    """All objects whose names begin with a prefix.

    Args:
        place: an address that fsspec understands.

    Raises:
        InvalidInput: it doesn't.
        MissingDependency: fsspec, or its library for this kind of address, is not installed.
    """

    def __init__(self, place: str) -> None:
        import fsspec

        kind = place.partition("://")[0]
        try:
            self._files, self._prefix = fsspec.core.url_to_fs(place.rstrip("/"), skip_instance_cache=True)
        except ImportError as error:
            raise MissingDependency(
                place,
                given=str(error),
                expected=f"the library for {kind}:// addresses",
                cure="pip install 'gouache[scale]'",
            ) from error
        except ValueError as error:
            raise InvalidInput(place, given=str(error), expected="an address such as s3://bucket/prefix") from error
        self.place = place.rstrip("/")

    def check(self) -> None:
        """Refuse before the work what writing would refuse after it: one look at what is there.

        Raises:
            StoreError: no such bucket, or no right to it.
            StoreAway: the store doesn't answer.
        """
        self.names()

    def names(self) -> set[str]:
        """The names of the objects right under the prefix; errors as `check`."""

        def listed() -> list[dict[str, Any]]:
            # What an earlier run of this process saw is no answer to what is there now.
            self._files.invalidate_cache()
            try:
                return list(self._files.ls(self._prefix, detail=True))
            except FileNotFoundError:
                # A prefix is there from its first object on; a bucket is made by hand.
                self._files.ls(self._prefix.split("/")[0], detail=False)
                return []

        found = self._told(self.place, listed)
        return {str(one["name"]).rpartition("/")[2] for one in found if one.get("type") == "file"}

    def read(self, name: str) -> bytes:
        """The bytes of an object; errors as `check`."""
        data = self._told(self.address(name), lambda: self._files.cat_file(f"{self._prefix}/{name}"))
        return bytes(data)

    def write(self, name: str, data: bytes) -> None:
        """Write an object, over one of that name; errors as `check`, and one for a store that is full."""
        self._told(self.address(name), lambda: self._files.pipe_file(f"{self._prefix}/{name}", data))

    def address(self, name: str) -> str:
        """The object's address."""
        return f"{self.place}/{name}"

    def _told(self, where: str, action: Callable[[], T]) -> T:
        """Do it; what the store's library says becomes an error of ours. Each has exceptions of its own."""
        try:
            return action()
        except (FileNotFoundError, PermissionError) as error:
            raise StoreError(
                where,
                given=_first_line(error),
                expected="a bucket that is there, and the right to read and write it",
                cure="Make the bucket first; for S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL say "
                "who asks, and where.",
            ) from error
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            cure = "What was written stays; run the same command again when the store can be used."
            given = "a store that is full" if full else _first_line(error)
            raise StoreAway(where, given=given, expected="a store that answers and has room", cure=cure) from error


def read_all(folder: Folder, names: Iterable[str]) -> dict[str, bytes]:
    """The bytes of some files; several are read at a time, since an object store answers slowly and many at once."""
    wanted = list(names)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(wanted, pool.map(folder.read, wanted), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
