"""One connection pool: SQLite with a write-ahead log, or PostgreSQL."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, CursorResult, Engine, Executable, Row, Table, create_engine, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from gouache.errors import StoreAway, StoreError
from gouache.serve.store import tables
from gouache.serve.store.migrations import is_current, migrate
from gouache.serve.store.outages import away, watch_for_outages
from gouache.serve.store.pulse import Pulse

PATIENCE = 1.5
"""Seconds that one transaction waits for a lock or a connection: a user is answered within two."""
IMPATIENCE = 0.1
"""The same while the store is away, so that those who wait don't pile up."""


class Database:
    """Short transactions on one store.

    Args:
        url: SQLAlchemy URL. A SQLite file is made if there is none; PostgreSQL needs an existing database.
            Tables of an older version are brought to today's.

    Every use of it raises `StoreAway` while the store can't be used.

    Attributes:
        away: whether it could not be used when it was last tried, and nothing was written since.
        fault_at: when that last happened, in seconds of `time.monotonic`.

    Raises:
        StoreError: the URL can't be used, or a newer gouache made the store.
        StoreAway: it can't be reached now.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.away, self.fault_at = False, float("-inf")
        self.pulse: Pulse | None = None
        self._turn = threading.Lock()
        try:
            self.engine = _engine(url)
            self.sqlite = self.engine.dialect.name == "sqlite"
            watch_for_outages(self.engine, self._fault)
            self.pulse = _pulse(self.engine)
            self._prepare()
        except (StoreAway, ArgumentError, OperationalError, IntegrityError, ImportError, OSError) as error:
            cause = error.__cause__ if isinstance(error, StoreAway) and error.__cause__ is not None else error
            kind = StoreAway if isinstance(error, StoreAway) else StoreError
            raise kind(
                "store",
                given=type(cause).__name__ + f": {str(cause).partition(chr(10))[0]}",
                expected="a SQLite file that can be written or a reachable PostgreSQL database",
                cure="Check the URL, the folder's permissions, and that the server runs.",
            ) from error

    def _prepare(self) -> None:
        try:
            # Looked at first: a worker that starts while the store is locked needs no lock.
            with self.read() as connection:
                if is_current(connection):
                    return
            with self.write() as connection:
                migrate(connection)
        except BaseException:
            self.close()
            raise

    def _fault(self) -> None:
        self.away, self.fault_at = True, time.monotonic()

    @contextmanager
    def _connection(self, seconds: float) -> Iterator[Connection]:
        """A connection, which waits at most so long for a lock of SQLite."""
        if self.pulse is not None:
            self.pulse.check()
        try:
            connection = self.engine.connect()
        except PoolTimeout as error:
            self._fault()
            raise away("more requests than connections") from error
        with connection:
            if self.sqlite:
                _tell_once(connection, "busy_timeout", str(round(1000 * seconds)))
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction that may write; rolled back on any exception.

        Args:
            durable: on disk when it ends. Without it a power cut (not a killed process) may lose the newest ones.
        """
        seconds = IMPATIENCE if self.away else PATIENCE
        if not self.sqlite:
            with self._connection(seconds) as connection, connection.begin():
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                yield connection
            self.away = False
            return
        # SQLite lets whoever happens to ask at the right moment go first; within this process all have their turn.
        if not self._turn.acquire(timeout=seconds):
            raise away("a lock that somebody else holds")
        try:
            with self._connection(IMPATIENCE if self.away else seconds) as connection:
                _tell_once(connection, "synchronous", "FULL" if durable else "NORMAL")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    # After some faults, such as a full disk, SQLite has done so by itself, and says there is nothing.
                    with contextlib.suppress(DBAPIError, StoreAway):
                        connection.exec_driver_sql("ROLLBACK")
                    raise
            self.away = False
        finally:
            self._turn.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single statements; nothing is locked."""
        with self._connection(IMPATIENCE if self.away else PATIENCE) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that sees the store as it stands at one moment; others may write meanwhile."""
        with self.read() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
                try:
                    yield connection
                finally:
                    connection.exec_driver_sql("ROLLBACK")
                return
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection

    def check(self) -> None:
        """Whether it can be used; after a fault also whether it can be written.

        Raises:
            StoreAway: it can't.
        """
        if self.away:
            with self.write(durable=False) as connection:
                upsert(connection, tables.meta, {"key": "checked"}, {"value": f"{time.time():.0f}"})
        else:
            self.row(select(tables.meta.c.key).limit(1))

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
        if self.pulse is not None:
            self.pulse.stop()
        self.engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        most: dict[str, Any] = {"pool_size": 5, "max_overflow": 40, "pool_timeout": PATIENCE}
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=_connecting(parsed), **most)
        event.listen(engine, "connect", _bound_locks)
        return engine
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Transactions are opened by hand (BEGIN IMMEDIATE): a read that turns into a write can't be refused half-way.
    pool: dict[str, Any] = {"pool_size": 8, "max_overflow": 40, "pool_timeout": PATIENCE}
    pool = pool if parsed.database else {"poolclass": NullPool}
    engine = create_engine(parsed, isolation_level="AUTOCOMMIT", connect_args={"check_same_thread": False}, **pool)

    def prepare(connection: Any, _record: Any) -> None:
        for pragma in (f"busy_timeout={round(1000 * PATIENCE)}", "journal_mode=WAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    event.listen(engine, "connect", prepare)
    return engine


_BY_LIBPQ = ("psycopg", "psycopg2")
_LIBPQ = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}


