"""In which order the prior draws the tokens of a picture: scale after scale, and a scale in one turn or in several.

Tokens drawn in one turn don't know of each other. So a scale may be drawn in turns: turn j draws one token of every
cell, the farthest from those drawn before first (the order of Bayer 1973's dither matrix), and each of them is told
what the turn before drew in its own cell. One token a scale and turn would be the raster order's exactness, one turn a
scale is next-scale prediction (Tian et al. 2024); this lies between, and costs training nothing.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["DrawOrder", "draw_order"]


class DrawOrder:
    """Places are numbered as the tokens stand in the sequence: coarse scales first, each in raster order.

    Attributes:
        rounds: for every scale, the places that each of its turns draws.
        order: all places, in the order in which they are drawn. [S]
        place_in_order: where each place stands in `order`. [S]
        before: the place drawn by the turn before in the same cell; -1 in a first turn. [S]
    """

    def __init__(self, groups: tuple[int, ...], turns: tuple[int, ...]) -> None:
        self.before = torch.full((sum(groups),), -1)
        self.rounds: list[list[Tensor]] = []
        start = 0
        for count, number in zip(groups, turns or (1,) * len(groups), strict=True):
            self.rounds.append(
                [torch.arange(start, start + count)] if number == 1 else self._turns(count, number, start)
            )
            start += count
        self.order = torch.cat([places for turns_ in self.rounds for places in turns_])
        self.place_in_order = self.order.argsort()

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of every turn, in order."""
        return [len(places) for turns in self.rounds for places in turns]

    def _turns(self, count: int, number: int, start: int) -> list[Tensor]:
        side, cell = math.isqrt(count), math.isqrt(number)
        turn_of = _bayer(cell).repeat(side // cell, side // cell).flatten()  # [count]
        places = [start + (turn_of == turn).nonzero().squeeze(1) for turn in range(number)]
        # Sorted by cell, so that the k-th place of every turn lies in the k-th cell.
        cells = [self._cell(one - start, side, cell).argsort(stable=True) for one in places]
        places = [one[by_cell] for one, by_cell in zip(places, cells, strict=True)]
        for earlier, later in itertools.pairwise(places):
            self.before[later] = earlier
        return places

    @staticmethod
    def _cell(places: Tensor, side: int, cell: int) -> Tensor:
        return places // side // cell * (side // cell) + places % side // cell


@lru_cache
def draw_order(groups: tuple[int, ...], turns: tuple[int, ...]) -> DrawOrder:
    """The order for scales of `groups` tokens, each drawn in as many turns as `turns` says (none: one each)."""
    with torch.device("cpu"):  # a network may be built on the meta device; places are real all the same
        return DrawOrder(groups, turns)


def _bayer(side: int) -> Tensor:
    """The dither matrix of a power of two: 0 ... side^2 - 1, neighbours in number far apart in place. [side,side]"""
    matrix = torch.zeros(1, 1, dtype=torch.long)
    while len(matrix) < side:
        grown = 4 * matrix
        matrix = torch.cat([torch.cat([grown, grown + 2], dim=1), torch.cat([grown + 3, grown + 1], dim=1)])
    return matrix
