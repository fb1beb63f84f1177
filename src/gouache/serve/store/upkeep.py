"""Upkeep of the store: backups, and the removal of what nobody needs any longer."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, or_, select, text

from gouache.errors import NotFound, StoreError
from gouache.serve.queue.job import OPEN
from gouache.serve.store import tables
from gouache.serve.store.attachments import NAMED, Attachments, own_by_jobs
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.file_store import FileStore, Folder, NoRoom
from gouache.serve.store.gallery import UNDO_SECONDS, Gallery
from gouache.serve.store.tables import jobs, pictures
from gouache.serve.store.wanted import filtered_by

KEPT: tuple[Table, ...] = (
    tables.accounts,
    tables.tokens,
    tables.options,
    tables.presets,
    tables.boards,
    tables.turns,
    tables.pauses,
    tables.jobs,
    tables.events,
    tables.pictures,
    tables.tags,
    tables.models,
    tables.attachments,
)
"""In an order in which rows refer only to earlier tables."""
FOLDERS: tuple[Folder, ...] = ("pictures", "attachments")
_NUMBERED = (tables.jobs, tables.events, tables.pictures)


def back_up(database: Database, file_store: FileStore, target: Path) -> int:
    """Write everything into a new tar file; the studio may go on meanwhile.

    Returns:
        The number of pictures in it.

    Raises:
        StoreError: the file is there already.
    """
    try:
        with tarfile.open(target, "x") as tar:
            listed = _add_rows(database, tar)
            for name in listed:
                _add_file(tar, f"pictures/{name}", file_store.read("pictures", name))
            for name in file_store.names("attachments"):
                with contextlib.suppress(NotFound):  # It was about to be removed.
                    _add_file(tar, f"attachments/{name}", file_store.read("attachments", name))
    except FileExistsError as error:
        raise StoreError(str(target), given="a file that exists", expected="a free name") from error
    return len(listed)


def _add_rows(database: Database, tar: tarfile.TarFile) -> list[str]:
    """Every table as it stands at one moment; gives the files of the pictures."""
    files: list[str] = []
    with database.snapshot() as connection:
        for table in KEPT:
            rows = [dict(row._mapping) for row in connection.execute(select(table))]
            if table is tables.pictures:
                files = [str(row["file"]) for row in rows]
            _add_file(tar, _file_of(table), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return files


def _add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), int(time.time())
    tar.addfile(info, io.BytesIO(data))


def restore(database: Database, file_store: FileStore, source: Path) -> int:
    """Fill an empty studio from a backup. Jobs that ran are queued again.

    Returns:
        The number of pictures.

    Raises:
        StoreError: the studio isn't empty, or the file is no backup.
    """
    try:
        with tarfile.open(source, "r:") as tar:
            files = _keep_files(file_store, tar)
            with database.write() as connection:
                _fill(connection, tar)
                if not database.sqlite:
                    _advance_sequences(connection)
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise StoreError(str(source), given=str(error), expected="a backup made by `gouache jobs backup`") from error
    return files


def _keep_files(file_store: FileStore, tar: tarfile.TarFile) -> int:
    pictures = 0
    for member in tar:
        folder, _, name = member.name.partition("/")
        source = tar.extractfile(member) if member.isfile() else None
        for known in FOLDERS:
            if folder == known and source is not None:
                file_store.keep(known, name, source.read())  # The file store refuses every name that it didn't make.
                pictures += known == "pictures"
    return pictures


def _fill(connection: Connection, tar: tarfile.TarFile) -> None:
    for table in KEPT:
        if connection.execute(select(func.count()).select_from(table)).scalar_one():
            raise StoreError("store", given=f"rows in {table.name}", expected="an empty store")
        rows = list(_rows(tar, table))
        if table is tables.pictures:
            rows = [row if "kind" in row else row | filtered_by(str(row["recipe"])) for row in rows]
        if rows:
            connection.execute(insert(table), rows)
    if _file_of(tables.attachments) not in tar.getnames():
        _complete(connection)
    running = tables.jobs.update().where(tables.jobs.c.state == "running")
    connection.execute(running.values(state="queued", worker=None, lease_until=None))


_NEWER = (tables.attachments, tables.pauses)
"""Tables that older backups lack."""


def _file_of(table: Table) -> str:
    return f"store/{table.name}.jsonl"


def _complete(connection: Connection) -> None:
    """What backups of version 2 and older leave to be told from the rest, as a migration does."""
    own_by_jobs(connection)
    for owner in connection.execute(select(tables.tokens.c.owner).distinct()).scalars().all():
        row = {"name": owner, "password": None, "created": time.time()}
        insert_missing(connection, tables.accounts, row)


def _rows(tar: tarfile.TarFile, table: Table) -> Iterator[dict[str, Any]]:
    if table in _NEWER and _file_of(table) not in tar.getnames():
        return
    source = tar.extractfile(_file_of(table))
    if source is None:
        raise KeyError(f"no rows of {table.name}")
    for line in source:
        row = json.loads(line)
        row = {column.name: None for column in table.columns if column.nullable} | row  # Older ones lack `expires`.
        if set(row) != {column.name for column in table.columns}:
            raise ValueError(f"a row of {table.name} with other columns")
        yield row


def _advance_sequences(connection: Connection) -> None:
    """PostgreSQL does not count numbers that were given."""
    for table in _NUMBERED:
        highest = connection.execute(select(func.coalesce(func.max(table.c.seq), 1))).scalar_one()
        statement = text("SELECT setval(pg_get_serial_sequence(:name, 'seq'), :highest)")
        connection.execute(statement, {"name": table.name, "highest": highest})


ATTACHMENT_SECONDS = 7 * 24 * 3600
"""An attachment stays so long after it came and after the last job that names it ended, an explanation after it was
made."""
SHORT_SECONDS = 3600
"""The same while the disk is nearly full."""
FIRST_SECONDS, EVERY_SECONDS = 60, 3600
_AT_ONCE = 1000
log = logging.getLogger("gouache.housekeeping")


class Housekeeping:
    """Cleans up a minute after the start and once an hour, in a thread of its own.

    Several servers of one store may do so at once.

    Args:
        database, file_store, gallery: of the studio.
    """

    def __init__(self, database: Database, file_store: FileStore, gallery: Gallery) -> None:
        self.database, self.file_store, self.gallery = database, file_store, gallery
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True, name="housekeeping")
        self._thread.start()

    def stop(self) -> None:
        """End; what is being done is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause = FIRST_SECONDS
        while not self._stop.wait(pause):
            pause = EVERY_SECONDS
            try:
                self.clean()
            except Exception:  # The studio goes on without it.
                log.exception("cleaning up")

    def clean(self, now: float | None = None) -> tuple[int, int]:
        """Remove what nobody needs.

        Args:
            now: seconds since 1970; the clock's without it.

        Returns:
            How many pictures and how many attachments went.
        """
        now = time.time() if now is None else now
        files = self.gallery.purge(now - UNDO_SECONDS)
        for file in files:
            self.file_store.discard(file)
        before = now - self._patience()
        attachments = self.file_store.drop_attachments(self.needed(before), before)
        self.file_store.drop_old("explanations", before)
        Attachments(self.database, self.file_store).forget_gone()
        if files or attachments:
            log.info("cleaned up", extra={"pictures": len(files), "attachments": attachments})
        return len(files), attachments

    def _patience(self) -> float:
        try:
            self.file_store.check_room()
        except NoRoom:
            return SHORT_SECONDS
        return ATTACHMENT_SECONDS

    def needed(self, before: float) -> set[str]:
        """Digests of attachments that stay.

        They are those that an open job names, a job that ended after `before` and may be retried, or one whose pictures
        are kept, so that their recipes can be followed.
        """
        kept = select(pictures.c.id).where(pictures.c.job == jobs.c.id).exists()
        stays = or_(jobs.c.state.in_(OPEN), jobs.c.finished >= before, kept)
        query = select(jobs.c.request).where(jobs.c.request.like("%sha256:%"), stays)
        found: set[str] = set()
        with self.database.read() as connection:
            for part in connection.execute(query).partitions(_AT_ONCE):
                found.update(digest for row in part for digest in NAMED.findall(row.request))
        return found
