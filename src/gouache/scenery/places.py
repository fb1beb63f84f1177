"""The sceneries themselves, one function a place: what is farthest away first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gouache.scenery.kinds import PlaceName, Scenery
from gouache.scenery.nature import (
    LEAVES,
    SEA,
    SNOW,
    cloud,
    fir,
    grass,
    heaven,
    leaves,
    stars,
    tree,
    under,
)
from gouache.scenery.shapes import Dice, FloatArray, Paper, wave

__all__ = ["DRAWERS"]


def _land(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice)
    far, near, bottom = _ground(scenery)
    shift = dice.between(0, 1)
    paper.below(wave(0.6, 0.035, 1.2, shift), far)
    paper.below(wave(0.66, 0.025, 0.9, shift + 0.4), near, bottom)
    if scenery.season == "winter":
        for x, foot, high in ((0.07, 0.71, 0.3), (0.2, 0.68, 0.2), (0.95, 0.72, 0.34), (0.82, 0.68, 0.22)):
            fir(paper, x, foot, high, scenery)
    elif scenery.season == "autumn":
        for x, foot, high, k in (
            (0.08, 0.72, 0.4, 0),
            (0.93, 0.73, 0.44, 1),
            (0.24, 0.67, 0.24, 2),
            (0.77, 0.67, 0.26, 3),
        ):
            tree(paper, x, foot, high, scenery, LEAVES[k])
        leaves(paper, dice, scenery, 0.6)
    else:
        for x, foot, high in ((0.08, 0.69, 0.28), (0.93, 0.7, 0.32), (0.8, 0.66, 0.18)):
            tree(paper, x, foot, high, scenery, "#5fae57")


def _ground(scenery: Scenery) -> tuple[str, str, str]:
    """Far, near, and at the bottom of the picture."""
    if scenery.season == "winter":
        near, far, bottom = SNOW[scenery.light]
        return far, near, bottom
    return grass(scenery)[:3]


def _meadow(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.55)
    far, near, bottom = _ground(scenery)
    shift = dice.between(0, 1)
    paper.below(wave(0.54, 0.02, 1.1, shift), far)
    paper.below(wave(0.6, 0.02, 0.8, shift + 0.3), near, bottom)
    if scenery.season == "autumn":
        leaves(paper, dice, scenery, 0.5)
    if scenery.season != "summer":
        return
    blade = grass(scenery)[3]
    for x, y in dice.apart(14, (0.04, 0.66, 0.96, 0.97), 0.12):
        for lean in (-0.02, 0.0, 0.02):
            paper.polygon([(x - 0.01, y), (x + lean, y - 0.04), (x + 0.01, y)], blade)
    for x, y in dice.apart(12, (0.05, 0.66, 0.95, 0.96), 0.14):
        colour = under(dice.of(("#ffffff", "#ffd84d", "#ff8fb3", "#f6f0ff")), scenery)
        for turn in np.arange(5) * 2 * np.pi / 5:
            paper.disc(x + 0.018 * float(np.cos(turn)), y + 0.018 * float(np.sin(turn)), 0.0125, colour)
        paper.disc(x, y, 0.011, under("#f5a623", scenery))


def _hill(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.75)
    far, near, bottom = _ground(scenery)
    paper.below(wave(0.8, 0.04, 1.0, dice.between(0, 1)), far)
    top = 0.76
    paper.below(lambda x: (top + 1.1 * (x - 0.5) ** 2).astype(np.float32), near, bottom)
    if scenery.season == "autumn":
        leaves(paper, dice, scenery, 0.7)


def _mountains(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.55, clouds=0)
    sunset = scenery.light == "sunset"
    cap = "#ffdccb" if sunset else under("#f6fafe", scenery)
    rocks = (
        ("#b07aa6", "#a06a9b", "#8f5c8e")
        if sunset
        else tuple(under(c, scenery) for c in ("#8ea4c8", "#7f96bd", "#6d86b0"))
    )
    for rock, (x, top, half) in zip(rocks, ((0.8, 0.24, 0.42), (0.18, 0.18, 0.44), (0.52, 0.36, 0.34)), strict=True):
        x, top = x + dice.between(-0.03, 0.03), top + dice.between(-0.02, 0.02)
        foot = 0.72
        slope = half / (foot - top)
        paper.polygon([(x - half, foot), (x + half, foot), (x, top)], rock)
        paper.polygon([(x, foot), (x + half, foot), (x, top)], "#6a4a78" if sunset else under("#5b7099", scenery), 0.35)
        high, half_cap = 0.1, 0.1 * slope
        paper.polygon([(x - half_cap, top + high), (x + half_cap, top + high), (x, top)], cap)
        for middle, deep in ((-0.67, 0.035), (0.0, 0.05), (0.67, 0.035)):
            a, b = (x + (middle + side * 0.34) * half_cap for side in (-1, 1))
            tip = (x + middle * half_cap, top + high + deep)
            paper.polygon([(a, top + high - 0.006), (b, top + high - 0.006), tip], cap)
    far, near, bottom = _ground(scenery)
    shift = dice.between(0, 1)
    paper.below(wave(0.66, 0.02, 1.3, shift), far)
    paper.below(wave(0.71, 0.02, 0.9, shift + 0.3), near, bottom)
    for x, foot, high in ((0.06, 0.75, 0.2), (0.16, 0.73, 0.15), (0.94, 0.76, 0.22), (0.84, 0.73, 0.15)):
        fir(paper, x, foot, high, scenery)


def _water(paper: Paper, scenery: Scenery, horizon: float) -> None:
    light, deep = SEA[scenery.light][:2]
    paper.below(lambda x: np.full_like(x, horizon), light, deep)
    if scenery.rain:
        paper.tint("#a9b4bf", 0.6, horizon)


def _glints(paper: Paper, scenery: Scenery, dice: Dice, box: tuple[float, float, float, float]) -> None:
    """Flat lights on water; at sunset and at night most where sun or moon would throw them."""
    for x, y in dice.apart(9, box, 0.13):
        paper.ellipse(x, y, dice.between(0.05, 0.09), 0.008, SEA[scenery.light][3], alpha=0.75)


def _sand(scenery: Scenery, day: tuple[str, ...], night: tuple[str, ...]) -> list[str]:
    """Colours of sand; a yellow that is only darkened and made bluer would be grey at night."""
    return list(night) if scenery.light == "night" else [under(colour, scenery) for colour in day]


def _beach(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.48)
    _water(paper, scenery, 0.48)
    _glints(paper, scenery, dice, (0.05, 0.52, 0.95, 0.6))
    shift = dice.between(0, 1)
    paper.below(wave(0.645, 0.018, 1.5, shift), SEA[scenery.light][3])
    paper.below(wave(0.665, 0.018, 1.5, shift + 0.03), "#ffffff" if scenery.light == "day" else SEA[scenery.light][3])
    snowy = scenery.season == "winter"
    sand = _sand(scenery, ("#e3c48d", "#f7e0ae", "#e9c98c"), ("#67669c", "#7876ab", "#5d5c94"))
    near, far, bottom = SNOW[scenery.light] if snowy else (sand[1], sand[0], sand[2])
    paper.below(wave(0.685, 0.018, 1.5, shift + 0.05), far)
    paper.below(wave(0.71, 0.018, 1.5, shift + 0.07), near, bottom)
    if snowy:
        return
    for x, y in dice.apart(5, (0.05, 0.8, 0.95, 0.96), 0.2):
        colour = under(dice.of(("#f2937e", "#ffffff", "#f5b5c3")), scenery)
        if dice.between(0, 1) < 0.5:
            for turn in np.arange(5) * 2 * np.pi / 5 - np.pi / 2:
                tip = (x + 0.03 * float(np.cos(turn)), y + 0.03 * float(np.sin(turn)))
                paper.stroke((x, y), tip, 0.016, colour)
        else:
            paper.ellipse(x, y, 0.024, 0.018, colour)


def _sea(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.55)
    light, deep, deepest, shine = SEA[scenery.light]
    _water(paper, scenery, 0.55)
    _glints(paper, scenery, dice, (0.05, 0.59, 0.95, 0.7))
    shift = dice.between(0, 1)
    for k, (middle, colour) in enumerate(((0.72, light), (0.82, deep), (0.93, deepest))):
        crest = wave(middle, 0.014, 2.5, shift + 0.37 * k)
        paper.below(crest, shine)
        paper.below(lambda x, crest=crest: crest(x) + np.float32(0.014), colour, deep if k < 2 else deepest)  # type: ignore[misc]
    if scenery.rain:
        paper.tint("#a9b4bf", 0.6, 0.71)


def _underwater(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    night = scenery.light == "night"
    paper.fade(
        (
            (0.0, "#2f6fae" if night else "#b9f3e3"),
            (0.4, "#1f4f92" if night else "#54cfc2"),
            (1.0, "#16305f" if night else "#178593"),
        )
    )
    for x in (0.18, 0.42, 0.7):
        x, wide = x + dice.between(-0.05, 0.05), dice.between(0.05, 0.09)
        paper.polygon([(x, -0.02), (x + wide, -0.02), (x + 2.6 * wide - 0.05, 0.95), (x - 0.2, 0.95)], "#ffffff", 0.12)
    paper.glow(0.5, 0.48, 0.6, "#5f9fd6" if night else "#e6fff6", 0.85)
    paper.below(
        wave(0.9, 0.02, 1.3, dice.between(0, 1)), "#3d5f88" if night else "#e4cf9b", "#2c4770" if night else "#c9ab74"
    )
    for x in (0.06, 0.15, 0.87, 0.95):
        high = dice.between(0.2, 0.36)
        green = "#1f6b62" if night else dice.of(("#2f9e6a", "#3fb37a"))
        for k in range(6):
            y = 0.95 - high * k / 5
            sway = 0.016 * float(np.sin(2.4 * k + 9 * x))
            paper.ellipse(x + sway, y - 0.02, 0.019 - 0.0017 * k, 0.045, green)
    for x, y in dice.apart(9, (0.05, 0.1, 0.95, 0.85), 0.16):
        r = dice.between(0.016, 0.028)
        paper.disc(x, y, r, "#e6fbff", 0.75)
        paper.disc(x, y, r - 0.01, "#57c4bd" if not night else "#2b5f9e", 0.8)


def _desert(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.6)
    if scenery.light == "day" and not scenery.rain:
        paper.glow(0.5, 0.62, 0.75, "#ffe9b8", 0.75)
    shift = dice.between(0, 1)
    sand = ("#e8b878", "#f0c583", "#f6d596", "#e2ae68")
    colours = _sand(scenery, sand, ("#51508a", "#605f98", "#706fa6", "#57568e"))
    if scenery.season == "winter":
        colours = [SNOW[scenery.light][k] for k in (2, 1, 0, 1)]
    paper.below(wave(0.58, 0.04, 0.9, shift), colours[0])
    paper.below(wave(0.66, 0.04, 0.7, shift + 0.45), colours[1])
    paper.below(wave(0.74, 0.025, 0.8, shift + 0.1), colours[2], colours[3])
    green = under("#4f9a5b", scenery)
    for x, foot, high in ((0.1, 0.76, 0.3), (0.9, 0.7, 0.2)):
        paper.stroke((x, foot), (x, foot - high), 0.2 * high, green)
        for side, low, rise in ((-1, 0.42, 0.28), (1, 0.55, 0.25)):
            elbow = (x + side * 0.26 * high, foot - low * high)
            paper.stroke((x, foot - low * high), elbow, 0.14 * high, green)
            paper.stroke(elbow, (elbow[0], elbow[1] - rise * high), 0.14 * high, green)


def _forest(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, replace(scenery, bare=scenery.bare or scenery.light == "day"), dice, 0.5)
    autumn, winter = scenery.season == "autumn", scenery.season == "winter"
    near, bottom = _ground(scenery)[1:]
    haze = under({"summer": "#b7dca8", "autumn": "#f0cf94", "winter": "#c8d9e6"}[scenery.season], scenery)
    paper.below(wave(0.42, 0.03, 1.2, dice.between(0, 1)), haze)
    for k, x in enumerate(np.linspace(0.02, 0.98, 8)):
        x, high = float(x) + dice.between(-0.03, 0.03), dice.between(0.34, 0.46)
        if autumn:
            tree(paper, x, 0.68, high, scenery, ("#f1b65c", "#eaa04f", "#e58a4c")[k % 3])
        else:
            fir(paper, x, 0.68, high, scenery, "#8db9a8" if winter else "#86bb86")
    paper.below(wave(0.65, 0.012, 1.6, dice.between(0, 1)), near, bottom)
    for x, foot, high in ((0.2, 0.74, 0.5), (0.81, 0.74, 0.52), (0.04, 0.82, 0.72), (0.97, 0.83, 0.76)):
        x, high = x + dice.between(-0.02, 0.02), high + dice.between(-0.04, 0.04)
        if autumn:
            tree(paper, x, foot, high, scenery, dice.of(LEAVES))
        else:
            fir(paper, x, foot, high, scenery, "#4d8f76" if winter else "#3f8a58")
    if autumn:
        leaves(paper, dice, scenery, 0.6)


def _sky(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 1.0 if scenery.light == "night" else 0.85)
    colours = {"day": ("#ffffff", "#f1f8fe"), "sunset": ("#f7b3a0", "#ffd2b0"), "night": ("#3d4f92", "#4c5fa5")}
    back, front = colours[scenery.light]
    if scenery.rain:
        back, front = under("#aab6c4", scenery), under("#c0cad5", scenery)
    for x, y, size in ((0.12, 0.9, 0.2), (0.5, 0.98, 0.2), (0.88, 0.92, 0.22)):
        cloud(paper, x + dice.between(-0.04, 0.04), y, size, back)
    for x in (0.02, 0.33, 0.68, 1.0):
        cloud(paper, x + dice.between(-0.04, 0.04), 1.0, 0.17, front)
    if scenery.light == "day" and not scenery.rain:
        cloud(paper, 0.09 + dice.between(0, 0.04), 0.5, 0.09, "#ffffff")
        cloud(paper, 0.9 - dice.between(0, 0.04), 0.6, 0.08, "#ffffff")


def _space(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    del scenery
    paper.fade(((0.0, "#150f3a"), (1.0, "#2b1f5e")))
    for colour, alpha in (("#6a3fa0", 0.6), ("#2f6fb0", 0.5), ("#a03f86", 0.45)):
        paper.glow(dice.between(0.05, 0.95), dice.between(0.1, 0.9), dice.between(0.35, 0.55), colour, alpha)
    stars(paper, dice, 1.05)
    left = dice.between(0, 1) < 0.5
    x, y = (0.14 if left else 0.86), dice.between(0.16, 0.22)
    body, ring = dice.of(("#f0a35e #ffd9a0", "#6fc3d8 #d3f2f7", "#e487a6 #ffd0df")).split()
    paper.disc(x, y, 0.095, body)
    paper.ellipse(x - 0.02, y - 0.03, 0.06, 0.025, ring, turn=-0.35, alpha=0.5)
    paper.lay(_ring(x, y), ring, box=(x - 0.19, y - 0.19, x + 0.19, y + 0.19))
    paper.disc(0.9 if left else 0.1, 0.86, 0.05, "#c8c2dc")


def _ring(x: float, y: float) -> Callable[[FloatArray, FloatArray], FloatArray]:
    """A planet's ring, its back hidden behind the planet."""

    def inside(u: FloatArray, v: FloatArray) -> FloatArray:
        c, s = np.cos(-0.35), np.sin(-0.35)
        along, across = (u - x) * c + (v - y) * s, (v - y) * c - (u - x) * s
        away = np.hypot(along / 0.16, across / 0.045)
        band = 0.02 - np.abs(away - 0.9) * 0.1
        hidden = np.where(across < 0, np.hypot(u - x, v - y) - 0.095, np.float32(1))
        found: FloatArray = np.minimum(band, hidden)
        return found

    return inside


