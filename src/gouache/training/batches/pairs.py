"""Pictures with captions for the contrastive stage: which pairs belong together, and what they are in Chinese."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gouache.data.captions import STYLE_WORDS, canonical_caption, caption
from gouache.data.stickers import Split, Sticker, Stickers
from gouache.training.batches.batch_shapes import Shape, shapes_of
from gouache.training.batches.encoded import Shuffled
from gouache.training.batches.store import CaptionedSource, FiniteSource
from gouache.training.batches.translations import known_translations, translation


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some captioned pictures.

    Attributes:
        pictures: uint8 [B,S,S,4], straight alpha.
        captions: a caption for each.
        concepts: what each picture shows.
        styles: in which style.
        styled: whether each caption says the style; one that doesn't fits the concept's pictures of every style.
        translations: for each an English and a Chinese text of one meaning; empty if there are none.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    concepts: list[str]
    styles: list[str]
    styled: list[bool]
    translations: list[tuple[str, str]]


class PairSource(Protocol):
    """Captioned pictures by number."""

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        ...

    @property
    def known_translations(self) -> list[tuple[str, str]]:
        """English and foreign phrases of one meaning: what the vocabulary should know, and a first hint of it."""
        ...


class FinitePairs(PairSource, Protocol):
    """Captioned pictures that end."""

    def __len__(self) -> int: ...


class StickerPairs:
    """An endless stream over stickers: every epoch all of them in another order, with another phrase for each.

    Args:
        stickers: the data set.
        rows: which of its pictures.
        seed: of order and phrases.
        endless: false gives the pictures in their own order, over and over, with their canonical captions.
    """

    def __init__(self, stickers: Stickers, rows: Sequence[int], seed: int, *, endless: bool = True) -> None:
        self.stickers, self.rows, self.seed, self.endless = stickers, [int(row) for row in rows], seed, endless
        self.records = [stickers.records[row] for row in self.rows]
        self.order = Shuffled(len(self.rows), seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def known_translations(self) -> list[tuple[str, str]]:
        """English and Chinese phrases of the whole set, so that all splits result in one vocabulary."""
        return known_translations(self.stickers.records)

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        places = self.order.numbers(numbers) if self.endless else [number % len(self.rows) for number in numbers]
        records = [self.records[place] for place in places]
        captions = [self._caption(record, number) for record, number in zip(records, numbers, strict=True)]
        draws = [_random(self.seed, number) for number in numbers]
        return Pairs(
            np.stack([self.stickers.pictures[self.rows[place]] for place in places]),
            captions,
            [record.code for record in records],
            [record.style for record in records],
            [STYLE_WORDS[record.style] in text for record, text in zip(records, captions, strict=True)],
            [translation(record, self.records, draw) for record, draw in zip(records, draws, strict=True)],
        )

    def _caption(self, record: Sticker, number: int) -> str:
        if not self.endless:
            return canonical_caption(record)
        return caption(record, np.random.Generator(np.random.Philox(key=[self.seed, number])))


class CaptionPairs:
    """Any captioned pictures; those with the same caption belong together. They have no translations."""

    def __init__(self, source: CaptionedSource) -> None:
        self.source = source

    @property
    def known_translations(self) -> list[tuple[str, str]]:
        """None."""
        return []

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        examples = self.source.examples(numbers)
        captions = examples.captions
        return Pairs(examples.pictures, captions, captions, [""] * len(captions), [False] * len(captions), [])


class FiniteCaptionPairs(CaptionPairs):
    """The same over a source that ends."""

    def __init__(self, source: FiniteSource) -> None:
        super().__init__(source)
        self._length = len(source)

    def __len__(self) -> int:
        return self._length

    @property
    def shapes(self) -> Sequence[Shape]:
        """(height, width) of every picture; empty where all have the same."""
        return shapes_of(self.source)


def open_pairs(
    folder: Path, train: CaptionedSource, held_out: FiniteSource, split: Split, seed: int
) -> tuple[PairSource, FinitePairs]:
    """Pairs to train on, and the held-out ones.

    Args:
        folder: of the data set.
        train, held_out: its captioned pictures, for a data set that is not a built sticker set.
        split: which stickers to train on.
        seed: of order and phrases.
    """
    if not (folder / "pictures.npy").is_file():
        return CaptionPairs(train), FiniteCaptionPairs(held_out)
    stickers = Stickers.open(folder)
    validated = StickerPairs(stickers, stickers.indices("held_out").tolist(), seed, endless=False)
    return StickerPairs(stickers, stickers.indices(split).tolist(), seed), validated


def _random(seed: int, number: int) -> random.Random:
    digest = hashlib.blake2b(f"{seed}/{number}/phrase".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))
