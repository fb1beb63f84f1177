"""ControlNets of Stable Diffusion 3 and 3.5: blocks like the transformer's see the latents of a control picture, and
what each gives is added to the picture's tokens behind some of the transformer's blocks.

ControlNet is Zhang et al. 2023 (arXiv:2302.05543), the block Esser et al. 2024 (arXiv:2403.03206, section 4). Parameter
names are those of the published folders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import JointControlNetConfig
from gouache.models.mmdit import PatchEmbedding, TimeAndText
from gouache.nn.joint import JointAttention, JointBlock, JointFeedForward, Modulation, modulated, normed
from gouache.nn.layers import Linear

__all__ = ["JointControlNet", "JointControlNetConfig", "spread"]


def spread(residuals: Sequence[Tensor], blocks: int) -> tuple[Tensor, ...]:
    """One residual for each of so many blocks: the first serves the first of them, and so on in equal shares."""
    interval = blocks / len(residuals)
    return tuple(residuals[int(block / interval)] for block in range(blocks))


class PictureBlock(nn.Module):
    """Attention among the picture's tokens and a feed-forward, behind adaptive norms: the block of Stability AI's
    ControlNets for 3.5 large, which look at no text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = Modulation(width, 6)
        self.attn = JointAttention(width, heads, qk_norm=False, text=False, text_out=False)
        self.ff = JointFeedForward(width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, N, D], embedding [B, D] -> [B, N, D]."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1(embedding)
        x = x + gate * self.attn(modulated(normed(x), shift, scale))[0]
        out: Tensor = x + ff_gate * self.ff(modulated(normed(x), ff_shift, ff_scale))
        return out


class HintPatches(nn.Module):
    """Patches of a control picture's latents as tokens."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, C, h, w] -> [B, h * w / patch_size^2, width]."""
        out: Tensor = self.proj(features).flatten(2).transpose(1, 2)
        return out


class JointControlNet(nn.Module):
    """`(x, timestep, context, features) -> residuals` for the blocks of the transformer that it belongs to."""

    def __init__(self, config: JointControlNetConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.transformer
        self.pos_embed = PatchEmbedding(shape) if config.own_places else None
        self.pos_embed_input = HintPatches(shape.in_channels, shape.width, shape.patch_size)
        self.time_text_embed = TimeAndText(shape)
        self.context_embedder = Linear(shape.context_width, shape.width) if config.reads_text else None
        self.transformer_blocks = nn.ModuleList(
            JointBlock(shape.width, shape.heads, qk_norm=shape.qk_norm, dual=layer in shape.dual_layers, last=False)
            if config.reads_text
            else PictureBlock(shape.width, shape.heads)
            for layer in range(shape.layers)
        )
        self.controlnet_blocks = nn.ModuleList(Linear(shape.width, shape.width) for _ in range(shape.layers))

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        features: Tensor,
        *,
        places: PatchEmbedding,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One evaluation, of the same inputs as the transformer's.

        Args:
            x: noisy latents, scaled as the transformer's. [B, in_channels, h, w]
            timestep: [B], or [] for all rows.
            context: the text's tokens. [B, L, context_width]
            features: latents of the control picture, scaled as the network was trained. [B, in_channels, h, w]
            places: the transformer's patch embedding, for a network without its own.
            context_mask: True where a token is real, or None for all. [B, L]
            pooled: the text as one vector. [B, pooled_width]

        Returns:
            For each block [B, h * w / patch_size^2, width].

        Raises:
            ShapeMismatch: the control picture has another size than the latents, or `pooled` is missing.
        """
        if features.shape[1:] != x.shape[1:] or pooled is None:
            raise ShapeMismatch(
                "ControlNet",
                given=f"a control picture of {tuple(features.shape[1:])}" if pooled is not None else "no pooled text",
                expected=f"latents of {tuple(x.shape[1:])}, and a pooled text",
            )
        tokens: Tensor = (self.pos_embed or places)(x) + self.pos_embed_input(features)
        vector = torch.zeros_like(pooled) if self.config.zero_pooled else pooled
        embedding = self.time_text_embed(timestep.expand(len(x)), vector)
        text = None if self.context_embedder is None else self.context_embedder(context)
        mask = None
        if context_mask is not None:
            mask = F.pad(context_mask.bool(), (tokens.shape[1], 0), value=True)[:, None, None, :]
        found = []
        for block, out in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            if text is None:
                tokens = block(tokens, embedding)
            else:
                tokens, text = block(tokens, text, embedding, mask)
            found.append(out(tokens))
        return tuple(found)
