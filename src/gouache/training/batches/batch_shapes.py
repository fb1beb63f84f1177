"""Pictures of several shapes: every batch holds one, and which is a pure function of (seed, number of the batch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from gouache.errors import DataError
from gouache.training.batches.encoded import Shuffled
from gouache.training.stage import batched

Shape = tuple[int, int]
BLOCK = 1024
"""Batches whose shapes are drawn at once."""


@runtime_checkable
class Shaped(Protocol):
    """A finite set that knows the height and width of every item."""

    @property
    def shapes(self) -> Sequence[Shape]:
        """(height, width) by number."""
        ...


@runtime_checkable
class Batched(Protocol):
    """An endless stream whose places k * batch to (k + 1) * batch - 1 share a shape."""

    batch: int


class BatchOrder(Protocol):
    """Which item stands where in an endless stream."""

    def numbers(self, indices: Sequence[int]) -> list[int]:
        """The items at these places."""
        ...


class Bucketed:
    """The endless stream over items of several shapes, in batches of one shape each.

    A batch's shape is drawn in proportion to the items that have it; the items of a shape come in an endless row of
    permutations. So all items come equally often, also where their number is no multiple of the batch.

    Args:
        shapes: of every item.
        batch: places that share a shape: the places from k * batch on, for any k.
        seed: of the order.
    """

    def __init__(self, shapes: Sequence[Shape], batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        rows: dict[Shape, list[int]] = {}
        for row, shape in enumerate(shapes):
            rows.setdefault(shape, []).append(row)
        self._rows = [rows[shape] for shape in sorted(rows)]
        self._orders = [Shuffled(len(own), seed + 1 + i) for i, own in enumerate(self._rows)]
        self._drawn: list[tuple[int, int]] = []  # of each batch: number of its shape, earlier batches of that shape
        self._counts = [0] * len(self._rows)

    def numbers(self, indices: Sequence[int]) -> list[int]:
        """Which items stand at these places of the stream."""
        found = []
        for index in indices:
            number, place = divmod(index, self.batch)
            kind, earlier = self._draw(number)
            [at] = self._orders[kind].numbers([earlier * self.batch + place])
            found.append(self._rows[kind][at])
        return found

    def _draw(self, number: int) -> tuple[int, int]:
        shares = np.array([len(rows) for rows in self._rows], np.float64)
        while len(self._drawn) <= number:
            generator = np.random.Generator(
                np.random.Philox(key=[self.seed & (2**63 - 1), len(self._drawn) // BLOCK], counter=[0, 0, 0, 7])
            )
            for kind in generator.choice(len(shares), BLOCK, p=shares / shares.sum()).tolist():
                self._drawn.append((kind, self._counts[kind]))
                self._counts[kind] += 1
        return self._drawn[number]


def shapes_of(data: object) -> Sequence[Shape]:
    """The items' shapes; empty where all have the same and the data do not state it."""
    return data.shapes if isinstance(data, Shaped) else ()


def order_of(data: object, length: int, batch: int, seed: int) -> BatchOrder:
    """The order in which a stage sees its `length` items, `batch` to a step."""
    shapes = shapes_of(data)
    return Bucketed(shapes, batch, seed) if len(set(shapes)) > 1 else Shuffled(length, seed)


def batches_of_one_shape(data: object, length: int, size: int = 64) -> Iterator[list[int]]:
    """The numbers 0..length-1 in batches of at most `size`, each of one shape."""
    shapes = shapes_of(data)
    if len(set(shapes)) <= 1:
        yield from batched(length, size)
        return
    for shape in sorted(set(shapes)):
        own = [number for number in range(length) if shapes[number] == shape]
        for part in batched(len(own), size):
            yield [own[i] for i in part]


def shown(data: object, length: int, count: int) -> list[int]:
    """The first `count` items, all of the commonest shape, for a sheet of samples."""
    shapes = shapes_of(data)
    if not shapes:
        return list(range(min(length, count)))
    commonest = max(sorted(set(shapes)), key=list(shapes).count)
    return [number for number in range(length) if shapes[number] == commonest][:count]


def check_square(data: object, stage: str) -> None:
    """Refuse pictures of several shapes, or of one that isn't square.

    Raises:
        DataError: they are. Tokens stand on one square grid.
    """
    shapes = set(shapes_of(data))
    if len(shapes) > 1 or any(height != width for height, width in shapes):
        given = ", ".join(f"{width}x{height}" for height, width in sorted(shapes))
        raise DataError(
            f"stage {stage}",
            given=f"pictures or latents of {given}",
            expected="one square size",
            cure="Build the data without --buckets, or train a denoiser without a draft (draft_channels = 0).",
        )
