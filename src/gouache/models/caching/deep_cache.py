"""Deep feature maps of a U-Net, kept from one step of a walk to the next ones (DeepCache, Ma et al. 2023,
arXiv:2312.00858, section 3.3): neighbouring steps differ in the fine maps, hardly in the coarse ones, so that most
steps compute only the outermost blocks anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gouache.models.caching.rows import CachedRow, KeptMap, Slot, slots_of


@dataclass(slots=True)
class DeepCache:
    """What one walk of one or more pictures keeps; a fresh one for each walk, so that nothing passes to the next.

    Attributes:
        interval: steps for which a map holds, its own included; 1 = every step is evaluated in full.
        branch: how many of the U-Net's kept maps are computed anew behind its first convolution's; 0 = none.
        maps: the maps by their slots.
    """

    interval: int
    branch: int
    maps: dict[Slot, KeptMap] = field(default_factory=dict)

    def holds(self, slot: Slot, step: int, level: float, rows: int) -> bool:
        """Whether there is a map that may stand in at a step."""
        kept = self.maps.get(slot)
        return kept is not None and kept.holds(step, level, rows, self.interval)


@dataclass(frozen=True, slots=True)
class DeepCall:
    """One call of the network.

    Attributes:
        rows: slot and number of rows, one after the other.
        cache: where maps are kept.
        step: the walk's.
        level: noise level.
        features: the kept map that stands in for the deep part; None = evaluate in full. [B, C, h, w]
    """

    rows: tuple[tuple[Slot, int], ...]
    cache: DeepCache
    step: int
    level: float
    features: Tensor | None

    @property
    def count(self) -> int:
        """How many maps on the way down are computed anew, and how many stages on the way up."""
        return self.cache.branch + 1

    def keep(self, features: Tensor) -> None:
        """Keep what enters the first of those stages. [B, C, h, w]"""
        parts = torch.split(features.detach(), [rows for _, rows in self.rows])
        for (slot, _), part in zip(self.rows, parts, strict=True):
            self.cache.maps[slot] = KeptMap(part, self.step, self.level)


def deep_call(rows: Sequence[CachedRow], sigma: Tensor) -> DeepCall | None:
    """What a call of the network with these rows takes and keeps; None = no row has anything to do with it.

    Kept maps are taken if those of all rows hold: a row evaluated in full beside others costs the call in full.

    Args:
        rows: one for each row of the call, or none.
        sigma: noise level, [] or [B].
    """
    if not rows or not isinstance(rows[0].cache, DeepCache):
        return None
    cache, step, level = rows[0].cache, rows[0].step, float(sigma.max())
    slots = slots_of(rows)
    features = None
    if not any(one.full for one in rows) and all(cache.holds(slot, step, level, many) for slot, many in slots):
        features = torch.cat([cache.maps[slot].map for slot, _ in slots])
    return DeepCall(slots, cache, step, level, features)
