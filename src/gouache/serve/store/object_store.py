"""The studio's files in an object store that speaks S3, so that servers and workers of several machines share them.

An object is written whole or not at all, and whoever reads it right after that finds it: S3 promises both. What it
does not offer is a rename, so that an attachment that is to go is copied aside first, and stays there for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gouache.errors import NotFound, StoreAway, StoreError, StoreRefused
from gouache.serve.store.file_store import DiskStore, FileStore, Folder, NoRoom, Passing, checked, is_stored_name

SCHEME = "s3"
ASIDE_SECONDS = 3600.0
"""An attachment that is to go lies aside for so long: who named it at that very moment still finds it."""
CONNECT_SECONDS, REPLY_SECONDS, TRIES = 2, 10, 2
"""A user is not to wait for a store that is away: one try more than the first, and then an error."""
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}
"""What S3's own service never says, and those say that have disks or quotas (MinIO, Ceph)."""
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "401"}
_NO_BUCKET = "NoSuchBucket"
log = logging.getLogger("gouache.objects")


def open_file_store(data: Path, files: str | None, reserve: int = 0) -> FileStore:
    """The studio's files.

    Args:
        data: the data folder.
        files: URL of an object store that holds them; None for the data folder.
        reserve: bytes on the disk of the data folder that nothing new may take.

    Raises:
        StoreError: the place can't be used.
        StoreAway: the object store can't be reached now.
    """
    return DiskStore(data, reserve) if files is None else ObjectStore(files)


class ObjectStore(FileStore):
    """Five folders below one prefix of a bucket.

    Credentials and the address of a service other than Amazon's are read where every client of S3 reads them:
    `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, `~/.aws`, the role of the machine.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`; the bucket is there already.

    Raises:
        StoreError: the URL is none, there is no such bucket, or it can't be written.
        StoreAway: it can't be reached now.
    """

    def __init__(self, url: str) -> None:
        self._place = place_of(url)
        import s3fs

        config = {"connect_timeout": CONNECT_SECONDS, "read_timeout": REPLY_SECONDS, "retries": {"max_attempts": 1}}
        self._system = s3fs.S3FileSystem(
            config_kwargs=config, use_listings_cache=False, skip_instance_cache=True, default_fill_cache=False
        )
        self._system.retries = TRIES
        self._check()

    def _check(self) -> None:
        key = f"{self._place}/tasks/.check-{secrets.token_hex(8)}"
        try:
            with _at_store():
                self._do(self._system._pipe_file, key, b"gouache")
                self._do(self._system._rm_file, key)
        except NoRoom:  # It is cleaned up by what serves it, which has to start for that.
            return
        except StoreRefused as error:
            raise StoreError(
                "files", given=error.given, expected="a bucket that can be read and written", cure=error.cure
            ) from error

    def _key(self, folder: Folder, name: str, *, aside: bool = False) -> str:
        return f"{self._place}/{folder}/{'.' if aside else ''}{checked(name)}"

    def check_room(self) -> None:
        """Nothing: how much room is left can't be asked. What is too much is refused when it is written."""

    def keep(self, folder: Folder, name: str, data: bytes) -> None:
        """Store bytes, whole or not at all."""
        with _at_store():
            self._do(self._system._pipe_file, self._key(folder, name), data)

    def read(self, folder: Folder, name: str) -> bytes:
        """An object's bytes; as `FileStore.read`."""
        try:
            return self._read(self._key(folder, name))
        except FileNotFoundError as error:
            if folder == "attachments" and self._put_back(name):
                return self._read(self._key(folder, name))
            raise NotFound("file", given=repr(name), expected="a stored file") from error

    def _read(self, key: str) -> bytes:
        with _at_store():
            return bytes(self._do(self._system._cat_file, key))

    def remove(self, folder: Folder, name: str) -> None:
        """Remove an object if it is there."""
        self._remove(self._key(folder, name))

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), _at_store():
            self._do(self._system._rm_file, key)

    def names(self, folder: Folder) -> list[str]:
        """Every object of a folder."""
        return sorted({name.removeprefix(".") for name, _ in self._listed(folder)})

    def _listed(self, folder: Folder) -> list[tuple[str, float]]:
        """Name and time of every object of a folder."""
        try:
            with _at_store():
                found = self._do(self._system._ls, f"{self._place}/{folder}", detail=True, refresh=True)
        except FileNotFoundError:  # Folders are only parts of names: there is none before its first object.
            return []
        rows = [(str(row["name"]).rpartition("/")[2], row) for row in found if row["type"] == "file"]
        return [(name, row["LastModified"].timestamp()) for name, row in rows if is_stored_name(name.removeprefix("."))]

    def drop_old(self, folder: Passing, before: float) -> None:
        """Remove old objects; as `FileStore.drop_old`."""
        for name, written in self._listed(folder):
            if written < before:
                self.remove(folder, name)

    def drop_attachments(self, needed: Container[str], before: float) -> int:
        """Set attachments aside that nobody needs, and remove those that have been aside for long enough."""
        removed, now = 0, time.time()
        for stored, written in self._listed("attachments"):
            name, is_aside = stored.removeprefix("."), stored.startswith(".")
            if name in needed:
                if is_aside:
                    self._put_back(name)
            elif is_aside and written < now - ASIDE_SECONDS:
                self._remove(self._key("attachments", name, aside=True))
            elif not is_aside and written < before:
                removed += self._set_aside(name, before)
        return removed

    def _set_aside(self, name: str, before: float) -> bool:
        plain, aside = self._key("attachments", name), self._key("attachments", name, aside=True)
        # Another server of the same store may be faster, or renew it at this very moment.
        with contextlib.suppress(FileNotFoundError), _at_store():
            if self._do(self._system._info, plain, refresh=True)["LastModified"].timestamp() >= before:
                return False
            self._copy(plain, aside)
            self._do(self._system._rm_file, plain)
            return True
        return False

    def _put_back(self, name: str) -> bool:
        plain, aside = self._key("attachments", name), self._key("attachments", name, aside=True)
        try:
            with _at_store():
                self._copy(aside, plain)
        except FileNotFoundError:
            return False
        self._remove(aside)
        return True

    def _renewed(self, digest: str) -> bool:
        key = self._key("attachments", digest)
        try:
            with _at_store():
                self._copy(key, key)
        except FileNotFoundError:
            return self._put_back(digest)
        return True

    def _copy(self, source: str, target: str) -> None:
        # An object may be copied onto itself, which renews its time, only where something about it is written anew.
        self._do(self._system._cp_file, source, target, MetadataDirective="REPLACE")

    def _do(self, work: Callable[..., Awaitable[Any]], *given: object, **options: object) -> Any:
        """Run one of the file system's coroutines, and end it when it takes too long."""
        from fsspec.asyn import sync

        # The client's own limits leave out what waits for leave to send a body (Expect: 100-continue).
        async def within() -> Any:
            return await asyncio.wait_for(work(*given, **options), CONNECT_SECONDS + REPLY_SECONDS)

        return sync(self._system.loop, within)


