"""Text in the lowest bits of a picture's pixels, where A1111's stealth extension and NovelAI keep a copy of the texts.

The bits run down each column, column after column: first a name of fifteen letters, then the length in bits (32 bits,
big-endian), then UTF-8, plain or packed by gzip. `stealth_pnginfo` and `stealth_pngcomp` use the alpha of a picture,
`stealth_rgbinfo` and `stealth_rgbcomp` red, green and blue in turn.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

from gouache.pipeline.inputs.png import MAX_TEXT, for_pillow
from gouache.pipeline.request import MAX_PIXELS

_NAMES = {b"stealth_pnginfo": False, b"stealth_pngcomp": True, b"stealth_rgbinfo": False, b"stealth_rgbcomp": True}
_NAME = 15
_GZIP = 31
"""zlib's word for data with gzip's head."""


def hidden_text(data: bytes) -> str | None:
    """The text hidden in a PNG or a lossless WebP; None if there is none.

    Args:
        data: the file.
    """
    try:
        picture = Image.open(io.BytesIO(for_pillow(data)[0]), formats=("PNG", "WEBP"))
        if picture.mode not in ("RGB", "RGBA") or picture.width * picture.height > MAX_PIXELS:
            return None
        pixels = np.asarray(picture).transpose(1, 0, 2)  # [W,H,C], so that columns come one after the other
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    for channels in ([pixels[..., 3:]] if picture.mode == "RGBA" else []) + [pixels[..., :3]]:
        found = _read(channels.reshape(-1))
        if found is not None:
            return found
    return None


def _read(values: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str | None:
    """The text in the lowest bits of these values."""
    head = np.packbits(values[: 8 * (_NAME + 4)] & 1).tobytes()
    packed = _NAMES.get(head[:_NAME])
    length = int.from_bytes(head[_NAME:], "big")
    if packed is None or length % 8 or length > min(8 * MAX_TEXT, values.size - 8 * len(head)):
        return None
    body = np.packbits(values[8 * len(head) : 8 * len(head) + length] & 1).tobytes()
    if packed:
        try:
            body = zlib.decompressobj(_GZIP).decompress(body, MAX_TEXT)
        except zlib.error:
            return None
    return body.decode("utf-8", "replace")
