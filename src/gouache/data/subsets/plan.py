"""What a set of pictures is built from, whatever it is given as: a source, a dataset config, a set that is built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import AS_USUAL, Reading, ReadReport
from gouache.data.subsets.dataset_config import SUFFIXES, Bucketing, read_dataset_config
from gouache.data.subsets.subset import Subset
from gouache.errors import ConfigError, DataError

SIDE = 128
"""Side of the pictures where nobody says."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """How a set is built.

    Attributes:
        subsets: what it is made of.
        buckets: sizes that pictures are fitted to.
        notes: what is passed over, for people.
    """

    subsets: tuple[Subset, ...]
    buckets: tuple[Bucket, ...]
    notes: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """Changes whenever the plan does: 8 hexadecimal digits."""
        return hashlib.sha256(repr((self.subsets, self.buckets)).encode()).hexdigest()[:8]

    def built(self, folder: Path, report: ReadReport) -> Iterator[int]:
        """Build it into `folder`; as `pack_pictures`."""
        report.notes.update(self.notes)
        yield from pack_pictures(self.subsets, folder, self.buckets, report)


def plan_set(
    source: str | Path,
    *,
    size: int | None = None,
    keep_shapes: bool = False,
    reading: Reading = AS_USUAL,
    regularisation: Path | None = None,
    most: int | None = None,
) -> BuildPlan:
    """Plan a set.

    Args:
        source: as for `read_pictures`; a dataset config of sd-scripts, TOML or JSON; or a packed set.
        size: side of the pictures; None takes that of the dataset config, else 128.
        keep_shapes: make buckets of like area, where the dataset config doesn't decide.
        reading: of the source; a dataset config has its own.
        regularisation: a folder of pictures of the class, besides.
        most: of these, so many; None takes all.

    Raises:
        DataError, ConfigError: as `read_dataset_config`; or `size` isn't the dataset config's resolution.
    """
    path, notes = Path(source), tuple[str, ...]()
    if path.suffix in SUFFIXES and not path.is_dir():
        config = read_dataset_config(path)
        subsets, notes = config.subsets, config.notes
        if size is not None and config.size is not None and size != config.size:
            cure = "Make them equal."
            raise ConfigError(f"{path}: resolution", given=config.size, expected=f"{size}, as [data] size", cure=cure)
        size = size or config.size or SIDE
        buckets = config.bucketing.buckets(size)
    elif (path / "records.jsonl").is_file():
        packed = PackedPictures.open(path)
        if packed.manifest.subsets:
            given, cure = "a set with caption rules of its subsets", "Give what it was built from."
            raise DataError(str(path), given=given, expected="a set without, to build again", cure=cure)
        subsets, buckets = (Subset(source=path),), packed.buckets
    else:
        subsets = (Subset(source=source, reading=reading),)
        buckets = Bucketing(enabled=keep_shapes).buckets(size or SIDE)
    if regularisation is not None:
        name = "regularisation"
        subsets += (Subset(source=regularisation, name=name, regularisation=True, reading=reading, most=most),)
    return BuildPlan(subsets, buckets, notes)
