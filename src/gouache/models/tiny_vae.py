"""The tiny autoencoder: convolutions and ReLU alone, a fifteenth of the published one's work in decoding.

The architecture is TAESD's (Ollin Boer Bohan, github.com/madebyollin/taesd, MIT licence), under the names that
diffusers' `AutoencoderTiny` gives its tensors. Its latents are normalised already, and its encoder gives no variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

REACH = 3.0
"""Latents are squeezed into -REACH .. REACH in front of the decoder."""


class TinyBlock(nn.Module):
    """Three convolutions with ReLU between, residual, ReLU behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Pictures to latents.

    Args:
        channels_in: of a picture.
        channels_out: of the latents.
        width: of every level.
        blocks: residual blocks of each level, finest first; each level after the first halves the resolution.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels_in, width, 3, padding=1)]
        for level, count in enumerate(blocks):
            if level:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels_out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] in [-1, 1] -> normalised latents [B, out, H / f, W / f]."""
        latents: Tensor = self.layers((x + 1) / 2)
        return latents


class TinyDecoder(nn.Module):
    """Normalised latents to pictures.

    Args:
        channels_in: of the latents.
        channels_out: of a picture.
        width: of every level.
        blocks: residual blocks of each level, coarsest first; each level but the last doubles the resolution behind.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels_in, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(blocks):
            layers += [TinyBlock(width) for _ in range(count)]
            if level < len(blocks) - 1:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels_out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, h, w] -> [B, out, h * f, w * f], about [-1, 1]."""
        pixels: Tensor = self.layers(torch.tanh(x / REACH) * REACH)
        return pixels * 2 - 1
