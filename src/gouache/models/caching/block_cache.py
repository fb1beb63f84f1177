"""The rest of a network, kept over steps for as long as its first block answers nearly the same (First Block Cache,
Cheng 2024, github.com/chengzeyi/ParaAttention; the idea of TeaCache, Liu et al. 2024, arXiv:2411.19108, section 3.3):
how much a step's first block changes says how much the whole would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gouache.models.caching.rows import CachedRow, Slot, slots_of


@dataclass(frozen=True, slots=True)
class KeptBlocks:
    """What the last full evaluation of each picture made; the pictures' may be of different steps.

    Attributes:
        first: what the first block added to its input. [n, ...]
        rest: what all blocks behind it added. [n, ...]
        levels: noise levels of those evaluations. [n] fp64
    """

    first: Tensor
    rest: Tensor
    levels: Tensor

    def similar(self, first: Tensor, threshold: float, level: float) -> Tensor:
        """Which pictures' first block answers as it did then: mean |now - then| <= threshold * mean |then|, at a level
        that didn't rise. A block that adds nothing says nothing, and is never similar.

        Args:
            first: what the first block adds now. [n, ...]
            threshold: the relative change that passes.
            level: noise level.

        Returns:
            [n] boolean.
        """
        then = self.first.float().flatten(1)
        change, size = (first.float().flatten(1) - then).abs().mean(1), then.abs().mean(1)
        return (change <= threshold * size) & (size > 0) & (level <= self.levels).to(change.device)


@dataclass(slots=True)
class BlockCache:
    """What one walk of one or more pictures keeps; a fresh one for each walk, so that nothing passes to the next.

    Attributes:
        threshold: relative change (mean absolute) of the first block's residual up to which the rest's is reused.
        kept: what is kept, by slot.
    """

    threshold: float
    kept: dict[Slot, KeptBlocks] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of the network.

    Attributes:
        rows: slot and number of pictures, one slot after the other; row k of each is of picture k.
        cache: where results are kept.
        level: noise level.
        full: evaluate in full, and keep.
    """

    rows: tuple[tuple[Slot, int], ...]
    cache: BlockCache
    level: float
    full: bool

    def through(self, before: Tensor, after: Tensor, rest: Callable[[], Tensor]) -> Tensor:
        """The result of all blocks.

        A picture's rows of one call are decided together, for guidance takes the difference of its predictions: one
        that is reused beside one that isn't would be guided by. Where some pictures need the rest and others don't, it
        is evaluated for all, and those others still take what was kept: each is what it would be alone.

        Args:
            before: what enters the first block. [B, ...]
            after: what leaves it; like `before`. [B, ...]
            rest: evaluates all blocks behind it. -> [B, ...]

        Returns:
            [B, ...], of the shape that `rest` gives, which is that of `before`.
        """
        first = (after - before).detach()
        reused = torch.zeros(len(first), dtype=torch.bool, device=first.device) if self.full else self._similar(first)
        if bool(reused.all()):
            return after + self._kept_rest()
        found = rest()
        added = (found - after).detach()
        if bool(reused.any()):
            marks = reused.reshape(-1, *(1,) * (found.ndim - 1))
            found = torch.where(marks, after + self._kept_rest(), found)
        self._keep(first, added, reused)
        return found

    def _similar(self, first: Tensor) -> Tensor:
        """Which rows take what was kept, decided picture by picture. [B] boolean"""
        parts = []
        for (slot, many), part in zip(self.rows, self._split(first), strict=True):
            kept = self.cache.kept.get(slot)
            if kept is None or len(kept.first) != many:
                return torch.zeros(len(first), dtype=torch.bool, device=first.device)
            parts.append(kept.similar(part, self.cache.threshold, self.level))
        return torch.stack(parts).all(0).repeat(len(parts))

    def _kept_rest(self) -> Tensor:
        return torch.cat([self.cache.kept[slot].rest for slot, _ in self.rows])

    def _keep(self, first: Tensor, rest: Tensor, reused: Tensor) -> None:
        """Keep what was evaluated, of the pictures that don't reuse."""
        for (slot, many), *parts in zip(self.rows, *map(self._split, (first, rest, reused)), strict=True):
            levels = torch.full((many,), self.level, dtype=torch.float64)
            new, marks = KeptBlocks(parts[0], parts[1], levels), parts[2]
            if bool(marks.any()):
                old = self.cache.kept[slot]
                across = marks.reshape(-1, *(1,) * (parts[0].ndim - 1))
                new = KeptBlocks(
                    torch.where(across, old.first, new.first),
                    torch.where(across, old.rest, new.rest),
                    torch.where(marks.cpu(), old.levels, levels),
                )
            self.cache.kept[slot] = new

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, [many for _, many in self.rows])


def block_call(rows: Sequence[CachedRow], sigma: Tensor) -> BlockCall | None:
    """What a call of the network with these rows takes and keeps; None = no row has anything to do with it.

    Args:
        rows: one for each row of the call, or none.
        sigma: noise level, [] or [B].
    """
    if not rows or not isinstance(rows[0].cache, BlockCache):
        return None
    full = any(one.full for one in rows)
    return BlockCall(slots_of(rows), rows[0].cache, float(sigma.max()), full)
