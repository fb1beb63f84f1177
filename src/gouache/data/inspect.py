"""A look at a whole source of captioned pictures before training on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gouache.data.buckets import Bucket, make_buckets, nearest_bucket
from gouache.data.readers import ReadReport, read_pictures


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source holds.

    Attributes:
        captions: of all usable pictures together.
        with_alpha: pictures that are transparent somewhere.
        buckets: pictures by aspect-ratio bucket, the fullest first.
    """

    captions: int
    with_alpha: int
    buckets: dict[Bucket, int]


def inspect_pictures(source: str | Path, report: ReadReport, *, size: int = 512) -> Inspection:
    """Read everything once.

    Args:
        source: as for `read_pictures`, whose errors it raises.
        report: filled with what was skipped.
        size: side of the square bucket.
    """
    buckets, counts = make_buckets(size), Counter[Bucket]()
    captions = with_alpha = 0
    for item in read_pictures(source, report):
        captions += len(item.captions)
        with_alpha += bool((item.picture[..., 3] < 255).any())
        counts[nearest_bucket(item.picture.shape[1], item.picture.shape[0], buckets)] += 1
    return Inspection(captions, with_alpha, dict(counts.most_common()))
