"""The transformer that CLIP's text and vision towers share (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.attention import attend
from gouache.nn.layers import Linear

Activation = Literal["quick_gelu", "gelu"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """GELU, exact (arXiv:1606.08415, section 2) or as x * sigmoid(1.702 x), the quick form of OpenAI's CLIP."""
    return F.gelu(x) if activation == "gelu" else x * torch.sigmoid(1.702 * x)


class ClipAttention(nn.Module):
    """Self-attention with biases; causal for text."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] -> [N, L, width]."""
        seen = attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), heads=self.heads, causal=self.causal)
        out: Tensor = self.out_proj(seen)
        return out


class ClipFeedForward(nn.Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] -> [N, L, width]."""
        out: Tensor = self.fc2(activate(self.fc1(x), self.activation))
        return out


class ClipLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm, each residual."""

    def __init__(self, width: int, *, inner: int, heads: int, activation: Activation, causal: bool) -> None:
        super().__init__()
        self.self_attn = ClipAttention(width, heads, causal=causal)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = ClipFeedForward(width, inner, activation)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] -> [N, L, width]."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ClipTransformer(nn.Module):
    """A stack of layers, which can stop early."""

    def __init__(
        self, layers: int, width: int, *, inner: int, heads: int, activation: Activation, causal: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ClipLayer(width, inner=inner, heads=heads, activation=activation, causal=causal) for _ in range(layers)
        )

    def forward(self, x: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """Run layers `first` (included) to `end` (excluded, None = all): x [N, L, width] -> [N, L, width]."""
        for layer in self.layers[first:end]:
            x = layer(x)
        return x
