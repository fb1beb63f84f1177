"""Your own captioned pictures, prepared for training: scaled into buckets, memory-mapped, named by content.

manifest.json        recipe, version, size, crop, buckets with their counts, what was skipped, sha256 of the files
pictures-WxH.bin     uint8 [n,H,W,4] of one bucket, straight alpha
records.jsonl        one `PackedRecord` a line, in the source's order
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gouache.checkpoints.hub import file_sha256
from gouache.config import Config
from gouache.data.buckets import Bucket, fit_to_bucket, nearest_bucket
from gouache.data.drawing import Picture
from gouache.data.readers import ReadReport, read_pictures
from gouache.data.stickers import HELD_OUT_ONE_IN, Split
from gouache.data.stream import Example
from gouache.data.whole_folder import whole_folder
from gouache.errors import DataError

PACKED_RECIPE, PACKED_VERSION = "pictures", 1


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """One picture of a packed set.

    Attributes:
        key: its name in the source.
        captions: one or more.
        width: of its bucket.
        height: of its bucket.
        row: its place in the bucket's file.
        sha256: of the packed pixels.
        repeats: how often an epoch shows it, as kohya's folders ``10_name`` say.
    """

    key: str
    captions: tuple[str, ...]
    width: int
    height: int
    row: int
    sha256: str
    repeats: int = 1

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training: one in 20, by content, so that a copy falls on the same side."""
        return int(self.sha256[:8], 16) % HELD_OUT_ONE_IN == 0


class PackedManifest(Config):
    """The manifest of a packed set."""

    recipe: str
    recipe_version: int
    source: str
    counts: dict[str, int]
    """Pictures by bucket, ``"WxH"``."""
    broken: int
    empty: int
    sha256: dict[str, str]


