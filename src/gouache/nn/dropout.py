"""Dropout that draws from a generator of its own, not from the global one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from gouache.errors import InvalidInput

LEVELS = 2**16
"""A number is kept or not by 16 random bits, so the share is exact to 0.00002."""


class Dropout(nn.Module):
    """Sets a share of numbers to zero and scales up the rest (Srivastava et al. 2014), while training.

    Unlike torch's, the mask comes from a generator that the training loop seeds for every step: a resumed run draws
    the same masks as the uninterrupted one.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise InvalidInput("dropout", given=share, expected="a share from 0 to below 1")
        self.share = share
        self._words = _Words(0)

    def seed(self, seed: int) -> None:
        """Start a new sequence of masks."""
        self._words = _Words(seed)

    def forward(self, x: Tensor) -> Tensor:
        if self.share == 0 or not self.training:
            return x
        factors: Tensor = self._factors(x)
        return x * factors

    # As torch.compiler.disable, which would import the compiler at once: a second and 80 MB for those who only paint.
    @_disable_dynamo
    def _factors(self, x: Tensor) -> Tensor:
        """0 where a number is dropped, else 1 / (1 - share). The shape and type of `x`"""
        kept = self._words.draw(x.numel(), x.device) >= round(self.share * LEVELS) - LEVELS // 2
        return kept.view(x.shape).to(x.dtype).div_(1 - self.share)


class _Words:
    """An endless row of random 16-bit integers. On a CPU by SFC64, ten times as fast as torch's Mersenne twister."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numpy: np.random.SFC64 | None = None
        self._torch: torch.Generator | None = None

    def draw(self, count: int, device: torch.device) -> Tensor:
        """The next `count` integers from -2^15 to 2^15 - 1. [count]"""
        if device.type == "cpu":
            if self._numpy is None:
                self._numpy = np.random.SFC64(self._seed)
            return torch.from_numpy(self._numpy.random_raw(-(-count // 4)).view(np.int16))[:count]
        if self._torch is None:
            self._torch = torch.Generator(device).manual_seed(self._seed)
        limit = LEVELS // 2
        return torch.randint(-limit, limit, (count,), generator=self._torch, device=device, dtype=torch.int16)
