"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a picture of edges, depth or a pose steers the U-Net.

A copy of the U-Net's way down sees the control picture beside the noisy latents; what its levels give is added to the
feature maps that the U-Net keeps for its way up. Parameter names are those of the published folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import ControlNetConfig
from gouache.models.unet import Changes, Conditioning, MiddleLevel, Residuals, block_shape, down_levels
from gouache.nn.attention import key_mask
from gouache.nn.layers import EmbeddingMLP, silu, time_and_pooled

__all__ = ["ControlBody", "ControlNet", "ControlNetConfig"]

FAINTEST = 0.1
"""Weight of the finest residual where a network guesses; the middle's is 1."""


class HintEmbedding(nn.Module):
    """Convolutions that bring the control picture to the latents' size and the first level's width."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.hint_widths
        self.conv_in = nn.Conv2d(config.hint_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], config.unet.channels[0], 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        """hint [B, hint_channels, H, W] -> [B, C, H / downscale, W / downscale]."""
        x = silu(self.conv_in(hint))
        for block in self.blocks:
            x = silu(block(x))
        out: Tensor = self.conv_out(x)
        return out


class ControlBody(nn.Module):
    """What every ControlNet has: the hint's convolutions, a U-Net's way down, and a convolution for each map."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        self.conv_in = nn.Conv2d(unet.in_channels, unet.channels[0], 3, padding=1)
        self.time_embedding = EmbeddingMLP(unet.channels[0], unet.embedding_width)
        self.add_embedding = EmbeddingMLP(unet.pooled_width, unet.embedding_width) if unet.pooled_width else None
        self.controlnet_cond_embedding = HintEmbedding(config)
        self.down_blocks, kept = down_levels(unet)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in kept)
        self.mid_block = MiddleLevel(
            unet.channels[-1],
            unet.middle_layers,
            depth=unet.middle_transformer_layers,
            shape=replace(block_shape(unet, len(unet.channels) - 1), crossing=False),
        )
        self.controlnet_mid_block = nn.Conv2d(unet.channels[-1], unet.channels[-1], 1)

    def embed(self, hint: Tensor) -> Tensor:
        """What the network sees of a control picture; the same at every step, so it is worked out once.

        Args:
            hint: [B, hint_channels, H, W] in [0, 1], as RGB.

        Returns:
            [B, C, H / downscale, W / downscale].
        """
        out: Tensor = self.controlnet_cond_embedding(hint.flip(1) if self.config.hint_order == "bgr" else hint)
        return out

    def steered(
        self,
        hidden: Tensor,
        embedding: Tensor,
        context: Tensor,
        context_mask: Tensor | None,
        *,
        guess: bool,
        changes: Changes | None = None,
    ) -> Residuals:
        """The way down and the middle, and what they add to the U-Net's.

        Args:
            hidden: the latents and what is seen of control pictures. [B, C, h, w]
            embedding: activated, as the U-Net's. [B, D]
            context, context_mask, guess, changes: as in `ControlNet.forward`.
        """
        given = Conditioning(embedding=embedding, context=context, mask=key_mask(context_mask), changes=changes)
        skips = [hidden]
        for down in self.down_blocks:
            hidden = down(hidden, given, skips)
        hidden = self.mid_block(hidden, given)
        residuals = [block(skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return self._weighed([*residuals, self.controlnet_mid_block(hidden)], guess=guess)

    def _weighed(self, residuals: Sequence[Tensor], *, guess: bool) -> Residuals:
        if self.config.pooled_residuals:
            residuals = [residual.mean((2, 3), keepdim=True) for residual in residuals]
        elif guess:
            weights = FAINTEST ** torch.linspace(1, 0, len(residuals))
            residuals = [residual * weight.item() for residual, weight in zip(residuals, weights, strict=True)]
        return Residuals(skips=tuple(residuals[:-1]), middle=residuals[-1])

    def check(self, x: Tensor, features: Tensor, pooled: Tensor | None) -> None:
        """Raise `ShapeMismatch` unless what is seen of a picture fits the latents, and `pooled` the network."""
        width = self.config.unet.pooled_width
        if features.shape[-2:] != x.shape[-2:]:
            raise ShapeMismatch(
                "ControlNet",
                given=f"a control picture for {tuple(features.shape[-2:])} latent pixels",
                expected=f"one for {tuple(x.shape[-2:])}",
            )
        if (0 if pooled is None else pooled.shape[-1]) != width:
            given = "nothing" if pooled is None else f"shape {tuple(pooled.shape)}"
            raise ShapeMismatch("ControlNet input 'pooled'", given=given, expected=f"{width} channels")


class ControlNet(ControlBody):
    """`(x, timestep, context, features) -> residuals` for the feature maps of the U-Net that it belongs to."""

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        features: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        guess: bool = False,
        changes: Changes | None = None,
    ) -> Residuals:
        """One evaluation, of the same inputs as the U-Net's.

        Args:
            x: noisy latents, scaled as the U-Net's. [B, in_channels, h, w]
            timestep: [B], or [] for all rows.
            context: the text's tokens. [B, L, context_width]
            features: of the control picture, see `embed`. [B, C, h, w]
            context_mask: True where a token is real, or None for all. [B, L]
            pooled: as the U-Net's. [B, pooled_width]
            guess: weigh coarse residuals more than fine ones (0.1 to 1), for control without words.
            changes: transformer block -> what some rows do otherwise there.

        Raises:
            ShapeMismatch: the control picture has another size than the latents, or `pooled` doesn't fit.
        """
        self.check(x, features, pooled)
        embedding = time_and_pooled(self.time_embedding, self.add_embedding, timestep.expand(len(x)), pooled, x.dtype)
        hidden = self.conv_in(x) + features
        return self.steered(hidden, embedding, context, context_mask, guess=guess, changes=changes)
