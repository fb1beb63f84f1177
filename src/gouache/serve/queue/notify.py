"""Wakes coroutines when something changed."""

from __future__ import annotations

import asyncio
import contextlib
from weakref import WeakValueDictionary


class Bell:
    """Wakes coroutines that wait for a job, from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # An event lives as long as somebody waits for it.
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    def hang(self) -> None:
        """Use the running loop."""
        self._loop = asyncio.get_running_loop()

    def ring(self, job_id: str = "") -> None:
        """Wake those who wait for this job; without one, everybody."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ring, job_id)

    def _ring(self, job_id: str) -> None:
        for name in [job_id] if job_id else list(self._events):
            event = self._events.pop(name, None)
            if event is not None:
                event.set()

    def ticket(self, job_id: str) -> asyncio.Event:
        """Set at the next ring. Take it before looking at the job, so that no ring falls in between."""
        return self._events.setdefault(job_id, asyncio.Event())


async def within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
