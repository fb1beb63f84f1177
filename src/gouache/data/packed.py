"""Your own captioned pictures, prepared for training: scaled into buckets, memory-mapped, named by content.

manifest.json        recipe, version, size, crop, buckets with their counts, what was skipped, sha256 of the files
pictures-WxH.bin     uint8 [n,H,W,4] of one bucket, straight alpha
masks-WxH.bin        uint8 [n,H,W], if any picture has a mask: where the loss counts
conditions-WxH.bin   uint8 [n,H,W,4], if the pictures are painted from others
records.jsonl        one `PackedRecord` a line, in the source's order
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gouache.checkpoints.hub import file_sha256
from gouache.colours import Picture
from gouache.config import Config
from gouache.data.buckets import Bucket, fit_to_bucket, nearest_bucket
from gouache.data.readers import AS_USUAL, CaptionedPicture, Reading, ReadReport, read_pictures
from gouache.data.stickers import HELD_OUT_ONE_IN, Split
from gouache.data.stream import Example
from gouache.data.subsets.caption_rules import AS_IT_IS, CaptionRules
from gouache.data.subsets.planes import Mask, fitted_mask, fitted_plane
from gouache.data.subsets.subset import PLAIN, Subset, SubsetRules
from gouache.data.whole_folder import whole_folder
from gouache.errors import DataError

PACKED_RECIPE, PACKED_VERSION = "pictures", 2
"""Version 2 knows subsets with rules of their own, regularisation pictures, masks and conditions."""
READABLE = (1, 2)


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
        subset: which of the set's subsets it is of, a key of the manifest's `subsets`; "" where there are none.
        regularisation: it is a picture of the class, not of what is to be learnt; never held out.
    """

    key: str
    captions: tuple[str, ...]
    width: int
    height: int
    row: int
    sha256: str
    repeats: int = 1
    subset: str = ""
    regularisation: bool = False

    @property
    def held_out(self) -> bool:
        """Whether it is kept from training: one in 20, by content, so that a copy falls on the same side."""
        return not self.regularisation and int(self.sha256[:8], 16) % HELD_OUT_ONE_IN == 0


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
    subsets: dict[str, SubsetRules] = Field(default_factory=dict)
    """Subsets whose pictures or captions are shown by rules of their own."""
    masks: bool = False
    """Whether there are masks; pictures without one count as a whole."""
    conditions: bool = False
    """Whether every picture has a condition."""


def pack_pictures(
    source: str | Path | Sequence[Subset],
    folder: str | Path,
    buckets: Sequence[Bucket],
    report: ReadReport,
    reading: Reading = AS_USUAL,
) -> Iterator[int]:
    """Pack a source into `folder`: a generator of the number done; the folder appears whole when it ends.

    Each picture is scaled to cover the bucket nearest to its shape and cut in the middle, and what belongs to it alike.

    Args:
        source: as for `read_pictures`, a packed set, or several subsets.
        folder: absent or empty.
        buckets: one for squares only, or those of `make_buckets`.
        report: filled with what was skipped.
        reading: of one source, as for `read_pictures`.

    Raises:
        DataError: the folder holds something, the disk is full, some pictures have a condition and others don't, or as
            `read_pictures`.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(str(folder), given="files", expected="no folder, or an empty one", cure="Choose another.")
    subsets = [Subset(source=source, reading=reading)] if isinstance(source, str | Path) else list(source)
    with whole_folder(folder) as part:
        writer = _Writer(part)
        with (part / "records.jsonl").open("w", encoding="utf-8") as lines:
            for subset in subsets:
                for item in read_subset(subset, report):
                    bucket = nearest_bucket(item.picture.shape[1], item.picture.shape[0], buckets)
                    try:
                        record = writer.write(item, bucket, subset.name)
                    except DataError as error:
                        report.good -= 1
                        report.skip(item.key, str(error.given))
                        continue
                    if max(bucket.width / item.picture.shape[1], bucket.height / item.picture.shape[0]) > 1:
                        report.notes[f"smaller than {bucket.width}x{bucket.height}, scaled up"] += 1
                    lines.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
                    yield report.good
        writer.finish(subsets, report)


def read_subset(subset: Subset, report: ReadReport) -> Iterator[CaptionedPicture]:
    """The pictures of a subset as it shows them, no more than it takes."""
    return map(subset.own, islice(_read(subset, report), subset.most))


def _read(subset: Subset, report: ReadReport) -> Iterator[CaptionedPicture]:
    """The pictures of a subset's source, which may be a packed set."""
    folder = Path(subset.source)
    if not (folder / "manifest.json").is_file():
        yield from read_pictures(subset.source, report, subset.reading)
        return
    packed = PackedPictures.open(folder)
    for row, record in enumerate(packed.records):
        report.good += 1
        mask, condition = packed.mask(row), packed.condition(row)
        yield CaptionedPicture(
            record.key,
            np.array(packed.picture(row)),
            record.captions,
            record.repeats,
            None if mask is None else np.array(mask),
            None if condition is None else np.array(condition),
            record.regularisation,
        )