def pack_pictures(
    source: str | Path,
    folder: str | Path,
    buckets: Sequence[Bucket],
    report: ReadReport,
    *,
    encoding: str | None = None,
) -> Iterator[int]:
    """Pack a source into `folder`: a generator of the number done; the folder appears whole when it ends.

    Each picture is scaled to cover the bucket nearest to its shape and cut in the middle.

    Args:
        source: as for `read_pictures`.
        folder: absent or empty.
        buckets: one for squares only, or those of `make_buckets`.
        report: filled with what was skipped.
        encoding: of captions in text files, as for `read_pictures`.

    Raises:
        DataError: the folder holds something, the disk is full, or as `read_pictures`.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(str(folder), given="files", expected="no folder, or an empty one", cure="Choose another.")
    counts = Counter[Bucket]()
    with whole_folder(folder) as part:
        with (part / "records.jsonl").open("w", encoding="utf-8") as lines:
            for item in read_pictures(source, report, encoding=encoding):
                bucket = nearest_bucket(item.picture.shape[1], item.picture.shape[0], buckets)
                pixels = fit_to_bucket(item.picture, bucket).tobytes()
                with (part / _file(bucket)).open("ab") as stream:
                    stream.write(pixels)
                digest = hashlib.sha256(pixels).hexdigest()
                record = PackedRecord(
                    item.key, item.captions, bucket.width, bucket.height, counts[bucket], digest, item.repeats
                )
                lines.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
                counts[bucket] += 1
                yield report.good
        _finish(part, str(source), counts, report)


def _finish(part: Path, source: str, counts: Counter[Bucket], report: ReadReport) -> None:
    manifest = PackedManifest(
        recipe=PACKED_RECIPE,
        recipe_version=PACKED_VERSION,
        source=source,
        counts={f"{bucket.width}x{bucket.height}": counts[bucket] for bucket in sorted(counts)},
        broken=report.broken,
        empty=report.empty,
        sha256={path.name: file_sha256(path) for path in sorted(part.iterdir())},
    )
    (part / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _file(bucket: Bucket) -> str:
    return f"pictures-{bucket.width}x{bucket.height}.bin"


class PackedPictures:
    """A packed set, opened for reading; the pictures are memory-mapped.

    Attributes:
        manifest: what the set says about itself.
        records: one a picture.
    """

    def __init__(self, folder: Path, manifest: PackedManifest, records: tuple[PackedRecord, ...]) -> None:
        self.folder, self.manifest, self.records = folder, manifest, records
        self._pixels = {bucket: self._map(bucket) for bucket in self.buckets}

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder that `gouache data build pictures` made.

        Raises:
            DataError: it is no packed set of this version, or its files do not belong together.
            ConfigError: the manifest is damaged.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise DataError(str(folder), given="no manifest.json", expected="a packed set of pictures")
        manifest = PackedManifest.from_json(path.read_text(encoding="utf-8"), where=str(path))
        if (manifest.recipe, manifest.recipe_version) != (PACKED_RECIPE, PACKED_VERSION):
            given = f"{manifest.recipe} version {manifest.recipe_version}"
            raise DataError(str(path), given=given, expected=f"{PACKED_RECIPE} version {PACKED_VERSION}")
        try:
            rows = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
            records = tuple(PackedRecord(**{**row, "captions": tuple(row["captions"])}) for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(str(folder / "records.jsonl"), given=str(error), expected="one record a line") from error
        if len(records) != sum(manifest.counts.values()):
            raise DataError(str(folder), given=f"{len(records)} records", expected=f"{sum(manifest.counts.values())}")
        return cls(folder, manifest, records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets that hold pictures."""
        return tuple(Bucket(*map(int, name.split("x"))) for name in self.manifest.counts)

    @property
    def members(self) -> tuple[Bucket, ...]:
        """The bucket of every picture, for `bucket_batches`."""
        return tuple(Bucket(record.width, record.height) for record in self.records)

    def indices(self, split: Split = "train") -> NDArray[np.int64]:
        """Numbers of one split, ascending. In a set of two or more pictures at least one is held out."""
        held_out = {i for i, record in enumerate(self.records) if record.held_out}
        if not held_out and len(self.records) > 1:
            least = min(record.sha256 for record in self.records)  # by content, so copies stay together
            held_out = {i for i, record in enumerate(self.records) if record.sha256 == least}
        keep = [i for i in range(len(self.records)) if split == "all" or (i in held_out) == (split == "held_out")]
        return np.array(keep, np.int64)

    def weighted(self, split: Split = "train") -> NDArray[np.int64]:
        """As `indices`, each as often as an epoch shows it: repeats count against one another only."""
        rows = self.indices(split)
        repeats = np.array([self.records[row].repeats for row in rows], np.int64)
        return np.repeat(rows, repeats // np.gcd.reduce(repeats)) if len(rows) else rows

    def picture(self, index: int) -> Picture:
        """One picture, uint8 [H,W,4] of its bucket."""
        record = self.records[index]
        pixels: Picture = self._pixels[Bucket(record.width, record.height)][record.row]
        return pixels

    def verify(self) -> None:
        """Compare every file with the manifest's sha256.

        Raises:
            DataError: a file is missing or has changed.
        """
        for name, digest in self.manifest.sha256.items():
            path = self.folder / name
            actual = file_sha256(path) if path.is_file() else "no file"
            if actual != digest:
                raise DataError(str(path), given=actual, expected=f"sha256 {digest}", cure="Build the set again.")

    def _map(self, bucket: Bucket) -> Picture:
        path = self.folder / _file(bucket)
        shape = (self.manifest.counts[f"{bucket.width}x{bucket.height}"], bucket.height, bucket.width, 4)
        size = path.stat().st_size if path.is_file() else -1
        if size != int(np.prod(shape)):
            raise DataError(str(path), given=f"{size} bytes", expected=f"uint8 {shape}", cure="Build the set again.")
        return np.memmap(path, np.uint8, "r", shape=shape)


@dataclass(frozen=True, slots=True)
class Variety:
    """In how many ways a picture and its caption are shown.

    Attributes:
        flip: mirror half of the pictures. Off unless asked for: a caption may speak of left and right.
        templates: sentences with ``{}`` where the caption goes, one drawn for each picture; none shows it as it is.
    """

    flip: bool = False
    templates: tuple[str, ...] = ()

    def example(self, pictures: PackedPictures, row: int, generator: np.random.Generator) -> Example:
        """Picture `row` with one of its captions, as `generator` draws them."""
        picture, captions = np.array(pictures.picture(row)), pictures.records[row].captions
        if self.flip and generator.random() < 0.5:
            picture = np.ascontiguousarray(picture[:, ::-1])
        caption = captions[int(generator.integers(len(captions)))]
        if self.templates:
            caption = self.templates[int(generator.integers(len(self.templates)))].replace("{}", caption)
        return Example(picture, caption)


class PackedStream:
    """The endless training stream of a packed set: every picture once an epoch, in an order of its own.

    Args:
        pictures: the set.
        seed: of order, captions and flips.
        split: whose pictures are used.
        variety: flips and templates.
    """

    def __init__(
        self, pictures: PackedPictures, seed: int, *, split: Split = "train", variety: Variety = Variety()
    ) -> None:
        self.pictures, self.seed, self.split, self.variety = pictures, seed, split, variety
        self.rows = pictures.weighted(split)
        self._order: tuple[int, NDArray[np.int64]] | None = None
        if len(self.rows) == 0:
            raise DataError(str(pictures.folder), given=f"no picture in {split}", expected="pictures", cure="Add some.")

    @property
    def fingerprint(self) -> str:
        """Changes whenever the stream does."""
        digests = json.dumps(self.pictures.manifest.sha256, sort_keys=True)
        settings: tuple[object, ...] = (PACKED_VERSION, self.seed, self.split, self.variety.flip)
        if self.variety.templates:
            settings += (self.variety.templates,)
        return hashlib.sha256(f"{digests}/{settings}".encode()).hexdigest()

    def example(self, index: int) -> Example:
        """The example with this number, from 0 without end; a pure function of (seed, index)."""
        epoch, place = divmod(index, len(self.rows))
        row = int(self._epoch_order(epoch)[place])
        generator = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        return self.variety.example(self.pictures, row, generator)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:  # the last epoch's order is kept; it can be made again
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, 3]))
            self._order = (epoch, generator.permutation(self.rows))
        return self._order[1]
