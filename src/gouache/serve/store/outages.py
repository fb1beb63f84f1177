"""A store that is away for a while: which errors mean that, and how those wait who must outlive it.

A database that was stopped, a lock that somebody holds, a full disk: none of them is the fault of the job at hand, and
all of them end. A user is told at once (503), a worker keeps what it has painted and tries again.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from gouache.errors import StoreAway

_Made = TypeVar("_Made")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
_OF_SQLITE = {
    sqlite3.SQLITE_BUSY: "a lock that somebody else holds",
    sqlite3.SQLITE_LOCKED: "a lock that somebody else holds",
    sqlite3.SQLITE_PROTOCOL: "a lock that somebody else holds",
    sqlite3.SQLITE_FULL: "a full disk",
    sqlite3.SQLITE_IOERR: "a disk that can't be read or written",
    sqlite3.SQLITE_READONLY: "a file that can't be written",
    sqlite3.SQLITE_CANTOPEN: "a file that can't be opened",
    sqlite3.SQLITE_CORRUPT: "a damaged file",
    sqlite3.SQLITE_NOTADB: "a damaged file",
}
_OF_POSTGRESQL = {
    "08": "no connection",
    "25006": "a database that can only be read",
    "40": "a conflict with somebody else's work",
    "53": "a database that is short of memory or connections",
    "53100": "a full disk",
    "55P03": "a lock that somebody else holds",
    "57": "a database that stops or starts",
    "58": "a disk that can't be read or written",
    "XX001": "a damaged file",
}
"""By SQLSTATE, or by its first two characters, its class (PostgreSQL's manual, appendix A)."""
log = logging.getLogger("gouache.store")


def away(given: str) -> StoreAway:
    """The error for a store that can't be used now."""
    return StoreAway("store", given=given, expected="a store that answers", cure="Try again in a few seconds.")


def watch_for_outages(engine: Engine, seen: Callable[[], None]) -> None:
    """From now on this engine raises `StoreAway` where its database can't be used; any other error stays.

    Args:
        engine: of the store.
        seen: called each time.
    """

    def translate(context: ExceptionContext) -> StoreAway | None:
        # Who asks whether a pooled connection still lives is answered with a new one.
        given = None if context.is_pre_ping else _reason(context)
        if given is None:
            return None
        seen()
        return away(given)

    event.listen(engine, "handle_error", translate)


def _reason(context: ExceptionContext) -> str | None:
    """Why the database can't be used; None if it is something else."""
    error = context.original_exception
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return None if code is None else _OF_SQLITE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None) or ""
    if context.is_disconnect or (not state and type(error).__name__ in ("OperationalError", "ConnectionTimeout")):
        return "no connection"
    return _OF_POSTGRESQL.get(state, _OF_POSTGRESQL.get(state[:2]))


class Patience:
    """One loop's patience with a store that is away: waits longer each time, and logs beginning and end, not each try.

    Args:
        who: is waiting, for the log.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self._pause = FIRST_PAUSE
        self._since: float | None = None

    def pause(self, error: StoreAway) -> float:
        """Seconds to wait after this error."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("store away", extra={"who": self.who, "error": str(error), "cause": str(error.__cause__ or "")})
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        return pause

    def over(self) -> None:
        """It worked."""
        if self._since is not None:
            seconds = round(time.monotonic() - self._since, 3)
            log.info("store back", extra={"who": self.who, "seconds": seconds})
        self._pause, self._since = FIRST_PAUSE, None


def outlast(
    work: Callable[[], _Made], *, who: str, check: Callable[[], object] = lambda: None, seconds: float = float("inf")
) -> _Made:
    """Do something as often as it takes until the store lets it be done.

    Args:
        work: what to do; does no harm if it is done twice, for the store may go away just after it was done.
        who: is waiting, for the log.
        check: called after each failure; raises if there is no point in trying on.
        seconds: to try on for.

    Raises:
        StoreAway: the time is over.
    """
    patience, until = Patience(who), time.monotonic() + seconds
    while True:
        try:
            made = work()
        except StoreAway as error:
            if time.monotonic() > until:
                raise
            check()
            time.sleep(patience.pause(error))
        else:
            patience.over()
            return made