class _Writer:
    """Writes the files of a set, bucket by bucket."""

    def __init__(self, part: Path) -> None:
        self.part, self.counts = part, Counter[Bucket]()
        self.masked: set[Bucket] = set()
        self.conditioned = 0

    def write(self, item: CaptionedPicture, bucket: Bucket, subset: str) -> PackedRecord:
        """Add a picture and what belongs to it.

        Raises:
            DataError: a mask or a condition has another shape than its picture; nothing is written.
        """
        row, pixels = self.counts[bucket], fit_to_bucket(item.picture, bucket).tobytes()
        mask = None if item.mask is None else fitted_mask(item.mask, item.picture, bucket)
        condition = None
        if item.condition is not None:
            condition = fitted_plane(item.condition, item.picture, bucket, "condition")
        self._append("pictures", bucket, pixels)
        if mask is not None and bucket not in self.masked:
            self.masked.add(bucket)
            for _ in range(row):  # those before count as a whole
                self._append("masks", bucket, _whole_mask(bucket))
        if bucket in self.masked:
            self._append("masks", bucket, _whole_mask(bucket) if mask is None else mask.tobytes())
        if condition is not None:
            self.conditioned += 1
            self._append("conditions", bucket, condition.tobytes())
        self.counts[bucket] += 1
        digest = hashlib.sha256(pixels).hexdigest()
        return PackedRecord(
            item.key,
            item.captions,
            bucket.width,
            bucket.height,
            row,
            digest,
            item.repeats,
            subset,
            item.regularisation,
        )

    def finish(self, subsets: Sequence[Subset], report: ReadReport) -> None:
        """Write the manifest.

        Raises:
            DataError: some pictures have a condition and others don't, or no picture is left.
        """
        total = self.counts.total()
        if total == 0 or 0 < self.conditioned < total:
            given = f"{self.conditioned} of {total} pictures with a condition"
            first = ": ".join(report.listed[0]) if report.listed else ""
            raise DataError(
                "conditions" if total else str(subsets[0].source),
                given=given if total else f"no usable picture ({first})",
                expected="one for every picture, or none" if total else "at least one captioned picture",
                cure="Add those that lack, or take their pictures out of the set." if total else "Check the source.",
            )
        if self.masked:
            for bucket in set(self.counts) - self.masked:
                for _ in range(self.counts[bucket]):
                    self._append("masks", bucket, _whole_mask(bucket))
        manifest = PackedManifest(
            recipe=PACKED_RECIPE,
            recipe_version=PACKED_VERSION,
            source=", ".join(str(subset.source) for subset in subsets),
            counts={f"{bucket.width}x{bucket.height}": self.counts[bucket] for bucket in sorted(self.counts)},
            broken=report.broken,
            empty=report.empty,
            sha256={path.name: file_sha256(path) for path in sorted(self.part.iterdir())},
            subsets={subset.name: subset.rules for subset in subsets if subset.rules != PLAIN},
            masks=bool(self.masked),
            conditions=self.conditioned > 0,
        )
        (self.part / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _append(self, kind: str, bucket: Bucket, data: bytes) -> None:
        with (self.part / _file(bucket, kind)).open("ab") as stream:
            stream.write(data)


def _whole_mask(bucket: Bucket) -> bytes:
    return b"\xff" * (bucket.width * bucket.height)


def _file(bucket: Bucket, kind: str = "pictures") -> str:
    return f"{kind}-{bucket.width}x{bucket.height}.bin"


class PackedPictures:
    """A packed set, opened for reading; the pictures are memory-mapped.

    Attributes:
        manifest: what the set says about itself.
        records: one a picture.
    """

    def __init__(self, folder: Path, manifest: PackedManifest, records: tuple[PackedRecord, ...]) -> None:
        self.folder, self.manifest, self.records = folder, manifest, records
        self._pixels = {bucket: self._map(bucket, "pictures", (4,)) for bucket in self.buckets}
        self._masks = {bucket: self._map(bucket, "masks", ()) for bucket in self.buckets if manifest.masks}
        conditions = self.buckets if manifest.conditions else ()
        self._conditions = {bucket: self._map(bucket, "conditions", (4,)) for bucket in conditions}

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
        if manifest.recipe != PACKED_RECIPE or manifest.recipe_version not in READABLE:
            given = f"{manifest.recipe} version {manifest.recipe_version}"
            raise DataError(str(path), given=given, expected=f"{PACKED_RECIPE} version 1 to {PACKED_VERSION}")
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

    @property
    def to_learn(self) -> int:
        """Pictures of what is to be learnt: all but those for regularisation."""
        return sum(not record.regularisation for record in self.records)

    def indices(self, split: Split = "train") -> NDArray[np.int64]:
        """Numbers of one split, ascending. Of two or more to learn at least one is held out."""
        held_out = {i for i, record in enumerate(self.records) if record.held_out}
        if not held_out and self.to_learn > 1:
            # By content, so copies stay together.
            least = min(record.sha256 for record in self.records if not record.regularisation)
            held_out = {i for i, one in enumerate(self.records) if one.sha256 == least and not one.regularisation}
        keep = [i for i in range(len(self.records)) if split == "all" or (i in held_out) == (split == "held_out")]
        return np.array(keep, np.int64)

    def weighted(self, split: Split = "train") -> NDArray[np.int64]:
        """As `indices`, each as often as an epoch shows it.

        Repeats count against one another only. Regularisation pictures come as often as the others together, as nearly
        as whole repeats allow, and each at least once.
        """
        rows = self.indices(split)
        is_class = np.array([self.records[row].regularisation for row in rows], bool)
        parts = [self._repeated(rows[~is_class]), self._repeated(rows[is_class])]
        if all(len(part) for part in parts):
            longest = max(map(len, parts))
            parts = [np.repeat(part, max(round(longest / len(part)), 1)) for part in parts]
        return np.sort(np.concatenate(parts), kind="stable")

    def _repeated(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        repeats = np.array([self.records[row].repeats for row in rows], np.int64)
        return np.repeat(rows, repeats // np.gcd.reduce(repeats)) if len(rows) else rows

    def picture(self, index: int) -> Picture:
        """One picture, uint8 [H,W,4] of its bucket."""
        return self._row(self._pixels, index)

    def mask(self, index: int) -> Mask | None:
        """Where the loss of a picture counts, uint8 [H,W] of its bucket; None in a set without masks."""
        return self._row(self._masks, index) if self.manifest.masks else None

    def condition(self, index: int) -> Picture | None:
        """What a picture is painted from, uint8 [H,W,4] of its bucket; None in a set without conditions."""
        return self._row(self._conditions, index) if self.manifest.conditions else None

    def _row(self, planes: dict[Bucket, NDArray[np.uint8]], index: int) -> NDArray[np.uint8]:
        record = self.records[index]
        pixels: NDArray[np.uint8] = planes[Bucket(record.width, record.height)][record.row]
        return pixels

    def rules(self, index: int) -> SubsetRules:
        """How a picture and its captions are varied, as its subset says."""
        return self.manifest.subsets.get(self.records[index].subset, PLAIN)

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

    def _map(self, bucket: Bucket, kind: str, channels: tuple[int, ...]) -> NDArray[np.uint8]:
        path = self.folder / _file(bucket, kind)
        shape = (self.manifest.counts[f"{bucket.width}x{bucket.height}"], bucket.height, bucket.width, *channels)
        size = path.stat().st_size if path.is_file() else -1
        if size != int(np.prod(shape)):
            raise DataError(str(path), given=f"{size} bytes", expected=f"uint8 {shape}", cure="Build the set again.")
        return np.memmap(path, np.uint8, "r", shape=shape)


@dataclass(frozen=True, slots=True)
class Variety:
    """In how many ways a picture and its caption are shown, besides what its subset says.

    Attributes:
        flip: mirror half of the pictures. Off unless asked for: a caption may speak of left and right.
        templates: sentences with ``{}`` where the caption goes, one drawn for each picture; none shows it as it is.
        captions: rules for the captions of every subset that has none of its own.
    """

    flip: bool = False
    templates: tuple[str, ...] = ()
    captions: CaptionRules = AS_IT_IS

    def flips(self, pictures: PackedPictures, row: int) -> bool:
        """Whether a picture is mirrored half of the time."""
        return self.flip or pictures.rules(row).flip

    def rules(self, pictures: PackedPictures, row: int) -> CaptionRules:
        """The rules for a picture's captions: its subset's, else these."""
        own = pictures.rules(row).captions
        return own if own != AS_IT_IS else self.captions

    def draws_captions(self, pictures: PackedPictures) -> bool:
        """Whether the same caption may read differently another time."""
        subsets = {record.subset: row for row, record in enumerate(pictures.records)}
        return any(self.rules(pictures, row).draws for row in subsets.values())

    def caption(self, pictures: PackedPictures, row: int, generator: np.random.Generator) -> str:
        """One of a picture's captions as it is shown this time; "" if it is dropped."""
        captions = pictures.records[row].captions
        caption = captions[int(generator.integers(len(captions)))]
        frame = self.templates[int(generator.integers(len(self.templates)))] if self.templates else "{}"
        shown = self.rules(pictures, row).applied(caption, generator)
        return "" if shown is None else frame.replace("{}", shown)

    def example(self, pictures: PackedPictures, row: int, generator: np.random.Generator) -> Example:
        """Picture `row` with one of its captions, as `generator` draws them."""
        picture = np.array(pictures.picture(row))
        if self.flips(pictures, row) and generator.random() < 0.5:
            picture = np.ascontiguousarray(picture[:, ::-1])
        return Example(picture, self.caption(pictures, row, generator))


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
        manifest, variety = self.pictures.manifest, self.variety
        digests = json.dumps(manifest.sha256, sort_keys=True)
        settings: tuple[object, ...] = (manifest.recipe_version, self.seed, self.split, variety.flip)
        if variety.templates:
            settings += (variety.templates,)
        if variety.captions != AS_IT_IS or manifest.subsets:
            settings += (variety.captions.to_json(), *(f"{n}={r.to_json()}" for n, r in manifest.subsets.items()))
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
