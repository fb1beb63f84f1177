"""An invisible watermark: a short text in a picture's colours, which the package `invisible-watermark` reads.

Its method `dwtDct` is followed where readers depend on it: colours in YUV as OpenCV computes them, the blue difference
U in 2 x 2 averages (one level of Haar's wavelets), blocks of 4 x 4 of those, one bit a block, again and again. A bit is
where the block's largest coefficient (the first one left out) lies in its interval of 36: 0 in the lower half, 1 in the
upper. Every reading averages over all blocks of a bit.

Written here so that the coefficient that is moved stays the largest and is moved as little as that allows; details
finer than 2 x 2 pixels and the brightness stay as they are, where the colour has room.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gouache.errors import InvalidInput

STEP = 36.0
BLOCK = 8
"""Pixels along the side of what holds one bit."""
MARGIN = 5.0
"""How far the moved coefficient stays above the next: rounding to bytes must not change their order."""
READABLE_PIXELS = 256 * 256
"""The package refuses smaller pictures; `read_watermark` doesn't."""
_ROUNDS = 3
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_U, _HALF = 0.492, 128.0

Coefficients = NDArray[np.float64]


def bits_of(text: str) -> NDArray[np.uint8]:
    """The text's UTF-8 bytes as bits, the highest first. [8 * bytes]"""
    return np.unpackbits(np.frombuffer(text.encode("utf-8"), np.uint8))


def add_watermark(picture: Image.Image, text: str) -> Image.Image:
    """A copy that carries the text.

    Args:
        picture: mode RGB or RGBA; transparency stays.
        text: at least one character.

    Raises:
        InvalidInput: the picture is too small to hold every bit once, or no text.
    """
    bits = bits_of(text)
    rows, columns = picture.height // BLOCK, picture.width // BLOCK
    if len(bits) == 0 or rows * columns < len(bits):
        raise InvalidInput(
            "watermark",
            given=f"{len(bits)} bits for {picture.width} x {picture.height} pixels",
            expected=f"1 to {rows * columns} bits here: one for every {BLOCK} x {BLOCK} pixels",
            cure="Paint larger, or shorten the text.",
        )
    pixels = np.asarray(picture.convert(picture.mode if picture.mode == "RGBA" else "RGB")).copy()  # [H,W,3 or 4]
    colours = pixels[: rows * BLOCK, : columns * BLOCK, :3]
    wanted = np.resize(bits, rows * columns).astype(np.float64)
    for _ in range(_ROUNDS):
        # Where a colour had no room, another round finds what the first one left.
        change = _moved(_blocks(colours), wanted)
        if not change.any():
            break
        colours[...] = _recoloured(colours.astype(np.float64), _spread(change, rows, columns))
    return Image.fromarray(pixels)


def read_watermark(picture: Image.Image, length: int) -> bytes:
    """What a watermark of so many bytes says; without one, any bytes.

    Args:
        picture: any size that holds as many bits.
        length: in bytes.
    """
    rows, columns = picture.height // BLOCK, picture.width // BLOCK
    if not 1 <= length * 8 <= rows * columns:
        raise InvalidInput("length", given=length, expected=f"1 to {rows * columns // 8} bytes in this picture")
    pixels = np.asarray(picture.convert("RGB"))[: rows * BLOCK, : columns * BLOCK]
    blocks = _blocks(pixels)
    votes = (blocks[:, 1:].max(axis=1) % STEP) > STEP / 2  # [rows * columns]
    place = np.arange(len(votes)) % (length * 8)
    share = np.bincount(place, votes, length * 8) / np.bincount(place, minlength=length * 8)
    return np.packbits(share * 255 > 127).tobytes()


def carries(picture: Image.Image, text: str) -> bool:
    """Whether the text can be read from the picture."""
    data = text.encode("utf-8")
    return read_watermark(picture, len(data)) == data


def _blocks(pixels: NDArray[np.uint8]) -> Coefficients:
    """Haar averages of U in blocks, row by row. [blocks,16]"""
    red, green, blue = (pixels[..., k].astype(np.float64) for k in range(3))
    bright = np.rint(_RED * red + _GREEN * green + _BLUE * blue)
    u = np.clip(np.rint(_U * (blue - bright) + _HALF), 0, 255)
    height, width = u.shape
    averages: Coefficients = u.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3)) / 2  # [H/2,W/2], 0..510
    tiles: Coefficients = averages.reshape(height // BLOCK, 4, width // BLOCK, 4).swapaxes(1, 2)
    return tiles.reshape(-1, 16)


def _moved(blocks: Coefficients, bits: Coefficients) -> Coefficients:
    """What to add to each coefficient so that its block says its bit. [blocks,16]"""
    numbers = np.arange(len(blocks))
    place = blocks[:, 1:].argmax(axis=1) + 1
    value = blocks[numbers, place]
    others = blocks.copy()
    others[:, 0] = others[numbers, place] = -np.inf
    lowest = others.max(axis=1) + MARGIN
    centre = STEP * (0.25 + 0.5 * bits)  # The middle of the half that means the bit.
    cell = np.rint((value - centre) / STEP)
    cell = np.maximum(cell, np.ceil((lowest - centre) / STEP))
    target = cell * STEP + centre
    said = (np.abs((value - centre) / STEP - np.rint((value - centre) / STEP)) < 0.2) & (value >= lowest)
    change = np.zeros_like(blocks)
    change[numbers, place] = np.where(said, 0.0, target - value)
    return change


def _spread(change: Coefficients, rows: int, columns: int) -> Coefficients:
    """Changes of the averages as changes of U of every pixel. [H,W]"""
    grid = change.reshape(rows, columns, 4, 4).swapaxes(1, 2).reshape(rows * 4, columns * 4)
    spread: Coefficients = (grid / 2).repeat(2, axis=0).repeat(2, axis=1)
    return spread


def _recoloured(colours: Coefficients, change: Coefficients) -> NDArray[np.uint8]:
    """Pixels [H,W,3] with U changed: blue and green at equal brightness, then, where blue ends, red and green too."""
    red, green, blue = (colours[..., k] for k in range(3))
    # U = 0.492 (blue - Y): with Y fixed, blue takes it all, and green pays for blue's share in Y.
    wanted = blue + change / _U
    new_blue = np.clip(wanted, 0, 255)
    new_green = green - (new_blue - blue) * _BLUE / _GREEN
    rest = (wanted - new_blue) / (_RED + _GREEN)
    shifted = [np.clip(channel - rest, 0, 255) for channel in (red, new_green)]
    return np.rint(np.stack([*shifted, new_blue], axis=-1)).astype(np.uint8)
