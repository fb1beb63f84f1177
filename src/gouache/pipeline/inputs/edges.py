"""Canny's edges (Canny 1986, IEEE PAMI 8(6), section VI); numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Whole = npt.NDArray[np.int32]
Truth = npt.NDArray[np.bool_]

TAN_22_5 = 13573
"""tan(22.5 degrees) times 2^15: the border between edges that run straight and slanting."""


def canny(picture: Image.Image, low: int, high: int) -> Image.Image:
    """White lines on black, one pixel wide; the same pixels as OpenCV's `Canny` with its default aperture and norm.

    Args:
        picture: mode RGB; of its three channels the one that changes most counts at each pixel.
        low: a pixel whose |dx| + |dy| (Sobel) is above this belongs to an edge if a strong one leads to it.
        high: a pixel above this is a strong edge.

    Returns:
        A picture of mode L with 0 and 255 only.
    """
    across, down = _steepest(np.asarray(picture.convert("RGB")))
    strength = np.abs(across) + np.abs(down)
    ridge = _is_ridge(across, down, strength) & (strength > low)
    edges = _reached(ridge & (strength > high), ridge)
    return Image.fromarray(edges.astype(np.uint8) * 255, "L")


def _steepest(pixels: npt.NDArray[np.uint8]) -> tuple[Whole, Whole]:
    """Sobel's two derivatives [H,W] of the channel [H,W,C] that changes most, edges repeated."""
    wide = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.int32)
    columns = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    across, down = columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]  # [H,W,C]
    most = (np.abs(across) + np.abs(down)).argmax(-1)[..., None]
    return np.take_along_axis(across, most, -1)[..., 0], np.take_along_axis(down, most, -1)[..., 0]


def _is_ridge(across: Whole, down: Whole, strength: Whole) -> Truth:
    """Where no neighbour across the edge is stronger; of two equal ones the first counts."""
    padded = np.pad(strength, 1)
    height, width = strength.shape

    def neighbour(y: int, x: int) -> Whole:
        return padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    x, y = np.abs(across) * TAN_22_5, np.abs(down) << 15
    flat, steep = y < x, y > x + (np.abs(across) << 16)
    falling = (across < 0) != (down < 0)
    before = np.where(falling, neighbour(-1, 1), neighbour(-1, -1))
    after = np.where(falling, neighbour(1, -1), neighbour(1, 1))
    slanting = (strength > before) & (strength > after)
    level = (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1))
    upright = (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0))
    found: Truth = np.where(flat, level, np.where(steep, upright, slanting))
    return found


def _reached(strong: Truth, ridge: Truth) -> Truth:
    """Every pixel of a ridge that a strong one leads to, over the eight neighbours."""
    found, left = np.pad(strong, 1), np.pad(ridge & ~strong, 1)
    offsets = [dy * found.shape[1] + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    flat, rest = found.reshape(-1), left.reshape(-1)
    front = np.flatnonzero(flat)
    while front.size:
        near = np.unique(np.concatenate([front + offset for offset in offsets]))
        front = near[rest[near]]
        rest[front] = False
        flat[front] = True
    return found[1:-1, 1:-1]
