"""Residual codes: what a draft leaves of a picture's latents, place by place, as the nearest of a few vectors.

The last step of a residual quantizer (Zeghidour et al. 2021, "SoundStream", section III-C), as fine as the latents
themselves. The prior does not draw these codes: a picture's own are known where it is encoded, and those of a
remembered picture where a draft follows it. The first code is zero and stands for nothing, wherever none is known.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import ShapeMismatch

__all__ = ["ResidualCodes"]

ROUNDS = 25
"""Rounds of k-means: the error falls by less than one part in a hundred in the next twenty-five."""


class ResidualCodes(nn.Module):
    """A table of vectors. Buffer `codes` [K,C], the first of them zero."""

    codes: Tensor

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(count, channels))

    def forward(self, residual: Tensor) -> Tensor:
        """Residuals [B,C,h,w] -> the number of the nearest code at every place, in raster order, as bytes. [B,h*w]"""
        codes = self.codes.to(residual.dtype)
        if residual.shape[1] != codes.shape[1]:
            raise ShapeMismatch("residual", given=tuple(residual.shape), expected=f"[batch, {codes.shape[1]}, h, w]")
        return _nearest(residual.flatten(2).mT, codes).to(torch.uint8)

    def latents(self, residuals: Tensor, side: int) -> Tensor:
        """What to add to a draft: numbers of codes [B,side*side] -> [B,C,side,side]."""
        if residuals.shape[1] != side * side:
            raise ShapeMismatch("residuals", given=tuple(residuals.shape), expected=f"[batch, {side * side}]")
        return self.codes[residuals.long()].mT.reshape(len(residuals), -1, side, side)

    @torch.no_grad()
    def fit(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Choose the codes for some residuals by k-means (Lloyd 1982); the first stays zero.

        Args:
            vectors: residuals of single places; at least as many as there are codes. [N,C]
            generator: draws the places that the codes begin as.
        """
        vectors = vectors.float()
        if len(vectors) < len(self.codes):
            raise ShapeMismatch("vectors", given=tuple(vectors.shape), expected=f"{len(self.codes)} or more of them")
        codes = vectors[torch.randperm(len(vectors), generator=generator)[: len(self.codes)]]
        codes[0] = 0
        for _ in range(ROUNDS):
            own = _nearest(vectors, codes)
            counts = torch.bincount(own, minlength=len(codes))
            means = torch.zeros_like(codes).index_add_(0, own, vectors) / counts.clamp(min=1)[:, None]
            # One that is nearest to nothing begins again somewhere else.
            again = vectors[torch.randint(len(vectors), (len(codes),), generator=generator)]
            codes = torch.where(counts[:, None] > 0, means, again)
            codes[0] = 0
        self.codes.copy_(codes)


def _nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Number of the nearest code [K,C] of each vector [...,C], the lowest of equals. [...]"""
    parts = torch.split(vectors.flatten(0, -2), 1 << 16)
    found = [torch.addmm(codes.square().sum(1), part, codes.mT, alpha=-2).argmin(1) for part in parts]
    return torch.cat(found).view(vectors.shape[:-1])


def shared(residuals: Tensor, tokens: Tensor, other: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Residuals of one picture for another's draft: where all tokens that lie over a place are the same. [B,h*w]

    Args:
        residuals: of the one picture. [B,h*w]
        tokens, other: of the one and the other. [B,S]
        scales: sides of the tokens' grids.
    """
    side = round(residuals.shape[1] ** 0.5)
    same = torch.ones(len(residuals), 1, side, side, dtype=torch.bool, device=residuals.device)
    parts = torch.split(tokens == other, [one * one for one in scales], dim=1)
    for grid, part in zip(scales, parts, strict=True):
        cells = part.view(-1, 1, grid, grid).float()
        same &= F.interpolate(cells, size=(side, side), mode="nearest") > 0
    return torch.where(same.flatten(1), residuals, 0)
