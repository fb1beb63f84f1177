"""Open a folder of captioned pictures as a stream to train on and a finite set to judge by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, PackedStream, Variety
from gouache.data.stickers import HELD_OUT_ONE_IN, Split, Stickers
from gouache.data.stream import Example, StickerStream, plain_example
from gouache.data.subsets.caption_rules import AS_IT_IS
from gouache.errors import ConfigError, DataError
from gouache.training.batches.batch_shapes import Bucketed
from gouache.training.batches.loss_marks import View
from gouache.training.batches.store import Captioned, CaptionedSource, FiniteSource
from gouache.training.config import DataConfig

SAID: dict[Split, str] = {"held_out": "held-out", "train": "training", "all": "whole"}
SMALL = 2 * HELD_OUT_ONE_IN
"""Pictures of a packed set below which none is held out: one or two say little, and each one is missed."""
NOTHING_HELD_OUT = "no picture is held out of so few: validation looks at pictures that are trained on"
ENCODED_TOGETHER = 8
"""Examples of a store's stream that share a shape: few, so that a small store has all shapes; SHARD is a multiple."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a data set offers.

    Attributes:
        train: examples by any number from 0.
        held_out: examples that are never trained on.
        plain: the pictures to train on as they are, each once, with its first caption.
        every: all examples that `train` can give, where they can be counted: each picture with each of its captions,
            flips and templates once.
        note: what is unusual about it, for people.
        draws_captions: the same caption may read differently another time, so that `train` can't be encoded in advance.
        marked: it has masks, or pictures of the class.
    """

    train: CaptionedSource
    held_out: FiniteSource
    plain: FiniteSource
    every: FiniteSource | None = None
    note: str = ""
    draws_captions: bool = False
    marked: bool = False


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
        return stacked([self.stream.example(number) for number in numbers])


class BucketedSource:
    """Training examples of a packed set of several shapes; places k * batch to (k + 1) * batch - 1 share one.

    Args:
        pictures: the set.
        seed: of order and captions.
        batch: images of a batch.
        variety: flips and templates.
        split: whose pictures are used.
    """

    def __init__(
        self, pictures: PackedPictures, seed: int, batch: int, variety: Variety, split: Split = "train"
    ) -> None:
        self._pictures, self._seed, self.batch, self._variety = pictures, seed, batch, variety
        self._split: Split = split
        self._rows = pictures.weighted(split)
        members = pictures.members
        self._order = Bucketed([(members[row].height, members[row].width) for row in self._rows], batch, seed)

    @property
    def fingerprint(self) -> str:
        """Of the data set, the seed and the batch."""
        stream = PackedStream(self._pictures, self._seed, split=self._split, variety=self._variety)
        return f"{stream.fingerprint}/batches of {self.batch}"

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Examples of the endless stream."""
        return stacked([self._example(n, at) for n, at in zip(numbers, self._order.numbers(numbers), strict=True)])

    def _example(self, number: int, at: int) -> Example:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, number]))
        return self._variety.example(self._pictures, int(self._rows[at]), generator)


class EveryExample:
    """All examples of a packed set that differ: encoded once, they are all that a stream over it can show.

    Args:
        pictures: the set.
        rows: which of its pictures; one that is there twice counts twice.
        variety: flips, templates, and trigger words of captions.
    """

    def __init__(self, pictures: PackedPictures, rows: Sequence[int], variety: Variety) -> None:
        self.pictures, members = pictures, pictures.members
        frames = variety.templates or ("{}",)
        ordered = sorted(rows, key=lambda row: (members[row], row))
        self._examples = [
            (int(row), variety.rules(pictures, row).framed(caption), mirrored, frame)
            for row in ordered
            for caption in pictures.records[row].captions
            for mirrored in ((False, True) if variety.flips(pictures, row) else (False,))
            for frame in frames
        ]
        self.shapes = [(members[row].height, members[row].width) for row, *_ in self._examples]
        marks = hashlib.sha256(json.dumps(self._examples).encode()).hexdigest()
        self.fingerprint = f"{PackedStream(pictures, 0, split='all').fingerprint}/every/{marks}"

    def __len__(self) -> int:
        return len(self._examples)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Examples by number."""
        return stacked([self._example(*self._examples[number]) for number in numbers])

    def view(self, number: int) -> View:
        """Which picture an example shows, and whether left and right are changed."""
        row, _, mirrored, _ = self._examples[number]
        return row, mirrored

    def _example(self, row: int, caption: str, mirrored: bool, frame: str) -> Example:
        picture = np.array(self.pictures.picture(row))
        return Example(np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture, frame.replace("{}", caption))


class PlainPictures:
    """The pictures of one split of a packed set, each with its first caption, without those for regularisation."""

    def __init__(self, pictures: PackedPictures, split: Split) -> None:
        members = pictures.members
        self.pictures, self._split = pictures, split
        rows = [int(row) for row in pictures.indices(split) if not pictures.records[row].regularisation]
        self._rows = sorted(rows, key=lambda row: (members[row], row))
        self.shapes = [(members[row].height, members[row].width) for row in self._rows]
        if len(self._rows) == 0:
            cure = "Add more pictures; one in twenty is held out, by content."
            raise DataError(str(pictures.folder), given=f"no {SAID[split]} picture", expected="at least one", cure=cure)

    @property
    def fingerprint(self) -> str:
        """Of the data set."""
        return f"{PackedStream(self.pictures, 0, split=self._split).fingerprint}/{SAID[self._split]}"

    def __len__(self) -> int:
        return len(self._rows)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Pictures by number."""
        rows = [self._rows[number] for number in numbers]
        return stacked([Example(self.pictures.picture(r), self.pictures.records[r].captions[0]) for r in rows])

    def view(self, number: int) -> View:
        """Which picture an example shows, and that it is as it is."""
        return self._rows[number], False


