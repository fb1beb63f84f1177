"""Notices a PostgreSQL that hangs, and lets nobody wait for it.

One that was stopped refuses connections, and its clients know at once. One that hangs (its machine is frozen, its disk
doesn't answer, the network swallows packets) says nothing at all, and no time limit of its own can help: it would have
to be kept by the one that hangs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import Any

from sqlalchemy import Engine, event

from gouache.serve.store.outages import away

PAUSE_SECONDS = 0.5
"""Between two questions."""
TICK_SECONDS, MOST_TICKS = 0.1, 10
"""After so many ticks without an answer it hangs. Ticks, and not time: none pass while this process itself is held."""


class Pulse:
    """Asks twice a second; cuts every connection of an engine whose database does not answer.

    Args:
        engine: of PostgreSQL, by libpq.
        asker: another of the same database, with no pool, to ask by: all of the first one's connections may be taken.
    """

    def __init__(self, engine: Engine, asker: Engine) -> None:
        self.asker = asker
        self.hangs = False
        self._asking = False
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        event.listen(engine, "do_connect", self._check)
        for each in (engine, asker):
            event.listen(each, "connect", self._opened)
        for work in (self._ask, self._judge):
            threading.Thread(target=work, daemon=True, name="pulse of the store").start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def check(self) -> None:
        """Refuse to wait for it.

        Raises:
            StoreAway: it hangs.
        """
        if self.hangs:
            raise away("no answer")

    def _check(self, *_: object) -> None:
        self.check()

    def _opened(self, connection: Any, _record: object) -> None:
        with self._lock:
            self._open.add(connection)

    def _ask(self) -> None:
        connection: Any = None
        while not self._stopping.wait(PAUSE_SECONDS):
            self._asking = True
            try:
                connection = connection or self.asker.raw_connection()
                connection.cursor().execute("SELECT 1")
                connection.rollback()
                self.hangs = False
            except Exception:  # It refuses, which those who use it are told as well.
                with contextlib.suppress(Exception):
                    connection.invalidate()
                connection = None
            self._asking = False
        if connection is not None:
            connection.close()

    def _judge(self) -> None:
        ticks = 0
        while not self._stopping.wait(TICK_SECONDS):
            ticks = ticks + 1 if self._asking else 0
            if ticks >= MOST_TICKS:
                self.hangs, ticks = True, 0
                self._cut()

    def _cut(self) -> None:
        """End the waiting of every thread: it reads the end of its connection."""
        with self._lock:
            opened = list(self._open)
        for connection in opened:
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
