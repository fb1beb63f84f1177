"""Captioned pictures as the later stages see them: latents and text states, encoded in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gouache.training.stage import Batch


@dataclass(frozen=True, slots=True)
class TextStates:
    """The text encoder's output for some captions.

    Attributes:
        context: one vector a token, zero behind the end. [B,L,D]
        mask: true where a token is. [B,L]
        pooled: one vector a caption. [B,P]
    """

    context: Tensor
    mask: Tensor
    pooled: Tensor

    def batch(self) -> Batch:
        """The tensors by name, for a batch."""
        return {"context": self.context, "mask": self.mask, "pooled": self.pooled}

    def expanded(self, count: int) -> TextStates:
        """The states [1, ...] of one caption, for `count` pictures."""
        return TextStates(*(t.expand(count, *t.shape[1:]) for t in (self.context, self.mask, self.pooled)))


class Encoded(Protocol):
    """A fixed number of captioned pictures, encoded."""

    empty: TextStates
    """States of the empty caption, [1, ...]."""

    def __len__(self) -> int: ...

    def latents(self, numbers: Sequence[int]) -> Tensor:
        """Normalised latents [B,C,h,w] in fp32."""
        ...

    def text(self, numbers: Sequence[int]) -> TextStates:
        """States of their captions, in fp32."""
        ...

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """The captions themselves."""
        ...


class Shuffled:
    """The endless stream over a finite set: every epoch is a permutation of its own, keyed by (seed, epoch)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def numbers(self, indices: Sequence[int]) -> list[int]:
        """Which items stand at these places of the stream."""
        return [int(self._permutation(index // self.length)[index % self.length]) for index in indices]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed & (2**63 - 1), epoch]))
            self._epoch, self._order = epoch, generator.permutation(self.length)
        return self._order


def drop_captions(states: TextStates, empty: TextStates, dropped: Tensor) -> TextStates:
    """Replace the captions marked in `dropped` [B] by the empty one (Ho & Salimans 2022, algorithm 1)."""
    length = states.context.shape[1]
    context = torch.zeros_like(states.context[:1])
    mask = torch.zeros_like(states.mask[:1])
    own = min(length, empty.context.shape[1])
    context[:, :own], mask[:, :own] = empty.context[:, :own], empty.mask[:, :own]
    where = dropped.view(-1, 1)
    return TextStates(
        torch.where(where[..., None], context, states.context),
        torch.where(where, mask, states.mask),
        torch.where(where, empty.pooled, states.pooled),
    )
