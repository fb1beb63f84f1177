"""The up-sampling decoder: a small picture four times as large, its edges drawn anew.

A residual network without norms (Lim et al. 2017, arXiv:1707.02921, figure 3) that works at the small picture's
resolution and unfolds channels into pixels at the very end (Shi et al. 2016, arXiv:1609.05158, equation 4). What it
predicts is added to the bilinear enlargement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import UpscalerConfig
from gouache.nn.resnet import zero_

__all__ = ["Upscaler", "UpscalerConfig"]


class ResidualBlock(nn.Module):
    """conv, ReLU, conv; plus the input. It starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        zero_(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C,h,w] -> [B,C,h,w]."""
        change: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + change


class Upscaler(nn.Module):
    """Pictures, `config.scale` times as large. Untrained it enlarges bilinearly."""

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(config.image_channels, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.channels) for _ in range(config.blocks))
        self.conv_out = nn.Conv2d(config.channels, config.image_channels * config.scale**2, 3, padding=1)
        zero_(self.conv_out)

    def forward(self, image: Tensor) -> Tensor:
        """Enlarge.

        Args:
            image: [B, image_channels, h, w] in [-1, 1]; four channels are colours laid on white, and alpha.

        Returns:
            [B, image_channels, scale h, scale w], about [-1, 1], not clamped.

        Raises:
            ShapeMismatch: another number of channels.
        """
        config = self.config
        if image.ndim != 4 or image.shape[1] != config.image_channels:
            raise ShapeMismatch("image", given=tuple(image.shape), expected=f"[B, {config.image_channels}, h, w]")
        hidden: Tensor = self.conv_in(image)  # [B,C,h,w]
        for block in self.blocks:
            hidden = block(hidden)
        change = F.pixel_shuffle(self.conv_out(hidden), config.scale)
        plain = F.interpolate(image, scale_factor=float(config.scale), mode="bilinear", align_corners=False)
        return torch.add(plain, change)
