"""Philox 4x32-10, the counter-based generator of CUDA's torch.randn, worked out on the CPU with numpy.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4 and table 2; the way from a counter
to a normal number is cuRAND's (Box-Muller on the block's first two words).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gouache.errors import InvalidInput

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

# cuRAND's constants are fp32: 2^-32, and 2 pi 2^-32 rounded. The sums run in fp64 and are rounded once, at the end.
_UNIT = float(np.float32(2.0**-32))
_ANGLE = float(np.float32(2.0**-32 * 2 * math.pi))


def philox_4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox 4x32 (Salmon et al. 2011, section 4.3 and table 2).

    Args:
        counter: [4, N] uint32
        key: two 32-bit words, the low one first.

    Returns:
        [4, N] uint32, uniformly random words.
    """
    first, second, third, fourth = (word.astype(np.uint64) for word in counter)
    low, high = key
    for _ in range(_ROUNDS):
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second, third, fourth = (
            (right >> _HALF) ^ second ^ np.uint64(low),
            right & _LOW,
            (left >> _HALF) ^ fourth ^ np.uint64(high),
            left & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth]).astype(np.uint32)


def box_muller(first: Words, second: Words) -> npt.NDArray[np.float32]:
    """sqrt(-2 log u) sin(v) from two random words (Box & Muller 1958, equation 1; cuRAND keeps the sine).

    u is the middle of the word's cell of (0, 1], v of (0, 2 pi]. [N], [N] -> [N]
    """
    u = first * _UNIT + _UNIT / 2
    v = second * _ANGLE + _ANGLE / 2
    normal: npt.NDArray[np.float32] = (np.sqrt(-2 * np.log(u)) * np.sin(v)).astype(np.float32)
    return normal


class Philox:
    """The row of blocks that ``torch.randn(shape, device="cuda")`` gives after a seed, as a `NormalStream`.

    Element n of a block has the counter (block, 0, n, 0). A GPU gives the same as long as a block has no more elements
    than the GPU runs threads; beyond that GPUs differ among themselves, and this stream goes on as written.

    Args:
        seed: 0 <= seed < 2^64.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise InvalidInput("seed", given=seed, expected="an integer from 0 to 2^64 - 1")
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._block = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next block of standard normal numbers, fp32 on the CPU."""
        size = math.prod(shape)
        counter = np.zeros((4, size), dtype=np.uint32)
        counter[0] = self._block
        counter[2] = np.arange(size, dtype=np.uint32)
        words = philox_4x32(counter, self._key)
        self._block += 1
        return torch.from_numpy(box_muller(words[0], words[1])).reshape(tuple(shape))
