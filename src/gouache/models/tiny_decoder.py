"""A tiny autoencoder on normalised latents, in TAESD's layout: pictures of each step at a hundredth of the cost.

No norms and no attention, so a tile sees exactly what the whole would, given enough overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import TinyVAEConfig

__all__ = ["AutoencoderTiny", "TinyVAEConfig"]


class TinyBlock(nn.Module):
    """Three convolutions with ReLUs, residual, and a ReLU behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Pictures to normalised latents."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = []
        for level, blocks in enumerate(config.encoder_blocks):
            first = level == 0
            layers.append(
                nn.Conv2d(config.image_channels, width, 3, padding=1)
                if first
                else nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
            )
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """image [B, C, H, W] in [-1, 1] -> [B, latent_channels, H / f, W / f]."""
        out: Tensor = self.layers((image + 1) / 2)
        return out


class TinyDecoder(nn.Module):
    """Normalised latents to pictures."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for blocks in config.decoder_blocks[:-1]:
            layers += [TinyBlock(width) for _ in range(blocks)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        layers += [TinyBlock(width) for _ in range(config.decoder_blocks[-1])]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.image_channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_channels, h, w] -> [B, C, h * f, w * f], about [-1, 1]."""
        # Latents beyond three standard deviations are drawn in, so that early steps don't overflow.
        out: Tensor = self.layers(torch.tanh(latents / 3) * 3)
        return out * 2 - 1


class AutoencoderTiny(nn.Module):
    """Encoder and decoder; the latents are normalised on both sides, there is nothing to scale."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """image [B, C, H, W] in [-1, 1], H and W multiples of `config.downscale` -> latents [B, latent, h, w]."""
        wrong_size = image.shape[-2] % self.config.downscale or image.shape[-1] % self.config.downscale
        if image.ndim != 4 or image.shape[1] != self.config.image_channels or wrong_size:
            raise ShapeMismatch(
                "image",
                given=tuple(image.shape),
                expected=f"[B, {self.config.image_channels}, H, W], H and W multiples of {self.config.downscale}",
            )
        latents: Tensor = self.encoder(image)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, latent_channels, h, w] -> image [B, C, h * f, w * f], about [-1, 1]."""
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ShapeMismatch(
                "latents", given=tuple(latents.shape), expected=f"[B, {self.config.latent_channels}, h, w]"
            )
        image: Tensor = self.decoder(latents)
        return image
