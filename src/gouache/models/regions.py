"""Texts that hold in a part of the picture only: every place looks at its own words (attention coupling).

The cross-attention of each transformer block is worked out for each text, and at each place the results are mixed by
the shares that the texts have there: out(p) = sum over r of w_r(p) Attention(x, c_r)(p), with shares that add up to 1.
Each feature map of the network takes the shares at its own resolution, averaged over what its places cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.nn.attention import Areas, key_mask

__all__ = ["RegionTexts", "Shares", "areas_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """How much of each place belongs to each text.

    Attributes:
        latent: at the latents' size; at no place more than 1 in all. [R, h, w]
    """

    latent: Tensor
    _levels: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def at_levels(self, levels: int) -> Mapping[int, Tensor]:
        """Places of a feature map -> shares [R, N], for the sizes that a network with so many levels has: each halves
        the one before, rounded up."""
        height, width = self.latent.shape[-2:]
        for _ in range(levels):
            if height * width not in self._levels:
                small = F.interpolate(self.latent[None], size=(height, width), mode="area")[0]
                self._levels[height * width] = small.flatten(1)
            height, width = -(-height // 2), -(-width // 2)
        return self._levels


@dataclass(frozen=True, slots=True, eq=False)
class RegionTexts:
    """The texts of a picture's regions, encoded.

    Attributes:
        contexts: tokens of each. [1, L, D]
        masks: for each, True where a token is real; None = all. [1, L]
        shares: where each holds.
    """

    contexts: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    shares: Shares

    def cut(self, rows: slice, columns: slice) -> RegionTexts:
        """Those of a tile."""
        return replace(self, shares=Shares(self.shares.latent[:, rows, columns]))


def areas_of(
    rows: Sequence[RegionTexts | None], levels: int, device: torch.device, dtype: torch.dtype
) -> tuple[Areas, ...]:
    """What the rows of one call look at beside their context; rows with the same texts together.

    Args:
        rows: one for each row; empty = none has regions.
        levels: resolutions of the network.
        device, dtype: where and in which precision the network works.
    """
    found: dict[int, tuple[RegionTexts, list[int]]] = {}
    for row, texts in enumerate(rows):
        if texts is not None:
            found.setdefault(id(texts), (texts, []))[1].append(row)
    return tuple(
        Areas(
            torch.tensor(chosen, device=device),
            tuple(context.to(device, dtype) for context in texts.contexts),
            tuple(key_mask(None if mask is None else mask.to(device)) for mask in texts.masks),
            {places: share.to(device, dtype) for places, share in texts.shares.at_levels(levels).items()},
        )
        for texts, chosen in found.values()
    )
