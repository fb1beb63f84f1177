"""The dataset config of kohya's sd-scripts (``--dataset_config``), TOML or JSON, as subsets of one set of ours.

Tables [general], [[datasets]] and [[datasets.subsets]]; what a table leaves out is taken from the one above it.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from gouache.config import Config
from gouache.data.buckets import Bucket, make_buckets
from gouache.data.readers import Reading
from gouache.data.subsets.caption_rules import CaptionRules
from gouache.data.subsets.planes import CAPTION_SUFFIXES
from gouache.data.subsets.subset import Subset, SubsetRules
from gouache.errors import ConfigError, DataError

SUFFIXES = (".toml", ".json")
OWN = "It isn't supported: leave it out, or set it to false or 0."
REFUSED = {
    "color_aug": OWN,
    "random_crop": "Pictures are cut in the middle: leave it out, or cut them beforehand.",
    "face_crop_aug_range": "Pictures are cut in the middle: leave it out, or cut them beforehand.",
    "caption_dropout_every_n_epochs": "Say caption_dropout_rate = 1/n, which drops as many.",
    "token_warmup_step": OWN,
    "secondary_separator": OWN,
    "enable_wildcard": "Write one caption a line: one of them is drawn each time.",
    "custom_attributes": OWN,
    "validation_split": "One picture in twenty is held out by its content: leave it out.",
}
"""Known keys of sd-scripts that can't be obeyed, with what to do; set to nothing they are passed over."""
NOTED = {
    "batch_size": "is passed over: it belongs to [STAGE.loop] of the training's config",
    "bucket_no_upscale": "is passed over: smaller pictures are scaled up, and counted above",
    "network_multiplier": "is passed over",
    "resize_interpolation": "is passed over: pictures are scaled by Lanczos",
    "skip_image_resolution": "is passed over",
    "cache_info": "is passed over",
    "token_warmup_min": "is passed over",
    "validation_seed": "is passed over",
}
"""Known keys that make no difference here, or another."""


class SubsetKeys(Config):
    """What may stand in all three tables, about captions and pictures."""

    elsewhere: ClassVar[Mapping[str, str]] = REFUSED
    num_repeats: int | None = Field(default=None, ge=1)
    """How often a picture is shown in one pass through the set."""
    caption_extension: str | None = None
    """Ending of the files with captions, such as .txt or .caption; without it, several are looked for."""
    shuffle_caption: bool | None = None
    """Put a caption's tags into another order each time."""
    keep_tokens: int | None = Field(default=None, ge=0)
    """The first tags, so many of them, stay in front and are never dropped."""
    keep_tokens_separator: str | None = None
    """Where a caption holds it, for example "|||", the tags before it stay instead, and those behind a second one."""
    caption_separator: str | None = None
    """What stands between two tags."""
    caption_prefix: str | None = None
    """Words in front of every caption, a trigger word for example; never moved or dropped."""
    caption_suffix: str | None = None
    """Words behind every caption; never moved or dropped."""
    caption_dropout_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of captions that are left out whole."""
    caption_tag_dropout_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of the tags, but those that are kept, that are left out."""
    flip_aug: bool | None = None
    """Mirror half of the pictures."""
    alpha_mask: bool | None = None
    """Take a picture's alpha channel as the mask of the loss."""


class GeneralTable(SubsetKeys):
    """What may stand in [general] and [[datasets]]."""

    resolution: int | tuple[int, int] | str | None = None
    """Side of the square pictures are brought to, in pixels; two sides must be alike."""
    enable_bucket: bool | None = None
    """Keep shapes of pictures, in buckets of like area; else all become squares."""
    min_bucket_reso: int | None = Field(default=None, ge=1)
    """Shortest side of a bucket in pixels."""
    max_bucket_reso: int | None = Field(default=None, ge=1)
    """Longest side of a bucket in pixels."""
    bucket_reso_steps: int | None = Field(default=None, ge=8)
    """What the sides of buckets are multiples of; a divisor of the resolution."""


