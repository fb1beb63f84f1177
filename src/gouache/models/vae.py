"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import VAEConfig
from gouache.models.vae_blocks import CoderShape, Decoder, Encoder
from gouache.nn.tiling import Tiles, in_tiles

__all__ = ["AutoencoderKL", "Moments", "VAEConfig"]


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

    def encode_in_tiles(self, image: Tensor, *, size: int = 512, overlap: int = 128) -> Moments:
        """`encode` tile by tile, for pictures that do not fit in memory; group norms then see one tile at a time.

        Args:
            image: [B, image_channels, H, W] in [-1, 1].
            size: edge of a tile, in image pixels, a multiple of `config.downscale`.
            overlap: image pixels that two tiles share, a multiple of `config.downscale`, at most half of `size`.
        """
        self._check_image(image)
        unit = self.config.downscale

        def moments_of(tile: Tensor) -> Tensor:
            moments = self.encode(tile)
            return torch.cat([moments.mean, moments.logvar], dim=1)

        both = in_tiles(moments_of, image, Tiles(size, overlap, unit), Fraction(1, unit))
        mean, logvar = both.chunk(2, dim=1)
        return Moments(mean, logvar)

    def decode_in_tiles(self, latents: Tensor, *, size: int = 64, overlap: int = 16) -> Tensor:
        """`decode` tile by tile; `size` and `overlap` in latent pixels, `overlap` at most half of `size`."""
        return in_tiles(self.decode, latents, Tiles(size, overlap), Fraction(self.config.downscale))

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
