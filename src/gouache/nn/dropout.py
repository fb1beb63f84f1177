"""Dropout that draws from a generator of its own, not from the global one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gouache.errors import InvalidInput


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
        self._generator: torch.Generator | None = None
        self._seed = 0

    def seed(self, seed: int) -> None:
        """Start a new sequence of masks."""
        self._seed, self._generator = seed, None

    def forward(self, x: Tensor) -> Tensor:
        if self.share == 0 or not self.training:
            return x
        if self._generator is None or self._generator.device != x.device:
            self._generator = torch.Generator(x.device).manual_seed(self._seed)
        kept = torch.rand(x.shape, generator=self._generator, device=x.device, dtype=x.dtype) >= self.share
        return x * kept / (1 - self.share)
