"""Wakes coroutines when something changed, and the one way to wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from gouache.errors import StoreAway

_Found = TypeVar("_Found")


class Notifier:
    """Wakes coroutines that wait for a job or task, from any thread.

    It only spares waiting. The truth is in the store, and workers of other servers are never heard here: whoever waits
    also looks from time to time.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # An event lives as long as somebody waits for it, so that names nobody waits for take no room.
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._followers: list[Callable[[str], None]] = []

    def bind(self) -> None:
        """Use the running loop."""
        self._loop = asyncio.get_running_loop()

    def notify(self, name: str = "") -> None:
        """Wake those who wait for this job or task; without a name, everybody."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: the server stops, and nobody waits.
                self._loop.call_soon_threadsafe(self._notify, name)

    def follow(self, hear: Callable[[str], None]) -> None:
        """Have every name told, in the loop; `hear` returns at once."""
        self._followers.append(hear)

    def _notify(self, name: str) -> None:
        for hear in self._followers:
            hear(name)
        for one in [name] if name else list(self._events):
            event = self._events.pop(one, None)
            if event is not None:
                event.set()

    def ticket(self, name: str) -> asyncio.Event:
        """Set at the next notification. Take it before looking, so that no notification falls in between."""
        return self._events.setdefault(name, asyncio.Event())


async def changes(notifier: Notifier, name: str, look: Callable[[], _Found], *, every: float) -> AsyncIterator[_Found]:
    """What `look` finds: now, and again whenever `name` was notified or some time has passed; it never ends by itself.

    A store that is away later on is waited for: what is followed goes on behind it.

    Args:
        notifier: of this server.
        name: a job's id, or a task's name.
        look: asks the store; runs in a thread.
        every: longest time between two looks, in seconds.
    """
    ticket = notifier.ticket(name)
    found = await asyncio.to_thread(look)
    while True:
        yield found
        seen = False
        while not seen:
            await within(ticket, every)
            ticket = notifier.ticket(name)
            with contextlib.suppress(StoreAway):
                found, seen = await asyncio.to_thread(look), True


async def wait_until(
    notifier: Notifier, name: str, poll: Callable[[], _Found | None], *, seconds: float, every: float
) -> _Found | None:
    """Wait until `poll` finds something; gives it, or None when the time is over.

    Args:
        notifier, name, every: as in `changes`.
        poll: asks the store; runs in a thread. What it raises ends the wait, unless the store is only away.
        seconds: longest wait.
    """
    until = time.monotonic() + seconds
    while True:
        ticket, found = notifier.ticket(name), None
        with contextlib.suppress(StoreAway):
            found = await asyncio.to_thread(poll)
        left = until - time.monotonic()
        if found is not None or left <= 0:
            return found
        await within(ticket, min(left, every))


async def within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so many seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
