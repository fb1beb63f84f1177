"""A time limit on the headers of a request, by a part of uvicorn that is not public.

uvicorn itself only ends connections on which nothing comes at all after an answer, so that a client that sends a header
a minute keeps its connection for ever. The limit needs uvicorn's protocol class and a few of its attributes; where a
version of uvicorn lacks them, its public protocol serves without the limit, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
NEEDED = ("connection_made", "data_received", "connection_lost", "on_response_complete")
log = logging.getLogger("gouache.server")


def patient(seconds: float) -> Any:
    """What `uvicorn.Config(http=...)` takes: a protocol with the limit, or the name of uvicorn's own without it.

    Args:
        seconds: from one answer to the whole headers of the connection's next request.
    """
    protocol = _protocol()
    if protocol is None:
        log.warning("this uvicorn has no H11Protocol as expected: slow headers are not limited")
        return "h11"
    return _limited(protocol, seconds)


def _protocol() -> Any:
    """uvicorn's protocol on h11, if it has what is needed here."""
    try:
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError:
        return None
    return H11Protocol if all(hasattr(H11Protocol, name) for name in NEEDED) else None


def _limited(protocol: Any, seconds: float) -> Any:
    class Patient(protocol):  # type: ignore[misc]
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """The clock runs while no request is under way, and bytes of half a request don't stop it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()
            elif self._end is None:
                self._end = self.loop.call_later(seconds, self._give_up)

        def _disarm(self) -> None:
            if self._end is not None:
                self._end.cancel()
                self._end = None

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                if self.cycle is None and self.conn.trailing_data[0]:
                    self.transport.write(TOO_SLOW)
                self.transport.close()

    return Patient
