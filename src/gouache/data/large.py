"""Large pictures, what an upscaler learns from: the sources of a built `stickers` set, or anyone's own pictures.

Vector sources are drawn at any size. Raster sources are never enlarged: they would teach blur.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from gouache.colours import Picture
from gouache.data.drawing import fitted, lay, on_ground, render_source
from gouache.data.packed import read_subset
from gouache.data.readers import ReadReport
from gouache.data.stickers import HELD_OUT_ONE_IN, Split, Stickers
from gouache.data.subsets.subset import Subset
from gouache.data.whole_folder import whole_folder
from gouache.errors import DataError, InvalidInput
from gouache.files import atomic_write

LARGE_VERSION = 1
GROUP_SHARE, GROUND_SHARE, SWAP_SHARE, MOVE_SHARE = 0.3, 0.3, 0.5, 0.4
MOST_SIDES = 2
"""Own pictures are shrunk until their shorter side has so many sides of a target: a photograph's single pixels are
blurred by its sensor, and crops are then a good part of what it shows."""
NAMED = 5


class EndlessLarge(Protocol):
    """Large pictures without end."""

    def picture(self, number: int) -> Picture:
        """The picture with this number, from 0: a pure function. [size,size,4]"""
        ...


class LargeSet(Protocol):
    """Pictures that can be shown at a large size."""

    size: int

    def endless(self, seed: int) -> EndlessLarge:
        """Pictures to train on; all that is drawn for one is a function of (seed, number)."""
        ...

    def held_out(self, count: int) -> list[Picture]:
        """At most `count` pictures [size,size,4] to judge by."""
        ...


class LargeStickers:
    """Every picture of a set at a large size, drawn when it is first asked for and kept as a PNG.

    Args:
        stickers: the set.
        size: side in pixels.
        cache: folder for the drawn pictures; one set and size each, as its name says.
    """

    def __init__(self, stickers: Stickers, size: int, cache: Path) -> None:
        if size < stickers.size:
            raise InvalidInput("size", given=size, expected=f"at least the set's {stickers.size}")
        self.stickers, self.size = stickers, size
        sources = json.dumps(stickers.manifest.sha256, sort_keys=True)
        mark = hashlib.sha256(f"{LARGE_VERSION}/{sources}".encode()).hexdigest()[:12]
        self.folder = cache / f"large-{size}-{mark}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sources = zipfile.ZipFile(stickers.folder / "sources.zip")

    def picture(self, row: int) -> Picture:
        """Picture `row`: [size,size,4], or smaller if its source is no vectors and has fewer pixels.

        Raises:
            DataError: the source can't be drawn.
        """
        path = self.folder / f"{row:06d}.png"
        if path.is_file():
            return np.asarray(Image.open(path))
        name = self.stickers.records[row].file
        content = self._sources.read(name)
        side = self.size if name.endswith(".svg") else min(self.size, max(_size_of(content, name)))
        drawn = render_source(name, content, side)
        with atomic_write(path) as file:
            Image.fromarray(drawn).save(file, "PNG", compress_level=1)
        return drawn

    def endless(self, seed: int) -> LargePictures:
        """Pictures of the training split, without end."""
        return LargePictures(self, seed)

    def held_out(self, count: int) -> list[Picture]:
        """As `held_out_large`."""
        return held_out_large(self, count)

    def is_vector(self, row: int) -> bool:
        """Whether the source of picture `row` can be drawn at any size."""
        return self.stickers.records[row].file.endswith(".svg")


class LargePictures:
    """Large stickers alone, moved, in groups of up to four, on grounds, with swapped colours; endless.

    Args:
        large: the stickers.
        seed: of everything drawn, 0 to 2**64 - 1.
        split: whose stickers are used.
    """

    def __init__(self, large: LargeStickers, seed: int, split: Split = "train") -> None:
        self.large, self.seed, self.split = large, seed, split
        self.rows = large.stickers.indices(split)
        if len(self.rows) == 0:
            raise DataError(str(large.stickers.folder), given=f"no picture in split {split}", expected="at least one")

    def picture(self, number: int) -> Picture:
        """The picture with this number, from 0 without end: a pure function. [size,size,4]"""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        # Every sticker leads one picture in len(rows), so that rare ones are not left to chance.
        row = int(self.rows[(number * 7919) % len(self.rows)])
        if not self.large.is_vector(row) or generator.random() < GROUP_SHARE:
            others = self.rows[generator.integers(len(self.rows), size=3)]
            picture = self._group([row, *(int(other) for other in others)], generator)
        else:
            picture = self._alone(self.large.picture(row), generator)
        if generator.random() < SWAP_SHARE:
            picture = picture[..., [*generator.permutation(3), 3]]
        if generator.random() < GROUND_SHARE:
            red, green, blue = (int(v) for v in generator.integers(0, 256, 3))
            picture = on_ground(picture, (red, green, blue))
        return _turned(picture, generator)

    def _alone(self, picture: Picture, generator: np.random.Generator) -> Picture:
        if generator.random() >= MOVE_SHARE:
            return picture
        sprite = fitted(picture, round(self.large.size * float(generator.uniform(0.6, 0.85))))
        canvas = self._canvas()
        x, y = (int(v) for v in generator.integers(0, self.large.size - sprite.shape[0] + 1, 2))
        lay(canvas, sprite, x, y)
        return canvas

    def _group(self, rows: list[int], generator: np.random.Generator) -> Picture:
        canvas, cell = self._canvas(), self.large.size // 2
        for place, row in enumerate(rows):
            whole = self.large.picture(row)
            side = min(round(cell * float(generator.uniform(0.6, 1.0))), whole.shape[0])
            x, y = (int(v) for v in generator.integers(0, cell - side + 1, 2))
            lay(canvas, fitted(whole, side), (place % 2) * cell + x, (place // 2) * cell + y)
        return canvas

    def _canvas(self) -> Picture:
        return np.zeros((self.large.size, self.large.size, 4), np.uint8)


def _turned(picture: Picture, generator: np.random.Generator) -> Picture:
    """The picture turned by quarters, half of the time mirrored."""
    turned = np.rot90(picture, int(generator.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if generator.random() < 0.5 else turned)


def held_out_large(large: LargeStickers, count: int) -> list[Picture]:
    """Pictures [size,size,4] of held-out stickers only, spread over the set: vectors as they are, others four by four.

    Args:
        large: the stickers.
        count: at most so many pictures.

    Raises:
        DataError: the set holds out nothing.
    """
    rows = [int(row) for row in large.stickers.indices("held_out")]
    alone = [[row] for row in rows if large.is_vector(row)]
    raster = [row for row in rows if not large.is_vector(row)]
    groups = alone + [raster[i : i + 4] for i in range(0, len(raster) - 3, 4)]
    if not groups:
        raise DataError(str(large.stickers.folder), given="no held-out picture", expected="at least one")
    return [_sheet(large, group) for group in groups[:: max(1, len(groups) // count)][:count]]


def _sheet(large: LargeStickers, rows: list[int]) -> Picture:
    if len(rows) == 1:
        return np.array(large.picture(rows[0]))
    canvas, cell = np.zeros((large.size, large.size, 4), np.uint8), large.size // 2
    for place, row in enumerate(rows):
        sprite = large.picture(row)
        sprite = sprite if sprite.shape[0] <= cell else fitted(sprite, cell)
        lay(canvas, sprite, (place % 2) * cell, (place // 2) * cell)
    return canvas


def _size_of(content: bytes, name: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.size
    except (OSError, ValueError) as error:
        raise DataError(name, given=str(error), expected="a WebP, PNG or JPEG file") from error


class OwnLarge:
    """Anyone's pictures, of which crops are shown.

    One in twenty is held out, by content; of fewer than forty one is, and a picture alone is also judged by.

    Args:
        folder: as `keep_large` wrote it.
        size: side of a crop in pixels.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        # Named by content: the order, and what is held out, don't depend on the files' names.
        names = sorted(path.name for path in folder.glob("*.npy"))
        kept = [name for name in names if int(name[:8], 16) % HELD_OUT_ONE_IN == 0] or names[:1]
        self.judged = kept
        self.shown = [name for name in names if name not in kept] or names

    def endless(self, seed: int) -> OwnCrops:
        """Crops of the pictures that aren't held out, without end."""
        return OwnCrops(self, seed)

    def held_out(self, count: int) -> list[Picture]:
        """The middles of held-out pictures, at most `count`. [size,size,4]"""
        middles = []
        for name in self.judged[:: max(1, len(self.judged) // count)][:count]:
            whole = self.whole(name)
            top, left = ((side - self.size) // 2 for side in whole.shape[:2])
            middles.append(self.cut(whole, top, left))
        return middles

    def whole(self, name: str) -> Picture:
        """One picture [H,W,4], both sides at least `size`; memory-mapped."""
        picture: Picture = np.load(self.folder / name, mmap_mode="r")
        return picture

    def cut(self, whole: Picture, top: int, left: int) -> Picture:
        """The square that begins there. [size,size,4]"""
        return np.array(whole[top : top + self.size, left : left + self.size])


class OwnCrops:
    """Crops of own pictures, turned by quarters and mirrored; endless.

    Args:
        own: the pictures.
        seed: of everything drawn, 0 to 2**64 - 1.
    """

    def __init__(self, own: OwnLarge, seed: int) -> None:
        self.own, self.seed = own, seed

    def picture(self, number: int) -> Picture:
        """The crop with this number, from 0 without end: a pure function. [size,size,4]"""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        epoch, place = divmod(number, len(self.own.shown))
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, 1]))
        whole = self.own.whole(self.own.shown[int(order.permutation(len(self.own.shown))[place])])
        top, left = (int(generator.integers(0, side - self.own.size + 1)) for side in whole.shape[:2])
        return _turned(self.own.cut(whole, top, left), generator)


