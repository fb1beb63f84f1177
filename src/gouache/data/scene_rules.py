"""Rules that judge an RGBA picture against a scene's truth: colour, count, place, relation, background.

They look at pixels only and know nothing of the generator, so they judge a model's picture as well as a composed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gouache.colours import NAMES, Picture, main_colour, named_indices, rgb_to_oklab
from gouache.errors import ShapeMismatch

SceneKind = Literal["coloured", "placed", "counted", "related", "grounded"]
KINDS: tuple[SceneKind, ...] = get_args(SceneKind)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        row: its row in the stickers.
        code: its concept.
        noun: what the caption calls it.
        colour: the colour that the caption gives it, measured on the picture; None where it gives none.
    """

    row: int
    code: str
    noun: str
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """The claims of a scene's caption; None where it makes none.

    Attributes:
        kind: what the scene is about.
        objects: one, or two for a relation, in the order of the caption.
        style: style of all objects.
        count: how many copies of the object there are.
        position: the ninth of the picture it lies in, for example ``"top left"``.
        relation: where the first object lies, seen from the second.
        background: name of the ground's colour; None is transparent.
    """

    kind: SceneKind
    objects: tuple[SceneObject, ...]
    style: str
    count: int | None = None
    position: str | None = None
    relation: str | None = None
    background: str | None = None


PixelMask = NDArray[np.bool_]

GRID = 64
BACKGROUND_SHARE = 0.6
COLOUR_SHARE = 0.4
FOREGROUND_DISTANCE = 0.1
SMALLEST_PART = 0.3
MARGIN = 0.08


@dataclass(frozen=True, slots=True)
class SceneVerdict:
    """What the rules found; None where the truth makes no claim."""

    colour: bool | None = None
    count: bool | None = None
    position: bool | None = None
    relation: bool | None = None
    background: bool | None = None

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return False not in (self.colour, self.count, self.position, self.relation, self.background)


def judge(picture: Picture, truth: SceneTruth) -> SceneVerdict:
    """Check every claim of a scene's truth.

    Args:
        picture: uint8 [S,S,4], straight alpha.
        truth: what the caption claims.

    Raises:
        ShapeMismatch: the picture is not uint8 [H,W,4].
    """
    colours = [thing.colour for thing in truth.objects]
    return SceneVerdict(
        colour=check_colour(picture, colours[0]) if len(colours) == 1 and colours[0] else None,
        count=check_count(picture, truth.count) if truth.count is not None else None,
        position=check_position(picture, truth.position) if truth.position else None,
        relation=(
            check_relation(picture, truth.relation, colours[0], colours[1])
            if truth.relation and colours[0] and colours[1]
            else None
        ),
        background=check_background(picture, truth.background),
    )


def check_background(picture: Picture, name: str | None) -> bool:
    """Whether the rim of the picture is of the named colour, or, for None, transparent."""
    rim = _rim(picture)
    if name is None:
        return float((rim[:, 3] < 128).mean()) >= BACKGROUND_SHARE
    hit = (rim[:, 3] > 127) & (named_indices(rim[:, :3]) == NAMES.index(name))
    return float(hit.mean()) >= BACKGROUND_SHARE


def check_colour(picture: Picture, name: str) -> bool:
    """Whether the foreground's most frequent colour is the named one and covers 40 % of it."""
    main = main_colour(picture[foreground(picture)])
    return main.name == name and main.share >= COLOUR_SHARE


def check_count(picture: Picture, count: int) -> bool:
    """Whether the foreground falls into so many parts; parts under 30 % of the median of the large ones don't count."""
    return count_parts(foreground(picture)) == count


def check_position(picture: Picture, position: str) -> bool:
    """Whether the foreground's middle lies in that third of the picture, in both directions."""
    ys, xs = np.nonzero(foreground(picture))
    if len(ys) == 0:
        return False
    height, width = picture.shape[:2]
    return position == place_name((xs.min() + xs.max() + 1) / 2 / width, (ys.min() + ys.max() + 1) / 2 / height)


