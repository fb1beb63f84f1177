"""The sky with what falls from it, and what grows, in the light of a time of day."""

from __future__ import annotations

import numpy as np

from gouache.scenery.kinds import Scenery
from gouache.scenery.shapes import Dice, FloatArray, Paper, hex_of, rgb

# ---- the sky, and what falls from it

SKY = {
    "day": ((0.0, "#6fbdf2"), (0.65, "#d8f0fc"), (1.0, "#eaf7fd")),
    "sunset": ((0.0, "#5a4a92"), (0.3, "#c8658f"), (0.5, "#f7966a"), (0.66, "#ffd27d"), (1.0, "#ffdf9c")),
    "night": ((0.0, "#101a45"), (0.7, "#3a4a8c"), (1.0, "#4a5a9c")),
}
GREY_SKY = {
    "day": ((0.0, "#7d8fa6"), (0.7, "#c3cfda"), (1.0, "#cfd9e2")),
    "sunset": ((0.0, "#5a5470"), (0.5, "#a8818a"), (0.7, "#d9ab8c"), (1.0, "#d9ab8c")),
    "night": ((0.0, "#161d38"), (0.7, "#333f66"), (1.0, "#3b476e")),
}
SNOW = {
    "day": ("#fafdff", "#d3e4f3", "#cfe2f3"),
    "sunset": ("#fbe6e4", "#e3bfcf", "#c79ec0"),
    "night": ("#a9badf", "#7f93c4", "#5d71a8"),
}
SEA = {
    "day": ("#3f9fdc", "#2b86c9", "#1c6cb0", "#a9ddf5"),
    "sunset": ("#d98a86", "#8d6aa0", "#57508f", "#ffd9a8"),
    "night": ("#2c4487", "#223872", "#18295c", "#8ea6de"),
}


def heaven(paper: Paper, scenery: Scenery, dice: Dice, horizon: float = 0.6, clouds: int = 2) -> None:
    """The sky with its lights and, at fair weather, so many clouds, down to a horizon."""
    paper.fade((GREY_SKY if scenery.rain else SKY)[scenery.light])
    if scenery.rain:
        dark = {"day": "#66788f", "sunset": "#55495f", "night": "#0f1530"}[scenery.light]
        for x in (0.08, 0.36, 0.64, 0.93):
            cloud(paper, x + dice.between(-0.05, 0.05), dice.between(0.02, 0.07), dice.between(0.16, 0.22), dark)
        return
    if scenery.light == "night":
        left = dice.between(0, 1) < 0.5
        stars(paper, dice, horizon, None if scenery.bare else left)
        if not scenery.bare:
            _crescent(paper, 0.15 if left else 0.85, 0.16)
    elif scenery.light == "sunset":
        if not scenery.bare:
            x = 0.2 if dice.between(0, 1) < 0.5 else 0.8
            paper.glow(x, horizon - 0.02, 0.4, "#fff0b8", 0.8)
            paper.disc(x, horizon - 0.03, 0.12, "#fff3c9")
        for x, y in dice.apart(3, (0.1, 0.08, 0.9, 0.3), 0.25):
            paper.ellipse(x, y, dice.between(0.12, 0.18), 0.018, "#f3a38f", alpha=0.9)
    else:
        side = dice.between(0, 1) < 0.5
        if not scenery.bare:
            x, y = (0.16 if side else 0.84), 0.15
            paper.glow(x, y, 0.26, "#fff6cf", 0.9)
            paper.disc(x, y, 0.08, "#ffe27a")
        for k, x in enumerate(((0.8, 0.45) if side else (0.2, 0.55))[:clouds]):
            x, y = x + dice.between(-0.08, 0.08), dice.between(0.1, 0.2) + 0.07 * k
            cloud(paper, x, y, dice.between(0.1, 0.15), "#ffffff")


def cloud(paper: Paper, x: float, y: float, size: float, colour: str, alpha: float = 1.0) -> None:
    """A cloud with a flat foot, about three times as wide as its size."""
    for dx, dy, r in ((-0.75, 0.12, 0.42), (-0.2, -0.18, 0.58), (0.4, -0.02, 0.5), (0.95, 0.18, 0.34)):
        paper.disc(x + dx * size, y + dy * size, r * size, colour, alpha)
    paper.ellipse(x + 0.05 * size, y + 0.34 * size, 1.25 * size, 0.22 * size, colour, alpha=alpha)


def stars(paper: Paper, dice: Dice, horizon: float, moon: bool | None = None) -> None:
    """Stars above a horizon, away from the moon on the left (True) or on the right."""
    for k, (x, y) in enumerate(dice.apart(16, (0.03, 0.03, 0.97, horizon - 0.08), 0.11)):
        if moon is not None and y < 0.32 and (x < 0.3 if moon else x > 0.7):
            continue
        if k < 4:
            sparkle(paper, x, y, dice.between(0.032, 0.042), "#fff6cf")
        else:
            paper.disc(x, y, dice.between(0.012, 0.018), "#fdf6d8")


