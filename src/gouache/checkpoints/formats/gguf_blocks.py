"""Turns ggml's blocks of numbers back into float32.

Each block stores whole numbers q of a few bits and what they are multiplied with. Types ``Qn_0`` have one scale d a
block of 32 numbers, x = d (q - offset); ``Qn_1`` a scale and a minimum, x = d q + m. The ``Qn_K`` pack 256 numbers into
a block with smaller blocks inside, whose scales (and minima) are whole numbers themselves: x = d s q - dmin m, or
x = d s (q - offset). Source: the structures ``block_*`` and their comments in ggml's ggml-common.h.

Below, a block is a row of bytes [N, bytes] and becomes a row of numbers [N, numbers].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN
from gouache.errors import CorruptCheckpoint

if TYPE_CHECKING:
    from gouache.checkpoints.formats.gguf import BlockType

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float32]

AT_ONCE = 1 << 20
"""Numbers that are dequantized together: what is needed on the way stays within some tens of megabytes."""


def dequantize(file: BinaryIO, kind: BlockType, out: Numbers, path: Path) -> None:
    """Read blocks from where `file` stands and write their numbers.

    Args:
        file: stands at the first block.
        kind: the blocks' type, a key of `DEQUANTIZERS`.
        out: filled with the numbers. [N]
        path: of the file, for errors.

    Raises:
        CorruptCheckpoint: the file ends before `out` is full.
    """
    convert = DEQUANTIZERS[kind.name]
    step = AT_ONCE // kind.numbers
    blocks = out.reshape(-1, kind.numbers)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        raw = file.read(len(part) * kind.bytes)
        if len(raw) != len(part) * kind.bytes:
            raise CorruptCheckpoint(
                str(path),
                given=f"{len(raw)} bytes of blocks",
                expected=f"{len(part) * kind.bytes}; the file is cut off",
                cure=DOWNLOAD_AGAIN,
            )
        part[:] = convert(np.frombuffer(raw, np.uint8).reshape(len(part), kind.bytes))


def _half(blocks: Bytes, at: int) -> Numbers:
    """The float16 at a byte of every block. [N, 1]"""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """Numbers of 4 bits: of every run of bytes first the low halves, then the high ones. [N, B] -> [N, 2 B]"""
    return _fields(packed, run, (0, 4), 15)


def _fields(packed: Bytes, run: int, shifts: tuple[int, ...], mask: int) -> Bytes:
    """Bits of every run of bytes: all at the first shift, then all at the second, ... [N, B] -> [N, B len(shifts)]"""
    runs = packed.reshape(len(packed), -1, 1, run)
    fields = (runs >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1)) & np.uint8(mask)
    return fields.reshape(len(packed), -1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """Bit j of a word of 32 belongs to number j; moved to the fifth place. [N, 32]"""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q4_0(blocks: Bytes) -> Numbers:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Numbers:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Numbers:
    whole = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (whole.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Numbers:
    whole = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * whole + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Numbers:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _scaled(scale: Numbers, whole: Numbers | Bytes) -> Numbers:
    """Numbers times the scales of their smaller blocks. scale [N, G], whole [N, 256]"""
    groups = scale.shape[1]
    return (scale[:, :, None] * whole.reshape(len(whole), groups, -1)).reshape(len(whole), -1)


def _q2_k(blocks: Bytes) -> Numbers:
    """16 smaller blocks; scales and minima have 4 bits, numbers 2."""
    scales, whole = blocks[:, :16], _fields(blocks[:, 16:80], 32, (0, 2, 4, 6), 3)
    minima = _half(blocks, 82) * (scales >> 4)
    numbers: Numbers = _scaled(_half(blocks, 80) * (scales & 15), whole) - np.repeat(minima, 16, axis=1)
    return numbers


def _q3_k(blocks: Bytes) -> Numbers:
    """16 smaller blocks with scales of 6 bits; numbers of 3 bits, of which the highest, inverted, lies apart."""
    high = _fields(blocks[:, :32], 32, tuple(range(8)), 1)
    whole = _fields(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).astype(np.float32) + 4 * high.astype(np.float32) - 4
    low = _fields(blocks[:, 96:104], 8, (0, 4), 15)
    scales = (low | _fields(blocks[:, 104:108], 4, (0, 2, 4, 6), 3) << 4).astype(np.float32) - 32
    return _scaled(_half(blocks, 108) * scales, whole)


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minima of 6 bits, in 12 bytes. [N, 12] -> two of [N, 8]

    The first four of each stand in the low bits of a byte of their own; the others' low halves share a byte, and their
    high bits are the two that the first four leave free.
    """
    first, second, shared = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (shared & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (shared >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def _q45_k(blocks: Bytes, whole: Bytes) -> Numbers:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    return _scaled(_half(blocks, 0) * scales, whole) - np.repeat(_half(blocks, 2) * minima, 32, axis=1)


def _q4_k(blocks: Bytes) -> Numbers:
    return _q45_k(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Bytes) -> Numbers:
    high = _fields(blocks[:, 16:48], 32, tuple(range(8)), 1)
    return _q45_k(blocks, _nibbles(blocks[:, 48:], 32) | high << np.uint8(4))


def _q6_k(blocks: Bytes) -> Numbers:
    """16 smaller blocks with scales of 8 bits; numbers of 6 bits, 4 and 2 of them apart."""
    low, high = _nibbles(blocks[:, :128], 64), _fields(blocks[:, 128:192], 32, (0, 2, 4, 6), 3)
    whole = (low | high << np.uint8(4)).astype(np.float32) - 32
    return _scaled(_half(blocks, 208) * blocks[:, 192:208].view(np.int8), whole)


DEQUANTIZERS: dict[str, Callable[[Bytes], Numbers]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""ggml's name of a type -> what makes numbers of its blocks."""