def keep_large(subsets: Sequence[Subset], folder: Path, size: int, report: ReadReport) -> Iterator[int]:
    """Keep the large ones of anyone's pictures in `folder`; yields the number kept so far.

    Args:
        subsets: where they are.
        folder: absent; it appears whole when this ends.
        size: side of a crop: pictures with a shorter side are left out, and the report says so.
        report: filled with what was left out.

    Raises:
        DataError: no picture is large enough; or as `read_pictures`.
    """
    small: list[str] = []
    with whole_folder(folder) as part:
        for subset in subsets:
            for item in read_subset(subset, report):
                if min(item.picture.shape[:2]) < size:
                    small.append(f"{item.key} ({item.picture.shape[1]}x{item.picture.shape[0]})")
                    continue
                pixels = _shrunk(item.picture, MOST_SIDES * size)
                # A copy under another name is the same file.
                np.save(part / f"{hashlib.sha256(pixels.tobytes()).hexdigest()}.npy", pixels)
                yield report.good - len(small)
        report.good -= len(small)
        names = ", ".join(small[:NAMED]) + (f" and {len(small) - NAMED} more" if len(small) > NAMED else "")
        if not any(part.iterdir()):
            raise DataError(
                str(subsets[0].source),
                given=f"only pictures that are too small: {names}",
                expected=f"pictures of {size} pixels or more on their shorter side, which the upscaler is to paint",
                cure="Give the originals; small ones that were enlarged would teach blur.",
            )
    if small:
        report.notes[f"smaller than {size}x{size}, left out: {names}"] += len(small)


def _shrunk(picture: Picture, least: int) -> Picture:
    """The picture with a shorter side of at most `least`. [h,w,4]"""
    height, width = picture.shape[:2]
    if (short := min(height, width)) <= least:
        return picture
    sides = (max(least, round(width * least / short)), max(least, round(height * least / short)))
    # With colours weighted by their alpha: what is transparent has none.
    return np.asarray(Image.fromarray(picture).convert("RGBa").resize(sides, Image.Resampling.BOX).convert("RGBA"))
