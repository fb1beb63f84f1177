"""Whose row a row of a call is, so that what is kept of it comes back to it, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from gouache.models.caching.block_cache import BlockCache
    from gouache.models.caching.deep_cache import DeepCache

Slot = tuple[str | int, ...]
"""Which of a step's predictions: under the prompt, the negative one, a weakened pass; in tiles, also of which."""


@dataclass(frozen=True, slots=True)
class CachedRow:
    """Of one row of a condition: where what is kept of it lies.

    Attributes:
        cache: of its walk.
        slot: its own.
        step: the walk's, from 1.
        full: evaluate in full, and keep.
    """

    cache: DeepCache | BlockCache
    slot: Slot
    step: int
    full: bool = False

    def within(self, *place: str | int) -> CachedRow:
        """The same for a part of a prediction, such as a tile."""
        return replace(self, slot=(*self.slot, *place))


@dataclass(frozen=True, slots=True)
class KeptMap:
    """What a step made and later ones may take instead of making it again.

    Attributes:
        map: one row for each picture. [B, C, h, w]
        step: at which it was made, from 1.
        level: noise level at which it was made.
    """

    map: Tensor
    step: int
    level: float

    def holds(self, step: int, level: float, rows: int, interval: int) -> bool:
        """Whether it may stand in at a step.

        Every call of the step that made it is evaluated in full; levels that rise again, as those of `restart`, make
        worthless what was kept below them.

        Args:
            step: from 1.
            level: its noise level.
            rows: pictures.
            interval: steps for which it holds, its own included.
        """
        return len(self.map) == rows and 0 < step - self.step < interval and level <= self.level


def slots_of(rows: Sequence[CachedRow]) -> tuple[tuple[Slot, int], ...]:
    """The slots of a call's rows, and how many rows each has, one after the other."""
    return tuple((slot, len(list(same))) for slot, same in groupby(one.slot for one in rows))
