"""Pictures with captions for the contrastive stage: which pairs belong together, and what they are in Chinese."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gouache.data.captions import canonical_caption, caption
from gouache.data.stickers import Sticker, Stickers
from gouache.training.encoded import Shuffled
from gouache.training.encoded_store import CaptionedSource
from gouache.training.translations import chinese_texts, translation


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some captioned pictures.

    Attributes:
        pictures: uint8 [B,S,S,4], straight alpha.
        captions: a caption for each.
        keys: pictures with one key show one concept in one style: any caption of theirs fits any of them.
        translations: for each an English and a Chinese text of one meaning; empty if there are none.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    keys: list[str]
    translations: list[tuple[str, str]]


class PairSource(Protocol):
    """Captioned pictures by number."""

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        ...

    @property
    def foreign_texts(self) -> list[str]:
        """Texts whose characters the vocabulary should know."""
        ...


class StickerPairs:
    """An endless stream over stickers: every epoch all of them in another order, with another phrase for each.

    Args:
        stickers: the data set.
        rows: which of its pictures.
        seed: of order and phrases.
        endless: false gives the pictures in their own order with their plain captions.
    """

    def __init__(self, stickers: Stickers, rows: Sequence[int], seed: int, *, endless: bool = True) -> None:
        self.stickers, self.rows, self.seed, self.endless = stickers, [int(row) for row in rows], seed, endless
        self.records = [stickers.records[row] for row in self.rows]
        self.order = Shuffled(len(self.rows), seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def foreign_texts(self) -> list[str]:
        """Every Chinese text of the whole set, so that all splits give one vocabulary."""
        return chinese_texts(self.stickers.records)

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        places = self.order.numbers(numbers) if self.endless else list(numbers)
        records = [self.records[place] for place in places]
        draws = [_random(self.seed, number) for number in numbers]
        return Pairs(
            np.stack([self.stickers.pictures[self.rows[place]] for place in places]),
            [self._caption(record, number) for record, number in zip(records, numbers, strict=True)],
            [f"{record.code}/{record.style}" for record in records],
            [translation(record, self.records, draw) for record, draw in zip(records, draws, strict=True)],
        )

    def _caption(self, record: Sticker, number: int) -> str:
        if not self.endless:
            return canonical_caption(record)
        return caption(record, np.random.Generator(np.random.Philox(key=[self.seed, number])))


class CaptionPairs:
    """Any captioned pictures; those with one caption belong together."""

    foreign_texts: list[str]

    def __init__(self, source: CaptionedSource) -> None:
        self.source = source
        self.foreign_texts = []

    def pairs(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers; a pure function."""
        examples = self.source.examples(numbers)
        return Pairs(examples.pictures, examples.captions, examples.captions, [])


def _random(seed: int, number: int) -> random.Random:
    digest = hashlib.blake2b(f"{seed}/{number}/phrase".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))
