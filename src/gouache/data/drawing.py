"""Cutting, scaling and laying stickers over one another, on uint8 arrays with straight alpha."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gouache.data.vectors import Picture


def cut_out(picture: Picture) -> Picture:
    """The part of a picture that holds anything: its bounding box of alpha over 8. The whole where nothing is seen."""
    seen = picture[..., 3] > 8
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if len(rows) == 0:
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fitted(picture: Picture, side: int) -> Picture:
    """The picture scaled so that its longer side is `side` pixels."""
    scale = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    # "RGBa" is multiplied by alpha, so that no fringe of the transparent colour bleeds in.
    scaled = Image.fromarray(picture).convert("RGBa").resize(size, Image.Resampling.BICUBIC)
    return np.asarray(scaled.convert("RGBA"))


def lay(canvas: Picture, sprite: Picture, left: int, top: int) -> None:
    """Lay a sprite over the canvas in place (Porter-Duff over); it must lie within."""
    height, width = sprite.shape[:2]
    under = canvas[top : top + height, left : left + width]
    if not under[..., 3].any():
        under[:] = sprite
        return
    over_alpha = sprite[..., 3:].astype(np.float32) / 255
    under_alpha = under[..., 3:].astype(np.float32) / 255 * (1 - over_alpha)
    alpha = over_alpha + under_alpha
    colours = (sprite[..., :3] * over_alpha + under[..., :3] * under_alpha) / np.maximum(alpha, 1e-6)
    under[..., :3] = np.round(colours).astype(np.uint8)
    under[..., 3:] = np.round(alpha * 255).astype(np.uint8)


def on_ground(picture: Picture, colour: tuple[int, int, int]) -> Picture:
    """The picture on an opaque ground of one colour."""
    alpha = picture[..., 3:].astype(np.uint16)
    ground = np.array(colour, np.uint16)
    result = np.empty_like(picture)
    result[..., :3] = (picture[..., :3] * alpha + ground * (255 - alpha) + 127) // 255
    result[..., 3] = 255
    return result
