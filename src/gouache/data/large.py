"""Large pictures from the sources of a built `stickers` set: what an upscaler learns from.

Vector sources are drawn at any size. Raster sources are never enlarged: they would teach blur.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from gouache.data.drawing import Picture, fitted, lay, on_ground, render_source
from gouache.data.stickers import Split, Stickers
from gouache.errors import DataError, InvalidInput
from gouache.files import atomic_write

LARGE_VERSION = 1
GROUP_SHARE, GROUND_SHARE, SWAP_SHARE, MOVE_SHARE = 0.3, 0.3, 0.5, 0.4


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
        turned = np.rot90(picture, int(generator.integers(4)))
        return np.ascontiguousarray(turned[:, ::-1] if generator.random() < 0.5 else turned)

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
