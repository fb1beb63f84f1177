"""Draws a scenery, and how a thing stands in it: its shadow, and the snow, grass or water before its foot."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gouache.scenery.kinds import Scenery
from gouache.scenery.nature import SEA, SNOW, flakes, grass, rain
from gouache.scenery.places import DRAWERS
from gouache.scenery.shapes import Dice, FloatArray, Paper, hex_of, rgb

__all__ = ["drawn", "settled", "shaded"]

FINER = 2
"""Points along each side of a pixel whose mean it is."""


def drawn(scenery: Scenery, side: int, seed: int) -> Image.Image:
    """Draw a scenery.

    Args:
        scenery: what.
        side: of the picture, pixels.
        seed: the picture's own.

    Returns:
        Mode RGBA, opaque.
    """
    paper = Paper(np.zeros((side * FINER, side * FINER, 3), np.float32))
    dice = Dice(seed, scenery.place)
    DRAWERS[scenery.place](paper, scenery, dice)
    if scenery.season == "winter" and scenery.place not in ("room", "sky", "space", "moon", "underwater"):
        flakes(paper, dice)
    if scenery.rain and scenery.place not in ("room", "space", "moon", "underwater"):
        rain(paper, dice, 14 if scenery.place == "street" else 22)
    pixels = paper.pixels.reshape(side, FINER, side, FINER, 3).mean((1, 3))
    return Image.fromarray(np.rint(pixels * 255).clip(0, 255).astype(np.uint8)).convert("RGBA")


def shaded(canvas: Image.Image, scenery: Scenery, box: tuple[float, float, float, float]) -> None:
    """Draw the shadow that a thing throws where it will stand.

    Args:
        canvas: mode RGBA, opaque, square; it is changed.
        scenery: that it shows.
        box: left, top, right, bottom of the thing, as fractions.
    """
    if scenery.floats:
        return
    left, _, right, bottom = box
    paper = _paper_of(canvas)
    x, rx = (left + right) / 2, 0.46 * (right - left)
    colour = {"winter": "#5b7fae"}.get(scenery.season, "#1d2440")
    if scenery.place == "sea":
        colour = "#0d3f6b"
    ry = min(0.2 * rx, 0.04)

    def inside(u: FloatArray, v: FloatArray) -> FloatArray:
        away: FloatArray = np.hypot((u - x) / rx, (v - bottom + 0.01) / ry)
        return 1 - away

    paper.lay(
        inside,
        colour,
        alpha=0.3 if scenery.season == "winter" else 0.4,
        box=(x - rx, bottom - ry - 0.02, x + rx, bottom + ry),
        soft=0.5,
    )
    canvas.paste(_picture(paper))


def settled(canvas: Image.Image, scenery: Scenery, box: tuple[float, float, float, float]) -> None:
    """Draw what lies before a thing's foot: snow, grass, water.

    Arguments as in `shaded`.
    """
    if scenery.floats:
        return
    left, _, right, bottom = box
    paper = _paper_of(canvas)
    width, middle = right - left, (left + right) / 2
    if scenery.place == "sea":
        sea = SEA[scenery.light]
        for k, (x, share) in enumerate(((-0.25, 0.34), (0.27, 0.32), (0.0, 0.36))):
            paper.ellipse(middle + x * width, bottom + 0.012, share * width, 0.028 + 0.002 * k, sea[1])
        paper.ellipse(middle - 0.1 * width, bottom + 0.002, 0.42 * width, 0.008, sea[3], alpha=0.9)
        paper.ellipse(middle + 0.2 * width, bottom + 0.026, 0.3 * width, 0.008, sea[3], alpha=0.9)
    elif scenery.place in ("meadow", "hill") and scenery.season == "summer":
        colours = grass(scenery)
        for k in range(int(width / 0.05) + 1):
            x = left + 0.03 + k * 0.05 + 0.012 * (k % 3 - 1)
            for lean in (-0.018, 0.0, 0.018):
                tip = (x + lean, bottom - 0.03 - 0.012 * (k % 2) + abs(lean) * 0.6)
                paper.polygon([(x - 0.012, bottom + 0.014), tip, (x + 0.012, bottom + 0.014)], colours[3])
    elif scenery.season == "winter" and scenery.place not in ("room", "moon"):
        row, column = (min(int(v * paper.side), paper.side - 1) for v in (bottom + 0.07, middle))
        snow = hex_of(paper.pixels[row, column] * 0.6 + 0.4 * rgb(SNOW[scenery.light][0]))
        for x, share in ((-0.3, 0.2), (0.02, 0.26), (0.31, 0.2)):
            paper.ellipse(middle + x * width, bottom + 0.016, share * width, 0.028, snow)
    canvas.paste(_picture(paper))


def _paper_of(canvas: Image.Image) -> Paper:
    return Paper(np.asarray(canvas.convert("RGB")).astype(np.float32) / np.float32(255))


def _picture(paper: Paper) -> Image.Image:
    return Image.fromarray(np.rint(paper.pixels * 255).clip(0, 255).astype(np.uint8)).convert("RGBA")
