"""Brings the tables of an older gouache to today's, by Alembic, so that an update keeps everybody's gallery.

A step is a file in `versions/`, with the version of the tables as its revision. The store itself says which version it
has (`meta`, key `schema`); versions before there were migrations read it too, and refuse what is newer than they know.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, update

from gouache.errors import StoreError
from gouache.serve.store import tables

_LOCK = 7861
log = logging.getLogger("gouache.store")


def migrate(connection: Connection) -> None:
    """Make the tables of an empty store, or bring those of an older version to today's.

    Args:
        connection: inside a transaction, which on SQLite holds the write lock: a step is done as a whole or not at all.

    Raises:
        StoreError: the tables are of a version that this gouache doesn't know, most likely a newer one.
    """
    if connection.dialect.name == "postgresql":
        # Servers and workers of one store start together: the first migrates, the others wait for it here.
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    found = _version(connection)
    if found is None:
        tables.metadata.create_all(connection)
        connection.execute(insert(tables.meta).values(key="schema", value=tables.SCHEMA))
    elif found != tables.SCHEMA:
        _upgrade(connection, found)


def is_current(connection: Connection) -> bool:
    """Whether the tables are there and of today's version."""
    return _version(connection) == tables.SCHEMA


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.meta.name):
        return None
    stored = select(tables.meta.c.value).where(tables.meta.c.key == "schema")
    return str(connection.execute(stored).scalar_one_or_none())


def _upgrade(connection: Connection, found: str) -> None:
    # Imported here: most stores that are opened need no step, and workers should start quickly.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent))
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise StoreError(
            "store",
            given=f"tables of version {found}",
            expected=f"version {tables.SCHEMA} or older",
            cure="Use the version of gouache that made it, or another store.",
        )
    with Operations.context(MigrationContext.configure(connection)):
        for script in reversed(list(scripts.iterate_revisions("head", found))):
            script.module.upgrade()
            stored = update(tables.meta).where(tables.meta.c.key == "schema")
            connection.execute(stored.values(value=script.revision))
    log.info("store upgraded", extra={"from": found, "to": tables.SCHEMA})
