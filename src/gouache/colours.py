"""Names of colours by measurement, and turning a picture's main colour into another.

Colours are compared in OKLab / OKLCH (B. Ottosson, 2020): L is lightness 0..1, C chroma, h hue in degrees.
A table over 32 x 32 x 32 colours gives a pixel's name in one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""A picture as uint8 [H,W,4]: red, green, blue, alpha; colours are not multiplied by alpha."""
FloatArray = NDArray[np.float32]

NAMES = (
    "black",
    "gray",
    "white",
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
    "brown",
    "beige",
)
HUES_UP_TO = (
    (42, "red"),
    (78, "orange"),
    (118, "yellow"),
    (172, "green"),
    (215, "teal"),
    (287, "blue"),
    (335, "purple"),
)
"""Upper bound of each name's hue in OKLCH, from 8 degrees on; what is left is pink."""


@dataclass(frozen=True, slots=True)
class Shade:
    """A typical colour of a name in OKLCH."""

    lightness: float
    chroma: float
    hue: float


SHADES = {
    "red": Shade(0.60, 0.20, 27),
    "orange": Shade(0.74, 0.16, 61),
    "yellow": Shade(0.86, 0.17, 97),
    "green": Shade(0.66, 0.17, 145),
    "blue": Shade(0.58, 0.17, 256),
    "purple": Shade(0.53, 0.19, 303),
    "pink": Shade(0.78, 0.13, 355),
    "brown": Shade(0.46, 0.08, 52),
}
"""The colours that objects are turned to."""
NEUTRALS = {"white": (0.85, 0.99), "gray": (0.50, 0.76), "black": (0.14, 0.36)}
"""Lightness that the darker and the lighter parts of an object get which is turned to a colour without hue."""

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_FROM_LMS, _FROM_LAB = np.linalg.inv(_TO_LMS), np.linalg.inv(_TO_LAB)


def rgb_to_oklab(rgb: NDArray[np.uint8]) -> FloatArray:
    """sRGB bytes [...,3] to OKLab [...,3]."""
    linear = _linear_of_byte()[rgb]
    lab: FloatArray = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return lab


