"""Sinusoidal embeddings of numbers, and the two-layer network behind them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gouache.nn.elementwise import silu
from gouache.nn.linear import Linear


def sinusoidal_embedding(values: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of each value at `width / 2` geometric frequencies from 1 down to 1 / max_period.

    The transformer's position code (Vaswani et al. 2017, arXiv:1706.03762, section 3.5) for real numbers, in the order
    that the Stable Diffusion networks were trained with (cosines first).

    Args:
        values: [...], any real numbers, for example timesteps 0..999.
        width: even number of channels.

    Returns:
        [..., width] in fp32, in [-1, 1].
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(max_period) * exponents)  # [..., width / 2]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class EmbeddingMLP(nn.Module):
    """Two linear layers with a SiLU between them: [B, width_in] -> [B, width_out]."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width_in, width_out)
        self.linear_2 = Linear(width_out, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width_in] -> [B, width_out]."""
        out: Tensor = self.linear_2(silu(self.linear_1(x)))
        return out