class PlainStickers:
    """The (concept, style) pairs of one split of the recipe `stickers`, as they are."""

    def __init__(self, stickers: Stickers, fingerprint: str, split: Split) -> None:
        self._stickers, self._rows = stickers, stickers.indices(split)
        self._fingerprint = f"{fingerprint}/{SAID[split]}"

    @property
    def fingerprint(self) -> str:
        """Of the data set."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Pictures by number."""
        return stacked([plain_example(self._stickers, int(self._rows[number])) for number in numbers])


def open_sources(folder: Path, config: DataConfig, *, batch: int = ENCODED_TOGETHER) -> Sources:
    """Open a data set.

    Args:
        folder: of the data set.
        config: size and seed.
        batch: examples that are asked for together; they share a shape.

    Raises:
        DataError: no such folder, or it holds no captioned pictures of the configured size.
    """
    if not folder.is_dir():
        raise DataError(
            str(folder),
            given="no such folder",
            expected="a data set",
            cure=f"Build it first: gouache data build stickers DIR, or build pictures DIR --from {folder}.",
        )
    if (folder / "records.jsonl").is_file() and not (folder / "pictures.npy").is_file():
        return _packed_sources(PackedPictures.open(folder), config, batch)
    stickers = open_stickers(folder, config)
    if config.flip or config.templates or config.captions != AS_IT_IS:
        raise ConfigError(
            "data.flip, data.templates and data.captions",
            given="one of them for the recipe stickers",
            expected="your own pictures",
            cure="Leave them out: the recipe has captions and flips of its own.",
        )
    stream = StickerStream(stickers, config.seed, scene_share=config.scene_share, zh_share=config.zh_share)
    held_out, plain = (PlainStickers(stickers, stream.fingerprint, split) for split in ("held_out", "train"))
    return Sources(StreamSource(stream), held_out, plain)


def open_stickers(folder: Path, config: DataConfig) -> Stickers:
    """Open a built set of stickers of the configured size.

    Raises:
        DataError: it is another kind of data set, or its pictures have another size.
    """
    stickers = Stickers.open(folder)
    if stickers.size != config.size:
        raise DataError(
            str(folder),
            given=f"pictures of {stickers.size} pixels",
            expected=f"{config.size}, as [data] size says",
            cure=f"Build it with --size {config.size}.",
        )
    return stickers


def few_packed(pictures: PackedPictures, config: DataConfig) -> tuple[bool, str]:
    """Whether a packed set is too small to hold some out, and what to say of it.

    Raises:
        DataError: its pictures have another size.
    """
    if not all(_fits(bucket, config.size) for bucket in pictures.buckets):
        given = f"pictures of {', '.join(pictures.manifest.counts)} pixels"
        raise DataError(
            str(pictures.folder),
            given=given,
            expected=f"{config.size}x{config.size}, or buckets of about its area",
            cure=f"Build it with --size {config.size}, as [data] size says.",
        )
    few = pictures.to_learn < SMALL
    return few, NOTHING_HELD_OUT if few else ""


def _packed_sources(pictures: PackedPictures, config: DataConfig, batch: int) -> Sources:
    few, note = few_packed(pictures, config)
    variety = Variety(config.flip, config.templates, config.captions)
    split: Split = "all" if few else "train"
    plain = PlainPictures(pictures, split)
    held_out = plain if few else PlainPictures(pictures, "held_out")
    train: CaptionedSource
    if len(pictures.buckets) > 1:
        train = BucketedSource(pictures, config.seed, batch, variety, split)
    else:
        train = StreamSource(PackedStream(pictures, config.seed, split=split, variety=variety))
    every = EveryExample(pictures, pictures.weighted(split).tolist(), variety)
    marked = pictures.manifest.masks or pictures.to_learn < len(pictures)
    return Sources(train, held_out, plain, every, note, variety.draws_captions(pictures), marked)


def _fits(bucket: Bucket, size: int) -> bool:
    """Whether a bucket is the square, or a rectangle of nearly as many pixels and never more (`make_buckets`)."""
    area = bucket.width * bucket.height
    return bucket.width == size if bucket.width == bucket.height else size * size < 2 * area <= 2 * size * size


def stacked(examples: list[Example]) -> Captioned:
    """Examples as one batch.

    Raises:
        DataError: their pictures have several shapes.
    """
    if len(shapes := {example.picture.shape[:2] for example in examples}) > 1:
        raise DataError(
            "pictures",
            given=f"a batch of {sorted(shapes)}",
            expected="one shape a batch",
            cure="Resume with the batch_size that the run was started with.",
        )
    return Captioned(np.stack([example.picture for example in examples]), [example.caption for example in examples])
