"""One connection pool: SQLite with a write-ahead log, or PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, Executable, Row, create_engine, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError
from sqlalchemy.pool import NullPool

from gouache.errors import StoreError
from gouache.serve.store import tables
from gouache.serve.store.migrations import migrate

BUSY_MILLISECONDS = 30_000


class Database:
    """Short transactions on one store.

    Args:
        url: SQLAlchemy URL. A SQLite file is made if there is none; PostgreSQL needs an existing database.
            Tables of an older version are brought to today's.

    Raises:
        StoreError: the URL can't be used, or a newer gouache made the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.engine = _engine(url)
            self.sqlite = self.engine.dialect.name == "sqlite"
            self._prepare()
        except (ArgumentError, OperationalError, IntegrityError, ImportError) as error:
            raise StoreError(
                "store",
                given=type(error).__name__ + f": {str(error).splitlines()[0]}",
                expected="a SQLite file that can be written or a reachable PostgreSQL database",
                cure="Check the URL, the folder's permissions, and that the server runs.",
            ) from error

    def _prepare(self) -> None:
        try:
            with self.write() as connection:
                migrate(connection)
        except BaseException:
            self.engine.dispose()
            raise

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction that may write; rolled back on any exception.

        Args:
            durable: on disk when it ends. Without it a power cut (not a killed process) may lose the newest ones.
        """
        if not self.sqlite:
            with self.engine.begin() as connection:
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                yield connection
            return
        with self.engine.connect() as connection:
            _synchronize(connection, "FULL" if durable else "NORMAL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single statements; nothing is locked."""
        with self.engine.connect() as connection:
            yield connection

    def rows(self, statement: Executable) -> list[Row[Any]]:
        """All rows of one query."""
        with self.read() as connection:
            return list(connection.execute(statement).all())

    def row(self, statement: Executable) -> Row[Any] | None:
        """The first row of one query."""
        with self.read() as connection:
            return connection.execute(statement).first()

    def secret(self) -> bytes:
        """The store's own key for signed links; made once."""
        found = self.row(select(tables.meta.c.value).where(tables.meta.c.key == "secret"))
        if found is None:
            with self.write() as connection:
                insert_missing(connection, tables.meta, {"key": "secret", "value": secrets.token_hex(32)})
            return self.secret()
        return bytes.fromhex(found.value)

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, pool_size=5, max_overflow=40)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Transactions are opened by hand (BEGIN IMMEDIATE): a read that turns into a write can't be refused half-way.
    pool: dict[str, Any] = {"poolclass": NullPool} if not parsed.database else {"pool_size": 8, "max_overflow": 40}
    engine = create_engine(parsed, isolation_level="AUTOCOMMIT", connect_args={"check_same_thread": False}, **pool)

    def prepare(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_MILLISECONDS}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    event.listen(engine, "connect", prepare)
    return engine


def _synchronize(connection: Connection, mode: str) -> None:
    """What a connection does at its commits; remembered with it, so that it is told once."""
    if connection.info.get("synchronous") != mode:
        connection.exec_driver_sql(f"PRAGMA synchronous={mode}")
        connection.info["synchronous"] = mode


def ask(connection: Connection, statement: str, *values: object) -> CursorResult[Any]:
    """Run one of our own statements as it stands, with question marks for its values, whatever the driver writes.

    It spares the building of the statement: for what is asked hundreds of times a second, or between two steps.
    """
    plain = statement if connection.dialect.name == "sqlite" else statement.replace("?", "%s")
    return connection.exec_driver_sql(plain, values)


def insert_missing(connection: Connection, table: Any, values: Mapping[str, object]) -> bool:
    """Insert a row unless one with its key is there.

    Returns:
        Whether the row is new.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key.columns)).first() is not None


def upsert(connection: Connection, table: Any, keys: Mapping[str, object], values: Mapping[str, object]) -> None:
    """Insert a row, or set the values of the one that has these keys."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values({**keys, **values})
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=dict(values)))