@contextlib.contextmanager
def _at_store() -> Iterator[None]:
    """What the store refuses may work later; bucket, key and address stay in the log."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        fault = _fault(error)
        if fault is None:
            raise
        log.warning("object store", extra={"error": str(error)})
        raise fault from error


def _fault(error: BaseException) -> StoreAway | None:
    """The error as a user may read it; None for an object that isn't there."""
    reply = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code, status = str(reply.get("Error", {}).get("Code", "")), reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
    expected = "a store that can be read and written"
    if code in _FULL or status == 507:
        return NoRoom("object store", given="no room left", expected=expected, cure="Make room in the object store.")
    if code == _NO_BUCKET:
        return StoreRefused("object store", given="no such bucket", expected=expected, cure="Make the bucket first.")
    if isinstance(error, FileNotFoundError):
        return None
    if code in _REFUSED or isinstance(error, PermissionError) or type(error).__name__ in _WITHOUT_CREDENTIALS:
        cure = "Check the credentials of this machine: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or its role."
        return StoreRefused("object store", given="no permission", expected=expected, cure=cure)
    given = f"the answer {code or status}" if code or status else "no connection"
    return StoreAway("object store", given=given, expected=expected, cure="Try again in a few seconds.")


_WITHOUT_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}


def place_of(url: str) -> str:
    """`bucket` or `bucket/prefix` of a URL.

    Raises:
        StoreError: it is none, or has a password in it.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or "@" in parts.netloc:
        raise StoreError(
            "files",
            given="a URL with credentials in it",
            expected="s3://BUCKET/PREFIX",
            cure="Put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: a URL is shown in lists of processes.",
        )
    if parts.scheme != SCHEME or not parts.netloc or parts.query or parts.fragment:
        raise StoreError("files", given=repr(url)[:100], expected="s3://BUCKET or s3://BUCKET/PREFIX")
    return (parts.netloc + "/" + parts.path.strip("/")).rstrip("/")
