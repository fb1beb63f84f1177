"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import VAEConfig
from gouache.nn.attention import Attention
from gouache.nn.layers import GroupNorm, add
from gouache.nn.resnet import Downsample, ResnetBlock, Upsample
from gouache.nn.tiling import Tiles, in_tiles

__all__ = ["AutoencoderKL", "Moments", "VAEConfig"]


EPS = 1e-6


@dataclass(frozen=True, slots=True)
class CoderShape:
    """What encoder and decoder have in common.

    Attributes:
        channels: width of each level, finest first.
        layers: residual blocks of a level in the encoder (the decoder has one more).
        groups: groups of the group norms.
        attention: whether the middle looks at all pixels.
    """

    channels: tuple[int, ...]
    layers: int
    groups: int
    attention: bool

    def resnets(self, before: int, width: int, count: int) -> nn.ModuleList:
        """`count` residual blocks, the first of which changes the width."""
        befores = [before] + [width] * (count - 1)
        return nn.ModuleList(ResnetBlock(width_in, width, groups=self.groups, eps=EPS) for width_in in befores)


class PixelAttention(Attention):
    """Self-attention over the pixels of a feature map, one head as wide as the map, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = GroupNorm(groups, channels, eps=EPS)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B, h*w, C]
        seen = super().forward(tokens, context, mask)
        return add(seen.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2), x)


class CoderMiddle(nn.Module):
    """A residual block, attention over all pixels, a residual block."""

    def __init__(self, shape: CoderShape) -> None:
        super().__init__()
        width = shape.channels[-1]
        self.resnets = shape.resnets(width, width, 2)
        if shape.attention:
            self.attentions = nn.ModuleList([PixelAttention(width, shape.groups)])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        x = self.resnets[0](x)
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        out: Tensor = self.resnets[1](x)
        return out


class CoderLevel(nn.Module):
    """Residual blocks of one level, then a change of resolution or none."""

    def __init__(self, resnets: nn.ModuleList, *, down: Downsample | None = None, up: Upsample | None = None) -> None:
        super().__init__()
        self.resnets = resnets
        if down is not None:
            self.downsamplers = nn.ModuleList([down])
        if up is not None:
            self.upsamplers = nn.ModuleList([up])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, h', w'], at half, the same, or twice the resolution."""
        for block in self.resnets:
            x = block(x)
        for change in [*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())]:
            x = change(x)
        return x


class Encoder(nn.Module):
    """Pixels to features of the latents' size: [B, in, H, W] -> [B, out, H / f, W / f]."""

    def __init__(self, channels_in: int, channels_out: int, shape: CoderShape) -> None:
        super().__init__()
        widths = shape.channels
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for before, width, i in zip((widths[0], *widths), widths, range(len(widths)), strict=False):
            down = Downsample(width, pad_end_only=True) if i < len(widths) - 1 else None
            self.down_blocks.append(CoderLevel(shape.resnets(before, width, shape.layers), down=down))
        self.mid_block = CoderMiddle(shape)
        self.conv_norm_out = GroupNorm(shape.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, H, W] -> [B, out, H / f, W / f]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_norm_out(self.mid_block(x), activate=True))
        return out


class Decoder(nn.Module):
    """Latents to pixels: [B, in, h, w] -> [B, out, h * f, w * f]."""

    def __init__(self, channels_in: int, channels_out: int, shape: CoderShape) -> None:
        super().__init__()
        widths = shape.channels[::-1]
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        self.mid_block = CoderMiddle(shape)
        self.up_blocks = nn.ModuleList()
        for before, width, i in zip((widths[0], *widths), widths, range(len(widths)), strict=False):
            up = Upsample(width) if i < len(widths) - 1 else None
            self.up_blocks.append(CoderLevel(shape.resnets(before, width, shape.layers + 1), up=up))
        self.conv_norm_out = GroupNorm(shape.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in, h, w] -> [B, out, h * f, w * f]."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_norm_out(x, activate=True))
        return out


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
