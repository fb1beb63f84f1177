"""Run a convolutional network tile by tile and blend the seams, so that memory does not grow with the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from gouache.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a picture is cut.

    Attributes:
        size: edge of a tile, in pixels of the network's input.
        overlap: how many of them two neighbours share, at most half the tile. Its outer quarters are thrown away (there
            a tile misses its surroundings), its middle half is blended.
        unit: edges of tiles lie on multiples of this (the downscale of an encoder).
    """

    size: int
    overlap: int
    unit: int = 1

    def __post_init__(self) -> None:
        if not (0 <= 2 * self.overlap <= self.size and self.size > 0):
            raise InvalidInput(
                "tiles", given=f"size {self.size}, overlap {self.overlap}", expected="an overlap up to half the size"
            )
        if self.size % self.unit or self.overlap % self.unit:
            raise InvalidInput(
                "tiles",
                given=f"size {self.size}, overlap {self.overlap}",
                expected=f"multiples of the downscale {self.unit}",
            )

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along an edge of `length` pixels: evenly spread, the last one ends with the edge."""
        if length <= self.size:
            return [0]
        gaps = math.ceil((length - self.size) / (self.size - self.overlap))
        spread = [i * (length - self.size) // gaps for i in range(gaps + 1)]
        return [start // self.unit * self.unit for start in spread]


def in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles, scale: Fraction) -> Tensor:
    """Apply `network` to overlapping tiles of `x`.

    Args:
        network: [B, C, h, w] -> [B, C', h * scale, w * scale] for any size that `tiles` gives.
        x: [B, C, h, w].
        tiles: how to cut.
        scale: the network's change of resolution: 8 for a decoder, 1/8 for an encoder.

    Returns:
        [B, C', h * scale, w * scale]. Where a quarter of the overlap covers the network's receptive field, and the
        network has no norm over the whole picture, this equals `network(x)` up to rounding.
    """
    rows, columns = (_Axis.of(length, tiles, scale) for length in x.shape[-2:])
    out: Tensor | None = None
    for row in rows:
        for column in columns:
            part = network(x[..., row.start : row.end, column.start : column.end])
            if out is None:
                height, width = (int(length * scale) for length in x.shape[-2:])
                out = part.new_zeros(*part.shape[:2], height, width)
            weight = (row.weight[:, None] * column.weight).to(part)  # [tile, tile]
            out[..., row.out_start : row.out_end, column.out_start : column.out_end] += part * weight
    if out is None:
        raise InvalidInput("x", given=f"shape {tuple(x.shape)}", expected="at least one pixel")
    return out


@dataclass(frozen=True, slots=True)
class _Axis:
    """One tile along one edge: its place in the input and in the output, and its weight there. [tile * scale]"""

    start: int
    end: int
    out_start: int
    out_end: int
    weight: Tensor

    @staticmethod
    def of(length: int, tiles: Tiles, scale: Fraction) -> list[_Axis]:
        starts = tiles.starts(length)
        ends = [min(start + tiles.size, length) for start in starts]
        weights = torch.zeros(len(starts), int(length * scale), dtype=torch.float64)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            weights[i, int(start * scale) : int(end * scale)] = 1
            if i > 0:
                _multiply(weights[i], int(start * scale), _ramp(int((ends[i - 1] - start) * scale)))
            if i < len(starts) - 1:
                _multiply(weights[i], int(starts[i + 1] * scale), 1 - _ramp(int((end - starts[i + 1]) * scale)))
        # Where three tiles meet their ramps do not add up to 1 by themselves.
        weights /= weights.sum(dim=0)
        return [
            _Axis(start, end, int(start * scale), int(end * scale), row[int(start * scale) : int(end * scale)])
            for start, end, row in zip(starts, ends, weights, strict=True)
        ]


def _multiply(weights: Tensor, start: int, ramp: Tensor) -> None:
    weights[start : start + len(ramp)] *= ramp


def _ramp(length: int) -> Tensor:
    """0 over the first quarter, rising over the middle half, 1 over the last quarter. [length]"""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1)
    return ((places - 0.25) * 2).clamp(0, 1)
