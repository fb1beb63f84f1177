"""Token merging (ToMe for Stable Diffusion, Bolya and Hoffman 2023, arXiv:2303.17604): self-attention over a large
feature map sees the most similar of its places as one, and each of them gets what that one is given.

Attention costs the square of the number of tokens: merging half of them leaves a quarter of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE = 2
"""Of each STRIDE x STRIDE places the first one, top left, stays and takes others in."""


@dataclass(frozen=True, slots=True)
class TokenMerging:
    """How much is merged.

    Attributes:
        ratio: share of the places that are merged into others; all but one of four at most.
        size: height and width of the feature map, where it is known.
    """

    ratio: float
    size: tuple[int, ...] = ()

    def at(self, size: tuple[int, ...]) -> TokenMerging:
        """The same for a feature map of this size (h, w)."""
        return replace(self, size=size)

    def of(self, tokens: Tensor) -> Clusters | None:
        """Which tokens of a feature map are merged; None = none. [B, h * w, C]"""
        return clusters(tokens, self.size, self.ratio)


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which of N tokens stay by themselves, and which are merged into which of those that take others in.

    Attributes:
        alone: those that stay by themselves. [B, U]
        merged: those that don't. [B, R]
        into: for each of those, the number of the one in `takers` that takes it in. [B, R]
        takers: those that take others in; U + R + T = N. [T]
    """

    alone: Tensor
    merged: Tensor
    into: Tensor
    takers: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] -> [B, U + T, C]: those alone, then the mean of each cluster."""
        taking, width = x[:, self.takers], x.shape[-1]
        means = taking.scatter_reduce(1, _across(self.into, width), _picked(x, self.merged), "mean", include_self=True)
        return torch.cat([_picked(x, self.alone), means], dim=1)

    def unmerge(self, x: Tensor) -> Tensor:
        """[B, U + T, C] -> [B, N, C]: all of a cluster get what it has."""
        count, width = self.alone.shape[1], x.shape[-1]
        alone, means = x[:, :count], x[:, count:]
        places = count + self.merged.shape[1] + len(self.takers)
        out = torch.empty(len(x), places, width, dtype=x.dtype, device=x.device)
        out[:, self.takers] = means
        out = out.scatter(1, _across(self.alone, width), alone)
        return out.scatter(1, _across(self.merged, width), _picked(means, self.into))


def clusters(tokens: Tensor, size: tuple[int, ...], ratio: float) -> Clusters | None:
    """Bipartite soft matching (arXiv:2303.17604, section 3; arXiv:2210.09461, section 3): of each 2 x 2 places the
    first takes others in; every other place finds the one of these that it is most alike, by the cosine, and the
    `ratio` of all places that are most alike are merged. Nothing is drawn at random (`no_rand` in tomesd).

    Args:
        tokens: of a feature map, row by row. [B, h * w, C]
        size: (h, w).
        ratio: share of the h * w places that are merged, 0..1.

    Returns:
        None where nothing is merged: `ratio` is too small, or the map is less than 2 wide or high.
    """
    height, width = size
    numbers = torch.arange(height * width, device=tokens.device).reshape(height, width)
    takers = numbers[: height - height % STRIDE : STRIDE, : width - width % STRIDE : STRIDE].flatten()
    taking = torch.zeros(height * width, dtype=torch.bool, device=tokens.device)
    taking[takers] = True
    others = numbers.flatten()[~taking]
    count = min(int(height * width * ratio), len(others))
    if count == 0 or len(takers) == 0:
        return None
    unit = F.normalize(tokens.detach(), dim=-1)
    likeness = unit[:, others] @ unit[:, takers].transpose(1, 2)  # [B, N - T, T]
    best, into = likeness.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, alone = order[:, :count], order[:, count:]
    return Clusters(others[alone], others[merged], into.gather(1, merged), takers)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """The tokens of x [B, N, C] at places [B, K]. [B, K, C]"""
    return x.gather(1, _across(places, x.shape[-1]))


def _across(places: Tensor, width: int) -> Tensor:
    return places[..., None].expand(-1, -1, width)
