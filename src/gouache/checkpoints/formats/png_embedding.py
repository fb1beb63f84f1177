"""Textual inversions in PNG pictures, as A1111 saves them: in a text chunk, or in the pixels themselves.

The text ``sd-ti-embedding`` is base64 of JSON: ``{"string_to_param": {"*": {"TORCHTENSOR": [[...]]}}, "name": ...}``.
The pixels hold the same JSON, deflated: the low halves of its bytes lie left of a black column, the high halves right
of another, in the low four bits of each channel, behind a fixed stream of pseudo-random numbers.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN, PNG, Header, TensorInfo
from gouache.errors import CorruptCheckpoint, UnknownFamily

if TYPE_CHECKING:
    import numpy as np
    import torch

KEYWORD = b"sd-ti-embedding"
PARAMETERS = "string_to_param"
TENSOR = "TORCHTENSOR"
MAX_BYTES = 64 << 20
MAX_PIXELS = 1 << 26
MAX_NUMBERS = 1 << 20
MAX_HALVES = 1 << 23


class PngEmbedding:
    """A textual inversion in a picture, open for reading; a `WeightSource`.

    Args:
        path: the picture.
        pixels: whether to look into the pixels too, where no text holds one.

    Raises:
        UnknownFamily: a picture without a textual inversion.
        CorruptCheckpoint: what it holds is damaged.
    """

    def __init__(self, path: Path, *, pixels: bool = True) -> None:
        text = _text(path)
        data = base64_decoded(text, path) if text is not None else from_pixels(path) if pixels else None
        if data is None:
            raise UnknownFamily(
                str(path), given="a picture", expected="a weight file, or a picture with a textual inversion inside"
            )
        self._values, metadata = _read(data, path)
        tensors = {name: TensorInfo("F32", _shape(rows)) for name, rows in self._values.items()}
        self.header = Header(path, tensors, metadata)

    def read(self, name: str, *, mapped: bool = True) -> torch.Tensor:  # noqa: ARG002 - there is nothing to map
        """One tensor on the CPU, fp32."""
        import torch

        return torch.tensor(self._values[name], dtype=torch.float32)


def _text(path: Path) -> bytes | None:
    """What the chunk of text says, wherever it stands."""
    for kind, data in _chunks(path):
        keyword, _, rest = data.partition(b"\0")
        if keyword != KEYWORD:
            continue
        if kind == b"tEXt":
            return rest
        if kind == b"zTXt":
            return _inflated(rest[1:], path)
        compressed, (_, _, text) = rest[:1] == b"\1", rest[2:].split(b"\0", 2) + [b""] * (2 - rest[2:].count(b"\0"))
        return _inflated(text, path) if compressed else text
    return None


def _chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of every chunk of text (PNG specification, third edition, section 11.3.3)."""
    with path.open("rb") as file:
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > MAX_BYTES:
                file.seek(length + 4, 1)
                continue
            yield kind, file.read(length)
            file.seek(4, 1)


def _inflated(data: bytes, path: Path) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise _bad(path, f"deflated data that ends in {str(error)[:60]!r}") from error


def _bad(path: Path, given: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(str(path), given=given, expected="a textual inversion as JSON", cure=DOWNLOAD_AGAIN)


def base64_decoded(text: bytes, path: Path) -> bytes:
    """The JSON of a text chunk.

    Raises:
        CorruptCheckpoint: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=False)
    except binascii.Error as error:
        raise _bad(path, "text that is no base64") from error


def _read(data: bytes, path: Path) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Vectors by name, and the plain values beside them."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(path, "data that is no JSON") from error
    parameters = values.get(PARAMETERS) if isinstance(values, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise _bad(path, f"JSON without {PARAMETERS}")
    tensors = {f"{PARAMETERS}.{token}": _rows(value, path) for token, value in parameters.items()}
    metadata = {key: str(item)[:1000] for key, item in values.items() if isinstance(item, str | int | float)}
    return tensors, metadata


def _rows(value: object, path: Path) -> list[list[float]]:
    rows = value.get(TENSOR) if isinstance(value, dict) else value
    rows = [rows] if isinstance(rows, list) and rows and not isinstance(rows[0], list) else rows
    whole = isinstance(rows, list) and bool(rows) and all(isinstance(row, list) and row for row in rows)
    if not whole or not isinstance(rows, list) or len({len(row) for row in rows}) != 1:
        raise _bad(path, "a tensor that is no table of numbers")
    if len(rows) * len(rows[0]) > MAX_NUMBERS or not all(type(one) in (int, float) for row in rows for one in row):
        raise _bad(path, "a tensor of too many numbers, or of something else")
    return rows


def _shape(rows: list[list[float]]) -> tuple[int, ...]:
    return len(rows), len(rows[0])


def from_pixels(path: Path) -> bytes | None:
    """The JSON that lies in a picture's pixels; None if none does.

    Raises:
        CorruptCheckpoint: the picture can't be read.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(image.convert("RGB"))  # [h, w, 3]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad(path, f"a picture that can't be read ({str(error)[:60]})") from error
    low = _inside(pixels) & 0x0F
    black = np.flatnonzero(low.sum(axis=(0, 2), dtype=np.int64) == 0)
    if len(black) < 2 or black[0] == 0 or black[-1] == low.shape[1] - 1:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape or left.size > MAX_HALVES:
        return None
    try:
        return zlib.decompressobj().decompress((_unmasked(right) << 4 | _unmasked(left)).tobytes(), MAX_BYTES)
    except zlib.error:
        return None


def _inside(pixels: np.ndarray) -> np.ndarray:
    """Without the rows and columns around, none of whose pixels has light in all three channels."""
    import numpy as np

    lit = np.asarray((pixels > 0).all(axis=2))
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not len(rows):
        return pixels[:0, :0]
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _unmasked(block: np.ndarray) -> np.ndarray:
    """Takes the pseudo-random numbers off: x <- (1664525 x + 1013904223) mod 2^32 from 0, and of each x mod 255."""
    import numpy as np

    multiplier, increment = 1664525, 1013904223
    states = np.array([increment], np.uint64)
    while len(states) < block.size:  # twice as many: as far behind each as there are
        states = np.concatenate(
            [states, (states * np.uint64(multiplier) + np.uint64(increment)) & np.uint64(0xFFFFFFFF)]
        )
        increment = increment * (multiplier + 1) & 0xFFFFFFFF
        multiplier = multiplier * multiplier & 0xFFFFFFFF
    numbers = (states[: block.size] % np.uint64(255)).astype(np.uint8)
    plain: np.ndarray = np.bitwise_xor(block, numbers.reshape(block.shape) & 0x0F)
    return plain