def oklab_to_rgb(lab: FloatArray) -> NDArray[np.uint8]:
    """OKLab [...,3] to sRGB bytes [...,3]; colours outside sRGB are clipped."""
    linear = np.clip((lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T, 0, 1)
    # The curve's inverse as a table over 4096 steps: exact to one byte value, and ten times faster than a power.
    encoded: NDArray[np.uint8] = _byte_of_linear()[(np.sqrt(linear) * 4095 + 0.5).astype(np.int32)]
    return encoded


@cache
def _linear_of_byte() -> FloatArray:
    value = np.arange(256, dtype=np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _byte_of_linear() -> NDArray[np.uint8]:
    value = (np.arange(4096) / 4095) ** 2
    encoded = np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def named_indices(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The index in `NAMES` of each colour. [...,3] -> [...]"""
    coarse = (rgb >> 3).astype(np.int32)
    found: NDArray[np.uint8] = _name_table()[(coarse[..., 0] << 10) | (coarse[..., 1] << 5) | coarse[..., 2]]
    return found


def colour_name(rgb: tuple[int, int, int]) -> str:
    """The name of one colour."""
    return NAMES[int(named_indices(np.array(rgb, np.uint8)))]


@cache
def _name_table() -> NDArray[np.uint8]:
    steps = np.arange(32, dtype=np.uint8) * 8 + 4
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = rgb_to_oklab(rgb)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    names = np.full(len(rgb), "pink", dtype="<U6")
    for bound, name in reversed(HUES_UP_TO):
        names[(hue >= 8) & (hue < bound)] = name
    names[(hue < 25) & (lightness > 0.72)] = "pink"
    names[((hue >= 350) | (hue < 8)) & (lightness < 0.5)] = "red"
    names[(hue >= 310) & (hue < 335) & (lightness > 0.82)] = "pink"
    earth = (hue >= 35) & (hue < 95) & (lightness < 0.64) & (chroma < 0.13)
    names[earth | ((hue >= 20) & (hue < 35) & (lightness < 0.45) & (chroma < 0.10))] = "brown"
    names[(hue >= 35) & (hue < 110) & (lightness > 0.82) & (chroma < 0.085)] = "beige"
    names[chroma < 0.04] = "gray"
    names[(chroma < 0.04) & (lightness > 0.92)] = "white"
    names[((chroma < 0.04) & (lightness < 0.38)) | (lightness < 0.22)] = "black"
    return np.array([NAMES.index(name) for name in names], np.uint8)


@dataclass(frozen=True, slots=True)
class MainColour:
    """The colour that covers most of a picture.

    Attributes:
        name: one of `NAMES`.
        share: of the visible pixels, 0..1.
    """

    name: str
    share: float


def main_colour(pixels: NDArray[np.uint8]) -> MainColour:
    """The most frequent colour name among pixels [n,3+]; black with share 0 where there are none."""
    if len(pixels) == 0:
        return MainColour("black", 0.0)
    counts = np.bincount(named_indices(pixels[:, :3]), minlength=len(NAMES))
    best = int(counts.argmax())
    return MainColour(NAMES[best], float(counts[best]) / len(pixels))


def visible(picture: Picture) -> NDArray[np.uint8]:
    """The pixels of a picture that are at least half opaque. [n,4]"""
    return picture[picture[..., 3] > 127]


def recoloured(picture: Picture, shade: Shade) -> Picture:
    """Turn the main colour of a picture towards a shade; far hues, greys and alpha stay as they are.

    The main colour's hue is turned onto the shade's; its lightness and chroma move part of the way, because a name
    such as yellow needs light as well as hue.

    Args:
        picture: [H,W,4].
        shade: where the main colour shall go.
    """
    seen = picture[..., 3] > 0
    pixels = picture[seen]
    lab = rgb_to_oklab(pixels[:, :3])
    chroma, hue = np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
    names = named_indices(pixels[:, :3])
    chromatic = chroma >= 0.04
    if not chromatic.any():
        return picture
    main = chromatic & (names == np.bincount(names[chromatic], minlength=len(NAMES)).argmax())
    main = main if main.any() else chromatic
    centre = lab[main].mean(0)
    main_hue, main_chroma = float(np.degrees(np.arctan2(centre[2], centre[1]))), float(np.hypot(centre[1], centre[2]))
    away = np.abs((hue - main_hue + 180) % 360 - 180)
    weight = np.clip((70 - away) / 25, 0, 1) * np.clip(chroma / 0.04, 0, 1)  # soft, so that no edge shows
    turn = np.radians((shade.hue - main_hue + 180) % 360 - 180) * weight
    stretch = 1 + weight * (np.clip(shade.chroma / max(main_chroma, 0.02), 0.5, 1.8) - 1)
    lift = weight * float(np.clip(shade.lightness - centre[0], -0.3, 0.3))
    cos, sin = np.cos(turn) * stretch, np.sin(turn) * stretch
    turned = np.stack(
        [np.clip(lab[:, 0] + lift, 0, 1), cos * lab[:, 1] - sin * lab[:, 2], sin * lab[:, 1] + cos * lab[:, 2]], 1
    )
    return _repainted(picture, seen, turned)


def tinted(picture: Picture, name: str) -> Picture:
    """Turn a picture to a colour by its name: the main colour's hue, or, of a grey thing, all greys.

    Args:
        picture: [H,W,4].
        name: one of `SHADES`, or of `NEUTRALS`, which take the colour out of the whole picture.
    """
    pixels = visible(picture)
    if not len(pixels):
        return picture
    if name in NEUTRALS:
        return _neutral(picture, pixels, NEUTRALS[name])
    shade = SHADES[name]
    if main_colour(pixels).name not in ("black", "gray", "white"):
        return recoloured(picture, shade)
    seen = picture[..., 3] > 0
    lab = rgb_to_oklab(picture[seen][:, :3])
    grey = np.clip((0.08 - np.hypot(lab[:, 1], lab[:, 2])) / 0.04, 0, 1)[:, None]  # soft, so that no edge shows
    middle = float(rgb_to_oklab(pixels[:, :3])[:, 0].mean())
    hue = np.radians(shade.hue)
    coloured = np.stack(
        [
            np.clip(lab[:, 0] + 0.7 * (shade.lightness - middle), 0, 1),
            np.full(len(lab), shade.chroma * np.cos(hue)),
            np.full(len(lab), shade.chroma * np.sin(hue)),
        ],
        axis=1,
    )
    return _repainted(picture, seen, lab + grey * (coloured - lab))


def _neutral(picture: Picture, pixels: NDArray[np.uint8], bounds: tuple[float, float]) -> Picture:
    """A copy without hue; most lightness lies within the bounds, and what is darkest, as eyes, stays the darkest."""
    dark, light = np.quantile(rgb_to_oklab(pixels[:, :3])[:, 0], (0.1, 0.9))
    dark, light = max(float(dark), 0.02), min(max(float(light), float(dark) + 0.1), 0.99)
    seen = picture[..., 3] > 0
    lab = rgb_to_oklab(picture[seen][:, :3])
    lightness = np.interp(lab[:, 0], (0, dark, light, 1), (0, *bounds, 1))
    return _repainted(picture, seen, np.concatenate([lightness[:, None], 0.1 * lab[:, 1:]], axis=1))


def _repainted(picture: Picture, seen: NDArray[np.bool_], lab: NDArray[np.floating]) -> Picture:
    """A copy with other colours [n,3], in OKLab, where something is seen [H,W]."""
    result = picture.copy()
    result[seen, :3] = oklab_to_rgb(lab.astype(np.float32))
    return result
