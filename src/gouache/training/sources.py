"""Open a folder of captioned pictures as a stream to train on and a finite set to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, PackedStream
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
    """Training examples: of the recipe `stickers` with composed scenes, or of anyone's packed pictures."""

    def __init__(self, stream: StickerStream | PackedStream) -> None:
        self.stream = stream

    @property
    def fingerprint(self) -> str:
        """Of the stream: data set, recipe and arguments."""
        return self.stream.fingerprint

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Examples of the endless stream."""
        return _stacked([self.stream.example(number) for number in numbers])


class PackedHeldOut:
    """The held-out pictures of a packed set, each with its first caption."""

    def __init__(self, pictures: PackedPictures) -> None:
        self._pictures, self._rows = pictures, pictures.indices("held_out")
        if len(self._rows) == 0:
            cure = "Add more pictures; one in twenty is held out, by content."
            raise DataError(str(pictures.folder), given="no held-out picture", expected="at least one", cure=cure)

    @property
    def fingerprint(self) -> str:
        """Of the data set."""
        return f"{PackedStream(self._pictures, 0, split='held_out').fingerprint}/held-out"

    def __len__(self) -> int:
        return len(self._rows)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Held-out examples by number."""
        rows = [int(self._rows[number]) for number in numbers]
        return _stacked([Example(self._pictures.picture(r), self._pictures.records[r].captions[0]) for r in rows])


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
    if (folder / "records.jsonl").is_file() and not (folder / "pictures.npy").is_file():
        return _packed_sources(PackedPictures.open(folder), config)
    stickers = open_stickers(folder, config)
    stream = StickerStream(stickers, config.seed, scene_share=config.scene_share, zh_share=config.zh_share)
    return Sources(StreamSource(stream), HeldOutSource(stickers, stream.fingerprint))


def open_stickers(folder: Path, config: DataConfig) -> Stickers:
    """Open a built set of stickers of the configured size.

    Raises:
        DataError: it is another kind of data set, or its pictures have another size.
    """
    stickers = Stickers.open(folder)
    if stickers.size != config.size:
        raise DataError(
            str(folder), given=f"pictures of {stickers.size} pixels", expected=f"{config.size}, as [data] size says",
            cure=f"Build it with --size {config.size}.",
        )  # fmt: skip
    return stickers


def _packed_sources(pictures: PackedPictures, config: DataConfig) -> Sources:
    if pictures.buckets != (Bucket(config.size, config.size),):
        given = f"pictures of {', '.join(pictures.manifest.counts)} pixels"
        raise DataError(
            str(pictures.folder), given=given, expected=f"{config.size}x{config.size} only, as [data] size says",
            cure=f"Build it with --size {config.size} and without --buckets.",
        )  # fmt: skip
    return Sources(StreamSource(PackedStream(pictures, config.seed)), PackedHeldOut(pictures))


def _stacked(examples: list[Example]) -> Captioned:
    return Captioned(np.stack([example.picture for example in examples]), [example.caption for example in examples])
