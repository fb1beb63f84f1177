"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gouache.config import Config
from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.vae_blocks import CoderShape, Decoder, Encoder


class VAEConfig(Config):
    """Everything that decides the autoencoder's tensors and normalisation. The defaults are Stable Diffusion 1.x."""

    image_channels: int = Field(3, gt=0)
    """3 for RGB, 4 for RGBA."""
    latent_channels: int = Field(4, gt=0)
    channels: tuple[int, ...] = Field((128, 256, 512, 512), min_length=1)
    """Width of each level, finest first; each level after the first halves the resolution."""
    layers_per_level: int = Field(2, gt=0)
    """Residual blocks of a level in the encoder; the decoder has one more."""
    norm_groups: int = Field(32, gt=0)
    middle_attention: bool = True
    """Whether the middle of encoder and decoder looks at all pixels."""
    quant_conv: bool = True
    """Whether 1x1 convolutions stand on both sides of the latents."""
    patch_size: int = Field(1, gt=0)
    """Above 1, patches of this edge are folded into channels in front of the encoder and unfolded behind the decoder,
    so that no convolution works at full resolution."""
    scale: float | tuple[float, ...] = 0.18215
    """Normalised latents are (moments - shift) * scale; one number, or one for each channel."""
    shift: float | tuple[float, ...] = 0.0

    @model_validator(mode="after")
    def _widths_agree(self) -> VAEConfig:
        for name, value in (("scale", self.scale), ("shift", self.shift)):
            if isinstance(value, tuple) and len(value) != self.latent_channels:
                raise ConfigError(
                    f"VAEConfig.{name}", given=f"{len(value)} numbers", expected=f"1 or {self.latent_channels}"
                )
        if any(width % self.norm_groups for width in self.channels):
            raise ConfigError(
                "VAEConfig.channels", given=self.channels, expected=f"multiples of norm_groups {self.norm_groups}"
            )
        return self

    @property
    def downscale(self) -> int:
        """How many image pixels one latent pixel covers along an edge: 8 for Stable Diffusion."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))


@dataclass(frozen=True, slots=True)
class Moments:
    """The encoder's diagonal Gaussian over latents that are not yet normalised.

    Attributes:
        mean: [B, latent_channels, h, w].
        logvar: logarithm of the variance, within [-30, 20]. [B, latent_channels, h, w]
    """

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most likely latents: the mean. [B, latent_channels, h, w]"""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise (Kingma and Welling 2013, arXiv:1312.6114, equation 10), noise standard normal."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, summed over each picture (arXiv:1312.6114, appendix B). [B]"""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(nn.Module):
    """Pictures to latents and back. It owns the latents' scale and shift: outside it latents are normalised."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.latent_channels
        pixels = config.image_channels * config.patch_size**2
        shape = CoderShape(
            channels=config.channels,
            layers=config.layers_per_level,
            groups=config.norm_groups,
            attention=config.middle_attention,
        )
        self.encoder = Encoder(pixels, 2 * width, shape)
        self.decoder = Decoder(width, pixels, shape)
        self.quant_conv = nn.Conv2d(2 * width, 2 * width, 1) if config.quant_conv else None
        self.post_quant_conv = nn.Conv2d(width, width, 1) if config.quant_conv else None

    def encode(self, image: Tensor) -> Moments:
        """The posterior over latents; normalise what you take from it: `vae.normalise(vae.encode(image).mode())`.

        Args:
            image: [B, image_channels, H, W] in [-1, 1]; H and W are multiples of `config.downscale`.

        Raises:
            ShapeMismatch: the channels or the size do not fit.
        """
        self._check_image(image)
        hidden: Tensor = self.encoder(F.pixel_unshuffle(image, self.config.patch_size))
        if self.quant_conv is not None:
            hidden = self.quant_conv(hidden)
        mean, logvar = hidden.chunk(2, dim=1)  # each [B, latent_channels, h, w]
        return Moments(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to a picture.

        Args:
            latents: [B, latent_channels, h, w].

        Returns:
            [B, image_channels, h * downscale, w * downscale], about [-1, 1], not clamped.

        Raises:
            ShapeMismatch: the number of channels does not fit.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ShapeMismatch(
                "latents", given=tuple(latents.shape), expected=f"[B, {self.config.latent_channels}, h, w]"
            )
        hidden = self.denormalise(latents)
        if self.post_quant_conv is not None:
            hidden = self.post_quant_conv(hidden)
        return F.pixel_shuffle(self.decoder(hidden), self.config.patch_size)

    def normalise(self, latents: Tensor) -> Tensor:
        """(latents - shift) * scale: what the encoder gave, as everything outside the autoencoder sees it."""
        return (latents - self._per_channel(self.config.shift, latents)) * self._per_channel(self.config.scale, latents)

    def denormalise(self, latents: Tensor) -> Tensor:
        """latents / scale + shift: the inverse of `normalise`."""
        return latents / self._per_channel(self.config.scale, latents) + self._per_channel(self.config.shift, latents)

    def _per_channel(self, value: float | tuple[float, ...], like: Tensor) -> Tensor:
        """A number or one for each channel, as a tensor that broadcasts over [B, C, h, w]."""
        return torch.tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)

    def _check_image(self, image: Tensor) -> None:
        config = self.config
        if image.ndim != 4 or image.shape[1] != config.image_channels:
            raise ShapeMismatch("image", given=tuple(image.shape), expected=f"[B, {config.image_channels}, H, W]")
        if image.shape[2] % config.downscale or image.shape[3] % config.downscale:
            raise ShapeMismatch(
                "image",
                given=f"{image.shape[3]} x {image.shape[2]} pixels",
                expected=f"a width and height that are multiples of {config.downscale}",
                cure="Resize, crop or pad the picture first.",
            )
