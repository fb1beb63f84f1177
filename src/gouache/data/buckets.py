"""Aspect-ratio buckets: pictures of like shape share a batch, so little is cropped and nothing is stretched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from gouache.colours import Picture
from gouache.errors import InvalidInput

Crop = Literal["center", "random"]
Rest = Literal["drop", "keep"]


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One size of training picture, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class BucketBatch:
    """Rows that share a bucket."""

    bucket: Bucket
    rows: tuple[int, ...]


def make_buckets(size: int, *, step: int = 64, longest: float = 2.0) -> tuple[Bucket, ...]:
    """All buckets with about the area of a `size` x `size` square, sides multiples of `step`.

    Args:
        size: side of the square bucket, a multiple of `step`.
        step: what the sides are multiples of; 8 times the model's smallest latent unit.
        longest: greatest aspect ratio, >= 1.

    Returns:
        Buckets from the tallest to the widest; the area never exceeds the square's.

    Raises:
        InvalidInput: the size is no multiple of the step, or the ratio is below 1.
    """
    if step < 1 or size < step or size % step:
        raise InvalidInput("size", given=size, expected=f"a multiple of {step}", cure="Change size or step.")
    if longest < 1:
        raise InvalidInput("longest", given=longest, expected="an aspect ratio of at least 1")
    found = {Bucket(size, size)}
    for width in range(step, int(size * longest) + 1, step):
        height = size * size // width // step * step
        if height >= step and max(width / height, height / width) <= longest:
            found |= {Bucket(width, height), Bucket(height, width)}
    return tuple(sorted(found))


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose aspect ratio is nearest by its logarithm; of equal ones the largest."""
    if width < 1 or height < 1 or not buckets:
        given = f"{width}x{height} and {len(buckets)} buckets"
        raise InvalidInput("picture", given=given, expected="a size of at least 1x1 and a bucket")
    ratio = np.log(width / height)
    return min(buckets, key=lambda b: (round(abs(float(np.log(b.width / b.height) - ratio)), 9), -b.width * b.height))


def fit_to_bucket(
    picture: Picture, bucket: Bucket, *, crop: Crop = "center", generator: np.random.Generator | None = None
) -> Picture:
    """Scale a picture until it covers the bucket, then cut what stands over. uint8 [H,W,4] -> [height,width,4]

    Args:
        picture: straight alpha.
        bucket: the target.
        crop: ``"center"``, or ``"random"`` with a generator.
        generator: decides where a random crop lies.

    Raises:
        InvalidInput: a random crop without a generator.
    """
    if crop == "random" and generator is None:
        raise InvalidInput("crop", given="random without a generator", expected="a generator", cure="Pass one.")
    scale = max(bucket.width / picture.shape[1], bucket.height / picture.shape[0])
    width = max(bucket.width, round(picture.shape[1] * scale))
    height = max(bucket.height, round(picture.shape[0] * scale))
    left, top = (width - bucket.width) // 2, (height - bucket.height) // 2
    if crop == "random" and generator is not None:
        left = int(generator.integers(width - bucket.width + 1))
        top = int(generator.integers(height - bucket.height + 1))
    if (height, width) == picture.shape[:2]:  # no detour over multiplied colours, which would round faint pixels
        return picture[top : top + bucket.height, left : left + bucket.width]
    # "RGBa" is multiplied by alpha: no fringe of the transparent colour bleeds in.
    image = Image.fromarray(picture).convert("RGBa").resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image.crop((left, top, left + bucket.width, top + bucket.height)).convert("RGBA"))


def bucket_batches(
    members: Sequence[Bucket], batch_size: int, *, seed: int, epoch: int, rest: Rest = "keep"
) -> Iterator[BucketBatch]:
    """Batches of one epoch, each of one bucket; a pure function of (members, batch_size, seed, epoch).

    Rows are shuffled within their bucket, cut into batches, and the batches shuffled among one another.

    Args:
        members: the bucket of every row.
        batch_size: rows a batch.
        seed: of the shuffling.
        epoch: which pass over the data; every epoch has its own order.
        rest: ``"keep"`` yields a bucket's last, smaller batch, so every row comes once an epoch; ``"drop"`` leaves it
            out, so every batch is full.

    Raises:
        InvalidInput: the batch size is below 1.
    """
    if batch_size < 1:
        raise InvalidInput("batch_size", given=batch_size, expected="an integer >= 1")
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    rows_of: dict[Bucket, list[int]] = {}
    for row, bucket in enumerate(members):
        rows_of.setdefault(bucket, []).append(row)
    batches = []
    for bucket in sorted(rows_of):
        rows = generator.permutation(rows_of[bucket])
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            if len(part) == batch_size or rest == "keep":
                batches.append(BucketBatch(bucket, tuple(int(row) for row in part)))
    for place in generator.permutation(len(batches)):
        yield batches[int(place)]
