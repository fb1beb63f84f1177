"""Open a folder of captioned pictures as a stream to train on and a finite set to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gouache.data.stickers import Stickers
from gouache.data.stream import Example, StickerStream, held_out_examples
from gouache.errors import DataError
from gouache.training.config import DataConfig
from gouache.training.encoded_store import Captioned, CaptionedSource, FiniteSource


@dataclass(frozen=True, slots=True)
class Sources:
    """What a data set offers.

    Attributes:
        train: examples by any number from 0.
        held_out: examples that are never trained on.
    """

    train: CaptionedSource
    held_out: FiniteSource


class StreamSource:
    """Training examples of the recipe `stickers`: single pictures and composed scenes."""

    def __init__(self, stream: StickerStream) -> None:
        self.stream = stream

    @property
    def fingerprint(self) -> str:
        """Of the stream: data set, recipe and arguments."""
        return self.stream.fingerprint

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Examples of the endless stream."""
        return _stacked([self.stream.example(number) for number in numbers])


class HeldOutSource:
    """The held-out (concept, style) pairs of the recipe `stickers`, as they are."""

    def __init__(self, stickers: Stickers, fingerprint: str) -> None:
        self._examples, self._fingerprint = held_out_examples(stickers), fingerprint

    @property
    def fingerprint(self) -> str:
        """Of the data set."""
        return f"{self._fingerprint}/held-out"

    def __len__(self) -> int:
        return len(self._examples)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Held-out examples by number."""
        return _stacked([self._examples[number] for number in numbers])


def open_sources(folder: Path, config: DataConfig) -> Sources:
    """Open a data set.

    Raises:
        DataError: no such folder, or it holds no captioned pictures of the configured size.
    """
    if not folder.is_dir():
        raise DataError(str(folder), given="no such folder", expected="a data set", cure="See gouache data --help.")
    stickers = Stickers.open(folder)
    if stickers.size != config.size:
        raise DataError(
            str(folder), given=f"pictures of {stickers.size} pixels", expected=f"{config.size}, as [data] size says",
            cure=f"Build it with --size {config.size}.",
        )  # fmt: skip
    stream = StickerStream(stickers, config.seed, scene_share=config.scene_share)
    return Sources(StreamSource(stream), HeldOutSource(stickers, stream.fingerprint))


def _stacked(examples: list[Example]) -> Captioned:
    return Captioned(np.stack([example.picture for example in examples]), [example.caption for example in examples])
