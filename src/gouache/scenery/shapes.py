"""Shapes of one colour, laid one over the other on a square, and the numbers that place them.

Edges are antialiased by the distance to them. Coordinates are fractions of the square, from the top left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor

from gouache.diffusion.rng import generator_for

__all__ = ["Dice", "Paper", "hex_of", "rgb", "wave"]

FloatArray = NDArray[np.float32]


class Dice:
    """Numbers of the picture's seed, one after the other."""

    def __init__(self, seed: int, place: str) -> None:
        self._generator = generator_for(seed, f"scenery/{place}")

    def between(self, low: float, high: float) -> float:
        """One number, evenly distributed."""
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def of(self, things: Sequence[str]) -> str:
        """One of some."""
        return things[int(self.between(0, len(things) - 1e-6))]

    def apart(self, count: int, box: tuple[float, float, float, float], least: float) -> list[tuple[float, float]]:
        """At most so many points of a box (left, top, right, bottom), each `least` from all others."""
        found: list[tuple[float, float]] = []
        for _ in range(count * 6):
            x, y = self.between(box[0], box[2]), self.between(box[1], box[3])
            if len(found) < count and all((x - u) ** 2 + (y - v) ** 2 >= least**2 for u, v in found):
                found.append((x, y))
        return found


class Paper:
    """A square that shapes are laid on, one over the other.

    Args:
        pixels: colours in 0..1; they are changed. [n,n,3]
    """

    def __init__(self, pixels: FloatArray) -> None:
        self.pixels = pixels
        self.side = len(pixels)
        self.x: FloatArray = ((np.arange(self.side) + 0.5) / self.side).astype(np.float32)[None]
        self.y: FloatArray = self.x.T

    def lay(
        self,
        inside: Callable[[FloatArray, FloatArray], FloatArray],
        colour: str,
        *,
        alpha: float = 1.0,
        box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
        soft: float = 0.0,
    ) -> None:
        """Lay one colour where a shape is.

        Args:
            inside: distance to the shape's edge, above 0 inside, at x [1,w] and y [h,1]. -> [h,w]
            colour: of the shape.
            alpha: how much it covers.
            box: left, top, right, bottom around the shape.
            soft: width of its edge; 0 is one pixel.
        """
        left, top = (int(np.clip(v * self.side - 1, 0, self.side)) for v in box[:2])
        right, bottom = (int(np.clip(v * self.side + 2, 0, self.side)) for v in box[2:])
        if left >= right or top >= bottom:
            return
        distance = inside(self.x[:, left:right], self.y[top:bottom])
        cover = np.clip(distance / max(soft, 1 / self.side) + (0.0 if soft else 0.5), 0, 1)[..., None] * alpha
        part = self.pixels[top:bottom, left:right]
        part += (rgb(colour) - part) * cover

    def fade(self, colours: Sequence[tuple[float, str]]) -> None:
        """Colours from above to below, each at its height."""
        heights = [height for height, _ in colours]
        table = np.stack([rgb(colour) for _, colour in colours])
        rows = np.stack([np.interp(self.y[:, 0], heights, table[:, k]) for k in range(3)], axis=1)
        self.pixels[:] = rows[:, None]

    def below(self, height: Callable[[FloatArray], FloatArray], colour: str, dark: str | None = None) -> None:
        """All below a line, `dark` at the bottom of the picture."""
        line = height(self.x)
        self.lay(lambda _x, y: y - line, colour)
        if dark is not None:
            self.lay(lambda _x, y: y - line, dark, soft=1.0 - float(line.min()))

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: str, *, turn: float = 0.0, alpha: float = 1.0
    ) -> None:
        """An ellipse, turned by an angle in radians."""
        c, s, r = np.cos(turn), np.sin(turn), max(rx, ry)

        def inside(u: FloatArray, v: FloatArray) -> FloatArray:
            along, across = (u - x) * c + (v - y) * s, (v - y) * c - (u - x) * s
            away: FloatArray = np.hypot(along / rx, across / ry)
            return (1 - away) * min(rx, ry)

        self.lay(inside, colour, alpha=alpha, box=(x - r, y - r, x + r, y + r))

    def disc(self, x: float, y: float, r: float, colour: str, alpha: float = 1.0) -> None:
        """A disc."""
        self.ellipse(x, y, r, r, colour, alpha=alpha)

    def glow(self, x: float, y: float, r: float, colour: str, alpha: float) -> None:
        """A light that fades out."""
        box = (x - r, y - r, x + r, y + r)
        self.lay(lambda u, v: r - np.hypot(u - x, v - y), colour, alpha=alpha, box=box, soft=r)

    def polygon(self, corners: Sequence[tuple[float, float]], colour: str, alpha: float = 1.0) -> None:
        """A convex polygon, its corners in either direction."""
        turn = sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True))

        def inside(u: FloatArray, v: FloatArray) -> FloatArray:
            found: FloatArray | None = None
            for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
                side = ((bx - ax) * (v - ay) - (by - ay) * (u - ax)) / np.hypot(bx - ax, by - ay)
                side = -side if turn > 0 else side
                found = side if found is None else np.minimum(found, side)
            assert found is not None, "a polygon has corners"
            return found

        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        self.lay(inside, colour, alpha=alpha, box=(min(xs), min(ys), max(xs), max(ys)))

    def stroke(
        self, start: tuple[float, float], end: tuple[float, float], width: float, colour: str, alpha: float = 1.0
    ) -> None:
        """A straight line with round ends."""
        (ax, ay), (bx, by), r = start, end, width / 2
        length = (bx - ax) ** 2 + (by - ay) ** 2

        def inside(u: FloatArray, v: FloatArray) -> FloatArray:
            along = np.clip(((u - ax) * (bx - ax) + (v - ay) * (by - ay)) / length, 0, 1)
            away: FloatArray = np.hypot(u - ax - along * (bx - ax), v - ay - along * (by - ay))
            return np.float32(r) - away

        box = (min(ax, bx) - r, min(ay, by) - r, max(ax, bx) + r, max(ay, by) + r)
        self.lay(inside, colour, alpha=alpha, box=box)

    def tint(self, colour: str, alpha: float, top: float = 0.0) -> None:
        """Multiply all from a height on by a colour."""
        rows = self.pixels[int(top * self.side) :]
        rows *= 1 - alpha + alpha * rgb(colour)


def rgb(colour: str) -> FloatArray:
    """[3] in 0..1."""
    return np.asarray(ImageColor.getrgb(colour)[:3], np.float32) / np.float32(255)


def hex_of(values: FloatArray) -> str:
    """A colour's name from [3] in 0..1."""
    return "#" + "".join(f"{round(float(np.clip(value, 0, 1)) * 255):02x}" for value in values)


def wave(middle: float, high: float, times: float, shift: float) -> Callable[[FloatArray], FloatArray]:
    """A line that rises and falls so many times."""

    def line(x: FloatArray) -> FloatArray:
        found: FloatArray = (middle + high * np.sin(2 * np.pi * (times * x + shift))).astype(np.float32)
        return found

    return line