def _moon(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    del scenery
    paper.fade(((0.0, "#0d1030"), (1.0, "#2a2d5c")))
    stars(paper, dice, 0.66)
    x = 0.16 if dice.between(0, 1) < 0.5 else 0.84
    paper.glow(x, 0.18, 0.22, "#7fc4ff", 0.4)
    paper.disc(x, 0.18, 0.11, "#4aa3e0")
    paper.ellipse(x - 0.03, 0.15, 0.06, 0.04, "#6cc06a", turn=0.5)
    paper.ellipse(x + 0.04, 0.225, 0.048, 0.028, "#6cc06a", turn=-0.4)
    paper.below(lambda u: (0.64 + 0.22 * (u - 0.5) ** 2).astype(np.float32), "#c9c9d6", "#9d9db2")
    for u, v in dice.apart(8, (0.05, 0.72, 0.95, 0.96), 0.18):
        r = dice.between(0.04, 0.07)
        paper.ellipse(u, v, r, 0.36 * r, "#8f8fa6")
        paper.ellipse(u, v + 0.12 * r, 0.85 * r, 0.26 * r, "#a9a9bd")


def _room(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    night = scenery.light == "night"
    wall = dice.of(("#f6e3c8", "#dfeadd", "#f3dad5", "#dbe6f0"))
    paper.fade(((0.0, wall), (1.0, wall)))
    left = dice.between(0, 1) < 0.5
    x = 0.24 if left else 0.76
    _box(paper, x - 0.165, 0.085, x + 0.165, 0.435, "#ffffff")
    panes = {"day": ("#8fd0f5", "#c9eafa"), "sunset": ("#e98a7e", "#ffc987"), "night": ("#16214f", "#33427f")}[
        scenery.light
    ]
    for a, b in ((x - 0.14, x - 0.012), (x + 0.012, x + 0.14)):
        _box(paper, a, 0.11, b, 0.25, panes[0])
        _box(paper, a, 0.27, b, 0.41, panes[1])
    if night:
        paper.disc(x + 0.075, 0.175, 0.036, "#fff1b5")
    y, u = 0.24, 1 - x
    _box(paper, u - 0.11, y - 0.1, u + 0.11, y + 0.1, "#b98552")
    _box(paper, u - 0.085, y - 0.075, u + 0.085, y + 0.075, "#fff6e4")
    paper.disc(u, y, 0.045, dice.of(("#e9766a", "#6fb58a", "#5f9fd0", "#f0b64e")))
    _box(paper, 0.0, 0.66, 1.0, 1.0, "#c98f5a")
    for k in range(1, 4):
        _box(paper, 0.0, 0.66 + 0.09 * k, 1.0, 0.668 + 0.09 * k, "#b37a48")
    _box(paper, 0.0, 0.635, 1.0, 0.67, "#fffaf2")
    rug = dice.of(("#d9675f", "#5f8fc9", "#5fa888", "#8f6fb0"))
    paper.ellipse(0.5, 0.86, 0.42, 0.105, rug)
    paper.ellipse(0.5, 0.86, 0.36, 0.083, "#fff3df", alpha=0.35)
    if night:
        paper.tint("#c9bfe0", 0.8)


def _box(paper: Paper, left: float, top: float, right: float, bottom: float, colour: str) -> None:
    paper.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def _street(paper: Paper, scenery: Scenery, dice: Dice) -> None:
    heaven(paper, scenery, dice, 0.4)
    x = -0.03
    lit = scenery.light != "day"
    while x < 1.0:
        wide, top = dice.between(0.17, 0.24), dice.between(0.2, 0.42)
        wall = under(dice.of(("#e2937b", "#e8bf7e", "#8fb3cf", "#c9a3c0", "#a9c39a")), scenery)
        _box(paper, x, top, x + wide - 0.012, 0.7, wall)
        if scenery.season == "winter":
            _box(paper, x, top - 0.02, x + wide - 0.012, top + 0.02, SNOW[scenery.light][0])
        for row in np.arange(top + 0.055, 0.58, 0.11):
            for share in (0.27, 0.7):
                middle = x + share * wide
                glass = "#ffe08a" if lit and dice.between(0, 1) < 0.75 else under("#dff1fb", scenery)
                _box(paper, middle - 0.024, float(row), middle + 0.024, float(row) + 0.06, glass)
        x += wide
    snowy = scenery.season == "winter"
    pavement, road = under("#cfc8c0", scenery), under("#7b7f8c", scenery)
    if snowy:
        pavement, road = SNOW[scenery.light][0], SNOW[scenery.light][1]
    _box(paper, 0.0, 0.66, 1.0, 0.74, pavement)
    _box(paper, 0.0, 0.735, 1.0, 1.0, road)
    shift = dice.between(-0.1, 0.1)
    for k in range(-1, 4):
        left = 0.36 * k + shift
        if not snowy:
            _box(paper, left, 0.945, left + 0.2, 0.97, under("#fbf3d8", scenery))
    if scenery.season == "autumn":
        leaves(paper, dice, scenery, 0.66)


DRAWERS: dict[PlaceName, Callable[[Paper, Scenery, Dice], None]] = {
    "land": _land,
    "beach": _beach,
    "sea": _sea,
    "underwater": _underwater,
    "meadow": _meadow,
    "hill": _hill,
    "mountains": _mountains,
    "desert": _desert,
    "forest": _forest,
    "sky": _sky,
    "space": _space,
    "moon": _moon,
    "room": _room,
    "street": _street,
}