class SubsetTable(SubsetKeys):
    """A table [[datasets.subsets]]."""

    image_dir: str
    """Folder of the pictures, from the file's own folder or from the current one."""
    class_tokens: str | None = None
    """Caption of pictures that have none."""
    is_reg: bool = False
    """Whether these are pictures of the class, for prior preservation."""
    conditioning_data_dir: str | None = None
    """Folder of the conditions of a ControlNet, by the pictures' names."""
    metadata_file: str | None = None
    """A table of captions (JSON or JSON lines) beside the files."""


class DatasetTable(GeneralTable):
    """A table [[datasets]]."""

    subsets: tuple[SubsetTable, ...] = Field(min_length=1)


class DatasetFile(Config):
    """The whole file."""

    elsewhere: ClassVar[Mapping[str, str]] = REFUSED
    general: GeneralTable = GeneralTable()
    datasets: tuple[DatasetTable, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """What a dataset config describes.

    Attributes:
        subsets: its folders.
        size: side of the square bucket in pixels; None where the file doesn't say.
        bucketing: whether shapes are kept.
        notes: known keys that make no difference here.
    """

    subsets: tuple[Subset, ...]
    size: int | None
    bucketing: Bucketing
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bucketing:
    """Which buckets a dataset config asks for.

    Attributes:
        enabled: keep shapes, in buckets of like area; else all pictures become squares.
        shortest, longest: limits of a bucket's sides in pixels.
        step: what sides are multiples of; None takes an eighth of the size.
    """

    enabled: bool = False
    shortest: int = 1
    longest: int = 1 << 20
    step: int | None = None

    def buckets(self, size: int) -> tuple[Bucket, ...]:
        """The buckets for squares of `size` pixels.

        Raises:
            ConfigError: no bucket is within the limits.
        """
        if not self.enabled:
            return (Bucket(size, size),)
        step = max(8, size // 8) if self.step is None else self.step
        if size % step:
            given = f"{step} for a resolution of {size}"
            raise ConfigError("bucket_reso_steps", given=given, expected="a divisor of it")
        sides = range(self.shortest, self.longest + 1)
        found = tuple(one for one in make_buckets(size, step=step) if one.width in sides and one.height in sides)
        if not found:
            given = f"{self.shortest} to {self.longest} for a resolution of {size}"
            raise ConfigError("min_bucket_reso and max_bucket_reso", given=given, expected="limits around it")
        return found


def read_dataset_config(path: Path) -> DatasetConfig:
    """Read a dataset config of sd-scripts.

    Folders in it are taken from the file's own folder, or from the current one if they aren't there.

    Raises:
        DataError: no such file.
        ConfigError: neither TOML nor JSON, an unknown key (with the nearest known one), one that isn't supported, or
            datasets of several resolutions.
    """
    values, notes = _without_passed_over(_parsed(path), str(path))
    file = DatasetFile.from_dict(values, where=str(path))
    layouts = {_layout(file, dataset, path) for dataset in file.datasets}
    if len(layouts) > 1:
        cure = "Make a set of each, and train on one."
        given = f"{len(layouts)} resolutions or kinds of buckets"
        raise ConfigError(f"{path}: datasets", given=given, expected="one for all datasets", cure=cure)
    [(size, bucketing)] = layouts
    tables = [(dataset, subset) for dataset in file.datasets for subset in dataset.subsets]
    names = _names([table.image_dir for _, table in tables])
    subsets = [_subset(n, (own, above, file.general), path) for n, (above, own) in zip(names, tables, strict=True)]
    return DatasetConfig(tuple(subsets), size, bucketing, notes)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise DataError(str(path), given="no such file", expected="a dataset config", cure="Check the path.") from error
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ConfigError(str(path), given=str(error), expected="TOML, or JSON in a file .json") from error
    if not isinstance(values, dict):
        raise ConfigError(str(path), given=type(values).__name__, expected="tables general and datasets")
    return values


def _without_passed_over(values: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tables without known keys that say nothing or make no difference; notes on the latter."""
    notes: Counter[str] = Counter()

    def kept(table: object) -> object:
        if isinstance(table, list):
            return [kept(one) for one in table]
        if not isinstance(table, dict):
            return table
        for key in table.keys() & NOTED.keys():
            notes[f"{where}: {key} {NOTED[key]}"] += 1
        passed = NOTED.keys() | {key for key in table if key in REFUSED and not table[key]}
        return {
            key: kept(value) if key in ("general", "datasets", "subsets") else value
            for key, value in table.items()
            if key not in passed
        }

    return {key: kept(value) for key, value in values.items()}, tuple(sorted(notes))


def _first(key: str, tables: Sequence[Config]) -> Any:
    """What the innermost table that says it says."""
    return next((found for table in tables if (found := getattr(table, key, None)) is not None), None)


def _layout(file: DatasetFile, dataset: DatasetTable, path: Path) -> tuple[int | None, Bucketing]:
    tables = (dataset, file.general)
    enabled, step = bool(_first("enable_bucket", tables)), _first("bucket_reso_steps", tables)
    shortest, longest = _first("min_bucket_reso", tables) or 1, _first("max_bucket_reso", tables) or 1 << 20
    bucketing = Bucketing(enabled, shortest, longest, step) if enabled else Bucketing()
    return _side(_first("resolution", tables), path), bucketing


def _side(resolution: int | tuple[int, int] | str | None, path: Path) -> int | None:
    if resolution is None or isinstance(resolution, int):
        return resolution
    try:
        sides = {int(side) for side in (resolution.split(",") if isinstance(resolution, str) else resolution)}
    except ValueError as error:
        raise ConfigError(f"{path}: resolution", given=repr(resolution), expected="a number of pixels") from error
    if len(sides) > 1:
        cure = "Say one side, with enable_bucket = true for other shapes."
        raise ConfigError(f"{path}: resolution", given=resolution, expected="a square", cure=cure)
    return sides.pop()


def _names(folders: Sequence[str]) -> list[str]:
    """Names that tell subsets apart: their folders', numbered where two are alike."""
    seen: Counter[str] = Counter()
    names = []
    for folder in folders:
        name = Path(folder).name or "pictures"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _subset(name: str, tables: tuple[SubsetTable, DatasetTable, GeneralTable], path: Path) -> Subset:
    table = tables[0]
    conditions = _found(table.conditioning_data_dir, path, f"{path}: conditioning_data_dir")
    suffix = _first("caption_extension", tables)
    rules = CaptionRules(
        prefix=_first("caption_prefix", tables) or "",
        suffix=_first("caption_suffix", tables) or "",
        separator=_first("caption_separator", tables) or ",",
        shuffle=bool(_first("shuffle_caption", tables)),
        keep=_first("keep_tokens", tables) or 0,
        keep_separator=_first("keep_tokens_separator", tables) or "",
        tag_dropout=_first("caption_tag_dropout_rate", tables) or 0.0,
        dropout=_first("caption_dropout_rate", tables) or 0.0,
    )
    return Subset(
        source=_found(table.image_dir, path, f"{path}: image_dir") or "",
        name=name,
        repeats=_first("num_repeats", tables) or 1,
        regularisation=table.is_reg,
        rules=SubsetRules(captions=rules, flip=bool(_first("flip_aug", tables))),
        reading=Reading(
            caption_suffixes=CAPTION_SUFFIXES if suffix is None else (f".{suffix.removeprefix('.')}",),
            missing=table.class_tokens or "",
            masks="alpha" if _first("alpha_mask", tables) else "files",
            conditions=conditions,
            table=_found(table.metadata_file, path, f"{path}: metadata_file"),
        ),
    )


def _found(named: str | None, path: Path, where: str) -> Path | None:
    """A folder or file that the config names: beside the config, or from the current folder."""
    if named is None:
        return None
    places = [path.parent / named, Path(named)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        expected = f"a folder or file, from {path.parent} or from the current folder"
        raise DataError(where, given=f"{named}, which isn't there", expected=expected, cure="Check the path.")
    return found
