"""Keeps the lease of what a worker holds while it works on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

BEATS = 3
"""Renewals a lease. Two may fail, for a store that is busy or away for a moment, before the work is given to others."""


@contextlib.contextmanager
def heartbeat(renew: Callable[[], object], lease: float) -> Iterator[None]:
    """Call `renew` again and again, from a thread of its own, until the work in this context is done.

    A thread, because a step of a large picture may take longer than a lease lasts.

    Args:
        renew: renews the lease.
        lease: seconds it lasts.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease / BEATS):
            # Whether the lease still holds is asked where something is written; here a failure means nothing yet.
            with contextlib.suppress(Exception):
                renew()

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
