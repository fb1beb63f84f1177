"""IP-Adapter (Ye et al. 2023, arXiv:2308.06721): pictures as prompts, by cross-attention apart from the text's.

What CLIP's vision tower sees of a picture becomes a few tokens, and every cross-attention of the U-Net looks at them
with keys and values of their own. Parameter names are those of the published files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.conditioning.image_encoder import ImageEncoding
from gouache.models.configs import IPAdapterConfig
from gouache.models.unet import UNet
from gouache.nn.attention import PictureTokens, TransformerBlock, attend
from gouache.nn.layers import Linear

__all__ = ["HEAD_WIDTH", "IPAdapter", "IPAdapterConfig", "Seen", "cross_attentions"]

HEAD_WIDTH = 64
"""Width of a head of the resampler."""


class LinearProjection(nn.Module):
    """The plain kind: one vector as a few tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = Linear(config.picture_width, config.tokens * config.context_width)
        self.norm = nn.LayerNorm(config.context_width)

    def forward(self, embedding: Tensor) -> Tensor:
        """embedding [B, picture_width] -> [B, tokens, context_width]."""
        out: Tensor = self.norm(self.proj(embedding).unflatten(1, (self.tokens, -1)))
        return out


class FullProjection(nn.Module):
    """The full kind: every state of the tower as a token."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            Linear(config.picture_width, config.picture_width),
            nn.GELU(),
            Linear(config.picture_width, config.context_width),
            nn.LayerNorm(config.context_width),
        )

    def forward(self, states: Tensor) -> Tensor:
        """states [B, M, picture_width] -> [B, M, context_width]."""
        out: Tensor = self.proj(states)
        return out


class PerceiverAttention(nn.Module):
    """Queries look at the picture's states and at themselves (Alayrac et al. 2022, Flamingo, arXiv:2204.14198,
    section 3.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_WIDTH
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        """states [B, M, width], queries [B, T, width] -> [B, T, width]."""
        states, own = self.norm1(states), self.norm2(queries)
        key, value = self.to_kv(torch.cat([states, own], dim=1)).chunk(2, dim=-1)
        out: Tensor = self.to_out(attend(self.to_q(own), key, value, heads=self.heads))
        return out


class Resampler(nn.Module):
    """The plus kind: learnt queries gather what the tower's states hold."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width, inner = config.width, config.inner_width
        self.latents = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.proj_in = Linear(config.picture_width, width)
        self.proj_out = Linear(width, config.context_width)
        self.norm_out = nn.LayerNorm(config.context_width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, config.heads),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        Linear(width, inner, bias=False),
                        nn.GELU(),
                        Linear(inner, width, bias=False),
                    ),
                ]
            )
            for _ in range(config.layers)
        )

    def forward(self, states: Tensor) -> Tensor:
        """states [B, M, picture_width] -> [B, tokens, context_width]."""
        states = self.proj_in(states)
        queries = self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            queries = attention(states, queries) + queries
            queries = feed_forward(queries) + queries
        out: Tensor = self.norm_out(self.proj_out(queries))
        return out


class KeysAndValues(nn.Module):
    """The projections of one cross-attention."""

    def __init__(self, context_width: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = Linear(context_width, width, bias=False)
        self.to_v_ip = Linear(context_width, width, bias=False)


PROJECTIONS: Mapping[str, Callable[[IPAdapterConfig], nn.Module]] = {
    "plain": LinearProjection,
    "full": FullProjection,
    "plus": Resampler,
}


class IPAdapter(nn.Module):
    """What makes tokens of pictures, and the keys and values of every cross-attention of one U-Net."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PROJECTIONS[config.kind](config)
        # The published files count all attentions; those over the picture itself, in between, have nothing of theirs.
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): KeysAndValues(config.context_width, width) for i, width in enumerate(config.block_widths)}
        )

    def tokens(self, seen: ImageEncoding) -> Tensor:
        """What the U-Net looks at for pictures.

        Args:
            seen: what the vision tower makes of B pictures.

        Returns:
            [B, tokens, context_width].

        Raises:
            ShapeMismatch: another tower than the adapter was trained with.
        """
        given = seen.embedding if self.config.kind == "plain" else seen.penultimate
        if given.shape[-1] != self.config.picture_width:
            raise ShapeMismatch(
                "IP-Adapter", given=f"a tower's states of {given.shape[-1]}", expected=f"{self.config.picture_width}"
            )
        weight = next(self.image_proj.parameters())
        out: Tensor = self.image_proj(given.to(weight.device, weight.dtype))
        return out

    def blocks(self, unet: UNet) -> dict[nn.Module, KeysAndValues]:
        """Transformer block of the U-Net -> what of this belongs to it."""
        pairs = zip(cross_attentions(unet), self.ip_adapter.children(), strict=True)
        return {block: own for block, own in pairs if isinstance(own, KeysAndValues)}


def cross_attentions(unet: UNet) -> list[TransformerBlock]:
    """The transformer blocks of a U-Net in the order of the published files: way down, way up, middle."""
    middle = [unet.mid_block] if unet.config.middle_layers else []
    parts = [unet.down_blocks, unet.up_blocks, *middle]
    return [module for part in parts for module in part.modules() if isinstance(module, TransformerBlock)]


@dataclass(frozen=True, slots=True)
class Seen:
    """Pictures as one adapter shows them to a U-Net; every tensor has B rows, or one for all.

    Attributes:
        adapter: it.
        tokens: of the pictures, of one after the other. [B, M, context_width]
        weight: factor on what is seen. [B]
        mask: where it counts, 0..1, at the picture's size; None = everywhere. [B, 1, H, W]
    """

    adapter: IPAdapter
    tokens: Tensor
    weight: Tensor
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Seen:
        """The same with changed tensors."""
        mask = None if self.mask is None else change(self.mask)
        return replace(self, tokens=change(self.tokens), weight=change(self.weight), mask=mask)

    def cropped(self, share: tuple[float, float, float, float]) -> Seen:
        """The same for a part of the picture: top, bottom, left and right as shares of its sides."""
        if self.mask is None:
            return self
        height, width = self.mask.shape[-2:]
        top, bottom, left, right = (
            round(part * side) for part, side in zip(share, (height, height, width, width), strict=True)
        )
        return replace(self, mask=self.mask[..., top:bottom, left:right])

    def of_block(self, own: KeysAndValues) -> PictureTokens:
        """What one block looks at."""
        return PictureTokens(own.to_k_ip, own.to_v_ip, self.tokens, self.weight[:, None, None], self.mask)