def _connecting(url: URL) -> dict[str, int]:
    """What the URL says about these goes first; without them a server that was cut off is waited for by the minute."""
    own = _LIBPQ if url.get_driver_name() in _BY_LIBPQ else {}
    return {name: value for name, value in own.items() if name not in url.query}


def _pulse(engine: Engine) -> Pulse | None:
    if engine.dialect.driver not in _BY_LIBPQ:
        return None
    return Pulse(engine, create_engine(engine.url, poolclass=NullPool, connect_args=_connecting(engine.url)))


def _bound_locks(connection: Any, _record: Any) -> None:
    """PostgreSQL waits for ever for a lock unless it is told not to."""
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {round(1000 * PATIENCE)}")
    cursor.close()
    connection.commit()


def _tell_once(connection: Connection, pragma: str, value: str) -> None:
    """Set a pragma of one connection; it is remembered with it, so that it is told once."""
    if connection.info.get(pragma) != value:
        connection.exec_driver_sql(f"PRAGMA {pragma}={value}")
        connection.info[pragma] = value


def ask(connection: Connection, statement: str, *values: object) -> CursorResult[Any]:
    """Run one of our own statements as it stands, with question marks for its values, whatever the driver writes.

    It spares the building of the statement: for what is asked hundreds of times a second, or between two steps.
    """
    plain = statement if connection.dialect.name == "sqlite" else statement.replace("?", "%s")
    return connection.exec_driver_sql(plain, values)


def insert_missing(connection: Connection, table: Table, values: Mapping[str, object]) -> bool:
    """Insert a row unless one with its key is there.

    Returns:
        Whether the row is new.
    """
    return connection.execute(_inserting(connection.dialect.name, table), dict(values)).first() is not None


@cache
def _inserting(dialect: str, table: Table) -> Executable:
    # Built once: building a statement takes longer than SQLite takes to run it.
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)


def upsert(connection: Connection, table: Table, keys: Mapping[str, object], values: Mapping[str, object]) -> None:
    """Insert a row, or set the values of the one that has these keys."""
    statement = _upserting(connection.dialect.name, table, tuple(keys), tuple(values))
    connection.execute(statement, {**keys, **values})


@cache
def _upserting(dialect: str, table: Table, keys: tuple[str, ...], names: tuple[str, ...]) -> Executable:
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
    changed = {name: statement.excluded[name] for name in names}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