def check_relation(picture: Picture, relation: str, first: str, second: str) -> bool:
    """Whether what is of the first colour lies left, right, above or below of what is of the second.

    Args:
        picture: uint8 [S,S,4].
        relation: ``"left"``, ``"right"``, ``"above"`` or ``"below"``.
        first: colour of the object that the sentence begins with.
        second: colour of the other.
    """
    names = named_indices(picture[..., :3])
    mask = foreground(picture)
    places = []
    for name in (first, second):
        ys, xs = np.nonzero(mask & (names == NAMES.index(name)))
        if len(ys) < 0.01 * mask.size:
            return False
        places.append((np.median(xs) / picture.shape[1], np.median(ys) / picture.shape[0]))
    (x0, y0), (x1, y1) = places
    return bool({"left": x1 - x0, "right": x0 - x1, "above": y1 - y0, "below": y0 - y1}[relation] > MARGIN)


def place_name(x: float, y: float) -> str:
    """The name of a point's ninth of the picture; x and y in 0..1."""
    row, column = min(int(y * 3), 2), min(int(x * 3), 2)
    name = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip()
    return name or "center"


def foreground(picture: Picture) -> PixelMask:
    """Pixels that are not background: opaque ones, or, on an opaque ground, those unlike the rim's colour. [H,W]"""
    if picture.ndim != 3 or picture.shape[2] != 4 or picture.dtype != np.uint8:
        raise ShapeMismatch("picture", given=f"{picture.dtype} {picture.shape}", expected="uint8 [H,W,4]")
    rim = _rim(picture)
    opaque: PixelMask = picture[..., 3] > 127
    if float((rim[:, 3] < 128).mean()) >= 0.5:
        return opaque
    ground = np.median(rgb_to_oklab(rim[rim[:, 3] > 127][:, :3]), axis=0)
    far: PixelMask = np.linalg.norm(rgb_to_oklab(picture[..., :3]) - ground, axis=-1) > FOREGROUND_DISTANCE
    return opaque & far


def count_parts(mask: PixelMask) -> int:
    """Number of separate parts, small crumbs left out."""
    sizes = part_sizes(mask)
    if len(sizes) == 0:
        return 0
    large = sizes[sizes >= SMALLEST_PART * sizes.max()]
    return len(large)


def part_sizes(mask: PixelMask) -> NDArray[np.int64]:
    """Areas of the connected parts (8 neighbours) of a mask, seen on a 64 x 64 grid."""
    rows = (np.arange(GRID) * mask.shape[0]) // GRID
    columns = (np.arange(GRID) * mask.shape[1]) // GRID
    coarse = mask[np.ix_(rows, columns)]
    labels = np.where(coarse, np.arange(1, GRID * GRID + 1).reshape(GRID, GRID), 0)
    while True:
        # Every cell takes the greatest label around it; along a row and a column at once it spreads in few rounds.
        spread = _greatest_around(labels) * coarse
        for axis in (0, 1):
            spread = _sweep(spread, coarse, axis)
        if np.array_equal(spread, labels):
            areas: NDArray[np.int64] = np.bincount(labels.ravel())[1:]
            return areas[areas > 0]
        labels = spread


def _greatest_around(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    padded = np.pad(labels, 1)
    shifted = [padded[y : y + GRID, x : x + GRID] for y in range(3) for x in range(3)]
    greatest: NDArray[np.int64] = np.maximum.reduce(shifted)
    return greatest


def _sweep(labels: NDArray[np.int64], coarse: PixelMask, axis: int) -> NDArray[np.int64]:
    """Carry labels along runs of set cells, forwards and back."""
    spread = np.moveaxis(labels.copy(), axis, 0)
    cells = np.moveaxis(coarse, axis, 0)
    for order in (range(1, GRID), range(GRID - 2, -1, -1)):
        step = 1 if order.step > 0 else -1
        for i in order:
            spread[i] = np.maximum(spread[i], spread[i - step]) * cells[i]
    return np.moveaxis(spread, 0, axis)


def _rim(picture: Picture) -> NDArray[np.uint8]:
    """The pixels of the outer 4 % on each side. [n,4]"""
    width = max(1, round(0.04 * min(picture.shape[:2])))
    parts = (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:])
    return np.concatenate([part.reshape(-1, picture.shape[2]) for part in parts])
