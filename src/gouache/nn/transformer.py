"""The transformer that sits between the convolutions of a latent-diffusion U-Net (arXiv:2112.10752, appendix E.2.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.attention import Attention
from gouache.nn.group_norm import GroupNorm
from gouache.nn.layers import Linear, add


class GatedProjection(nn.Module):
    """GEGLU (Shazeer 2020, arXiv:2002.05202, equation 6): one half of a projection gates the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, inner]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Gated two-layer network, four times as wide inside: [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle entry holds the place of a dropout, so that the parameter names are the published ones.
        self.net = nn.ModuleList([GatedProjection(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, width]."""
        out: Tensor = self.net[2](self.net[0](x))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each behind a layer norm, each residual."""

    def __init__(self, width: int, *, heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads=heads, context_width=context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, width], context [B, L, context_width], mask [B, 1, 1, L] -> [B, N, width]."""
        x = add(self.attn1(self.norm1(x)), x)
        x = add(self.attn2(self.norm2(x), context, mask), x)
        return add(self.ff(self.norm3(x)), x)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, which look at the text.

    Args:
        channels: channels of the feature map.
        heads: attention heads.
        depth: number of transformer blocks.
        context_width: width of the text's tokens.
        groups: groups of the norm in front.
        linear: whether the projections in and out are linear layers (SD 2.x, SDXL) or 1x1 convolutions (SD 1.x).
    """

    def __init__(
        self, channels: int, *, heads: int, depth: int, context_width: int, groups: int = 32, linear: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in: nn.Module = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, context_width=context_width) for _ in range(depth)
        )
        self.proj_out: nn.Module = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, C, h, w], context [B, L, context_width], mask [B, 1, 1, L] -> [B, C, h, w]."""
        size = x.shape[-2:]
        hidden = self.norm(x)
        hidden = self.proj_in(_to_tokens(hidden)) if self.linear else _to_tokens(self.proj_in(hidden))  # [B, h*w, C]
        for block in self.transformer_blocks:
            hidden = block(hidden, context, mask)
        hidden = _to_pixels(self.proj_out(hidden), size) if self.linear else self.proj_out(_to_pixels(hidden, size))
        return add(hidden, x)


def _to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C]; no copy if `x` is channels-last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _to_pixels(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w], channels-last in memory."""
    return x.reshape(x.shape[0], *size, -1).permute(0, 3, 1, 2)
