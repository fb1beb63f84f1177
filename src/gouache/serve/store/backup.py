"""The whole studio in one tar file, and back. Rows are JSON lines: SQLite and PostgreSQL take each other's."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text

from gouache.errors import StoreError
from gouache.serve.store import tables
from gouache.serve.store.database import Database
from gouache.serve.store.files import FileStore, Folder

KEPT: tuple[Table, ...] = (
    tables.accounts,
    tables.tokens,
    tables.options,
    tables.presets,
    tables.boards,
    tables.turns,
    tables.jobs,
    tables.events,
    tables.pictures,
    tables.tags,
    tables.models,
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
                tar.add(file_store.path("pictures", name), f"pictures/{name}")
            for path in sorted((file_store.root / "attachments").iterdir()):
                if not path.name.startswith("."):
                    tar.add(file_store.path("attachments", path.name), f"attachments/{path.name}")
    except FileExistsError as error:
        raise StoreError(str(target), given="a file that exists", expected="a free name") from error
    return len(listed)


def _add_rows(database: Database, tar: tarfile.TarFile) -> list[str]:
    """Every table as it stands at one moment; gives the files of the pictures."""
    files: list[str] = []
    with database.write() as connection:
        for table in KEPT:
            rows = [dict(row._mapping) for row in connection.execute(select(table))]
            if table is tables.pictures:
                files = [str(row["file"]) for row in rows]
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            info = tarfile.TarInfo(f"store/{table.name}.jsonl")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return files


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
        if rows:
            connection.execute(insert(table), rows)
    running = tables.jobs.update().where(tables.jobs.c.state == "running")
    connection.execute(running.values(state="queued", worker=None, lease_until=None))


def _rows(tar: tarfile.TarFile, table: Table) -> Iterator[dict[str, Any]]:
    source = tar.extractfile(f"store/{table.name}.jsonl")
    if source is None:
        raise KeyError(f"no rows of {table.name}")
    for line in source:
        row = json.loads(line)
        if set(row) != {column.name for column in table.columns}:
            raise ValueError(f"a row of {table.name} with other columns")
        yield row


def _advance_sequences(connection: Connection) -> None:
    """PostgreSQL does not count numbers that were given."""
    for table in _NUMBERED:
        highest = connection.execute(select(func.coalesce(func.max(table.c.seq), 1))).scalar_one()
        statement = text("SELECT setval(pg_get_serial_sequence(:name, 'seq'), :highest)")
        connection.execute(statement, {"name": table.name, "highest": highest})
