"""Reader of a built `stickers` set: memory-mapped pictures, their records, and the held-out split.

Layout of the folder (everything but the pictures is text or a zip, readable with any tool):

    manifest.json   recipe, version, size, counts, source packages with integrity, sha256 of the other files
    pictures.npy    uint8 [N,S,S,4], straight alpha; row i belongs to line i of records.jsonl
    records.jsonl   one `Sticker` a line
    sources.zip     STYLE/CODE.svg or STYLE/CODE.webp: what the pictures were rendered from
    CREDITS.md      authors and licences; goes with every model trained on the set
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gouache.checkpoints.hub import file_sha256
from gouache.colours import Picture
from gouache.config import Config
from gouache.data.drawing import render_source
from gouache.errors import DataError, unknown_name

RECIPE = "stickers"
RECIPE_VERSION = 1
HELD_OUT_ONE_IN = 20
Split = Literal["train", "held_out", "all"]


def is_held_out(code: str, style: str) -> bool:
    """Whether a (concept, style) pair belongs to the held-out split: crc32 of code + style, one in 20."""
    return zlib.crc32((code + style).encode()) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True)
class Sticker:
    """What is known about one picture.

    Attributes:
        index: row in the pictures.
        code: the concept: code points in lower-case hexadecimal joined by ``-``, without FE0F.
        style: key of the style: noto, twemoji, flat or 3d.
        label: short English name.
        keywords: English keywords.
        zh_label: short Chinese name.
        zh_keywords: Chinese keywords.
        group: coarse group key, for example ``"food-drink"``.
        subgroup: fine group key, for example ``"food-fruit"``.
        file: name of its source within sources.zip.
        source: package@version it comes from.
        licence: SPDX identifier.
    """

    index: int
    code: str
    style: str
    label: str
    keywords: tuple[str, ...]
    zh_label: str
    zh_keywords: tuple[str, ...]
    group: str
    subgroup: str
    file: str
    source: str
    licence: str

    @property
    def held_out(self) -> bool:
        """Whether this pair must never be trained on."""
        return is_held_out(self.code, self.style)


class SourcePackage(Config):
    """A package the set was built from."""

    name: str
    version: str
    integrity: str
    licence: str


class StickerManifest(Config):
    """The manifest of a built set."""

    recipe: str
    recipe_version: int
    size: int
    count: int
    counts: dict[str, int]
    """Pictures by style."""
    packages: tuple[SourcePackage, ...]
    sha256: dict[str, str]
    """Digest of each other file of the folder."""


class Stickers:
    """A built set, opened for reading.

    Pictures are memory-mapped, so opening takes a fraction of a second and many processes share the pages.

    Attributes:
        manifest: what the set says about itself.
        records: one `Sticker` a picture.
        pictures: uint8 [N,S,S,4], read-only.
    """

    def __init__(
        self, folder: Path, manifest: StickerManifest, records: tuple[Sticker, ...], pictures: Picture
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.records = records
        self.pictures = pictures
        self._by_key = {(record.code, record.style): record.index for record in records}

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder that `gouache data build stickers` made.

        Raises:
            DataError: the folder is absent, is no such set, or its files do not belong together.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        records = tuple(_read_records(folder / "records.jsonl"))
        try:
            pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                str(folder / "pictures.npy"), given=str(error), expected="a NumPy array", cure=REBUILD
            ) from error
        expected = (manifest.count, manifest.size, manifest.size, 4)
        if pictures.shape != expected or pictures.dtype != np.uint8 or len(records) != manifest.count:
            given = f"pictures {pictures.dtype} {pictures.shape} and {len(records)} records"
            raise DataError(str(folder), given=given, expected=f"uint8 {expected} and as many records", cure=REBUILD)
        return cls(folder, manifest, records, pictures)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.manifest.size

    @property
    def styles(self) -> tuple[str, ...]:
        """The style keys of this set, in the order of the records."""
        return tuple(self.manifest.counts)

    def indices(self, split: Split = "train") -> NDArray[np.int64]:
        """Rows of one split, ascending. ``"train"`` never holds a held-out pair."""
        keep = [r.index for r in self.records if split == "all" or r.held_out == (split == "held_out")]
        return np.array(keep, np.int64)

    def find(self, code: str, style: str) -> int:
        """Row of a (concept, style) pair.

        Raises:
            UnknownName: no such pair; the nearest code of that style is offered.
        """
        if (code, style) not in self._by_key:
            raise unknown_name("sticker", f"{code} {style}", (f"{c} {s}" for c, s in self._by_key if s == style))
        return self._by_key[code, style]

    def source(self, index: int) -> bytes:
        """The SVG or WebP file that picture `index` was rendered from."""
        with zipfile.ZipFile(self.folder / "sources.zip") as archive:
            return archive.read(self.records[index].file)

    def render(self, index: int, size: int) -> Picture:
        """Picture `index` rendered anew from its source at another size. [size,size,4]"""
        return render_source(self.records[index].file, self.source(index), size)

    def verify(self) -> None:
        """Compare every file with the manifest's sha256.

        Raises:
            DataError: a file is missing or has changed.
        """
        for name, digest in self.manifest.sha256.items():
            path = self.folder / name
            actual = file_sha256(path) if path.is_file() else "no file"
            if actual != digest:
                raise DataError(str(path), given=actual, expected=f"sha256 {digest}", cure=REBUILD)


REBUILD = "Build the set again with `gouache data build stickers DIR`."


def read_manifest(folder: Path) -> StickerManifest:
    """Read a set's manifest.

    Raises:
        DataError: the folder or the manifest is absent, or it belongs to another recipe or version.
        ConfigError: the manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        given = "no manifest.json" if folder.is_dir() else "no such folder"
        raise DataError(str(folder), given=given, expected="a built stickers set", cure=REBUILD)
    manifest = StickerManifest.from_json(path.read_text(encoding="utf-8"), where=str(path))
    if (manifest.recipe, manifest.recipe_version) != (RECIPE, RECIPE_VERSION):
        given = f"{manifest.recipe} version {manifest.recipe_version}"
        raise DataError(str(path), given=given, expected=f"{RECIPE} version {RECIPE_VERSION}", cure=REBUILD)
    return manifest


def _read_records(path: Path) -> list[Sticker]:
    names = [field.name for field in fields(Sticker)]
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        values: list[dict[str, Any]] = [
            {name: tuple(v) if isinstance(v := row[name], list) else v for name in names} for row in rows
        ]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(str(path), given=str(error), expected="one record a line", cure=REBUILD) from error
    return [Sticker(**value) for value in values]