def sparkle(paper: Paper, x: float, y: float, r: float, colour: str) -> None:
    """A star of four points."""
    slim = 0.28 * r
    paper.polygon([(x, y - r), (x + slim, y), (x, y + r), (x - slim, y)], colour)
    paper.polygon([(x - r, y), (x, y - slim), (x + r, y), (x, y + slim)], colour)


def _crescent(paper: Paper, x: float, y: float) -> None:
    r = 0.085
    paper.glow(x, y, 0.24, "#fdf3c4", 0.35)

    def inside(u: FloatArray, v: FloatArray) -> FloatArray:
        full, away = r - np.hypot(u - x, v - y), np.hypot(u - x - 0.045, v - y + 0.025) - 0.82 * r
        found: FloatArray = np.minimum(full, away)
        return found

    paper.lay(inside, "#fff1b5", box=(x - r, y - r, x + r, y + r))


def flakes(paper: Paper, dice: Dice) -> None:
    for x, y in dice.apart(24, (0.02, 0.02, 0.98, 0.95), 0.12):
        paper.disc(x, y, dice.between(0.015, 0.024), "#ffffff", 0.95)


def rain(paper: Paper, dice: Dice, count: int = 22) -> None:
    """Rain that falls."""
    for x, y in dice.apart(count, (0.02, 0.1, 1.0, 0.92), 0.14):
        length = dice.between(0.08, 0.11)
        paper.stroke((x, y), (x - 0.3 * length, y + length), 0.021, "#eef7fd", 0.95)


# ---- what grows

GRASS = {
    "summer": ("#a9d98a", "#86c95f", "#5aa845", "#4c9a3d"),
    "autumn": ("#e8c27a", "#dba457", "#b97b3c", "#a5692f"),
}


def grass(scenery: Scenery) -> tuple[str, str, str, str]:
    """Far, near, bottom of the picture, blades; in the light of the day."""
    if scenery.season == "winter":
        snow = SNOW["day"]
        return (snow[1], snow[0], snow[1], snow[2])
    return tuple(under(colour, scenery) for colour in GRASS[scenery.season])  # type: ignore[return-value]


def under(colour: str, scenery: Scenery) -> str:
    """A day's colour in the light of another time, or of a grey sky."""
    light = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.78, 0.72), "night": (0.4, 0.48, 0.72)}[scenery.light]
    values = rgb(colour) * np.asarray(light, np.float32)
    if scenery.rain:
        values = values + (values.mean() * 0.9 - values) * 0.35
    return hex_of(values)


def fir(paper: Paper, x: float, foot: float, high: float, scenery: Scenery, colour: str = "#3f7d5c") -> None:
    wide = 0.3 * high
    trunk = under("#7a5236", scenery)
    paper.polygon(
        [
            (x - 0.035 * high, foot),
            (x + 0.035 * high, foot),
            (x + 0.035 * high, foot - 0.2 * high),
            (x - 0.035 * high, foot - 0.2 * high),
        ],
        trunk,
    )
    for k in range(3):
        low, top = foot - (0.12 + 0.25 * k) * high, foot - (0.56 + 0.22 * k) * high
        half = wide * (1 - 0.24 * k)
        paper.polygon([(x - half, low), (x + half, low), (x, top)], under(colour, scenery))
        if scenery.season == "winter":
            cap = 0.45
            edge = (low - top) * cap
            paper.polygon(
                [(x - half * cap, top + edge), (x + half * cap, top + edge), (x, top)], under("#f4faff", scenery)
            )


def tree(paper: Paper, x: float, foot: float, high: float, scenery: Scenery, colour: str) -> None:
    trunk = under("#8a5a38", scenery)
    paper.polygon(
        [
            (x - 0.05 * high, foot),
            (x + 0.05 * high, foot),
            (x + 0.035 * high, foot - 0.6 * high),
            (x - 0.035 * high, foot - 0.6 * high),
        ],
        trunk,
    )
    crown = under(colour, scenery)
    for dx, dy, r in ((-0.17, 0.56, 0.2), (0.17, 0.57, 0.2), (0.0, 0.74, 0.25)):
        paper.disc(x + dx * high, foot - dy * high, r * high, crown)


LEAVES = ("#e2572b", "#f0892f", "#f7b733", "#c73e2d", "#d9702a")


def leaves(paper: Paper, dice: Dice, scenery: Scenery, horizon: float) -> None:
    """Leaves that fall, and some that lie."""
    for x, y in dice.apart(12, (0.03, 0.05, 0.97, horizon), 0.15):
        colour = under(dice.of(LEAVES), scenery)
        paper.ellipse(x, y, 0.036, 0.02, colour, turn=dice.between(0, np.pi))
    for x, y in dice.apart(14, (0.02, horizon + 0.1, 0.98, 0.98), 0.11):
        paper.ellipse(x, y, 0.04, 0.018, under(dice.of(LEAVES), scenery), turn=dice.between(-0.4, 0.4))
