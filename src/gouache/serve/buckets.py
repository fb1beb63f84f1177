"""Rate limits in memory."""

from __future__ import annotations

import time
from collections import OrderedDict


class Buckets:
    """So many events a minute for each name, refilled evenly.

    Args:
        per_minute: events that a name may make in a minute.
    """

    _MOST = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, name: str) -> float:
        """How many it may make now."""
        left, then = self._left.get(name, (float(self.per_minute), 0.0))
        return min(float(self.per_minute), left + (time.monotonic() - then) * self.per_minute / 60)

    def take(self, name: str) -> float:
        """Take one; gives 0, or the seconds until the next may be taken."""
        left = self.left(name)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute
        self._left[name] = (left if wait else left - 1, time.monotonic())
        self._left.move_to_end(name)
        if len(self._left) > self._MOST:
            self._left.popitem(last=False)
        return wait
