"""The autoencoder between pictures and latents (Rombach et al. 2022, arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import InvalidInput, ShapeMismatch
from gouache.models.configs import VAEConfig
from gouache.models.tiny_vae import TinyDecoder, TinyEncoder
from gouache.nn.attention import Areas, Attention, PictureTokens, RowChanges
from gouache.nn.layers import GroupNorm, add
from gouache.nn.resnet import Downsample, ResnetBlock, Upsample
from gouache.nn.sharpen import narrow_edges

__all__ = ["AutoencoderKL", "Moments", "VAEConfig"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a picture is cut.

    Attributes:
        size: edge of a tile, in pixels of the network's input.
        overlap: how many of them two neighbours share, at most half the tile. Its outer quarters are thrown away (there
            a tile misses its surroundings), its middle half is blended.
        unit: edges of tiles lie on multiples of this (the downscale of an encoder).
    """

    size: int
    overlap: int
    unit: int = 1

    def __post_init__(self) -> None:
        if not (0 <= 2 * self.overlap <= self.size and self.size > 0):
            raise InvalidInput(
                "tiles", given=f"size {self.size}, overlap {self.overlap}", expected="an overlap up to half the size"
            )
        if self.size % self.unit or self.overlap % self.unit:
            raise InvalidInput(
                "tiles",
                given=f"size {self.size}, overlap {self.overlap}",
                expected=f"multiples of the downscale {self.unit}",
            )

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along an edge of `length` pixels: evenly spread, the last one ends with the edge."""
        if length <= self.size:
            return [0]
        gaps = math.ceil((length - self.size) / (self.size - self.overlap))
        spread = [i * (length - self.size) // gaps for i in range(gaps + 1)]
        return [start // self.unit * self.unit for start in spread]


def in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles, scale: Fraction) -> Tensor:
    """Apply `network` to overlapping tiles of `x`.

    Args:
        network: [B, C, h, w] -> [B, C', h * scale, w * scale] for any size that `tiles` gives.
        x: [B, C, h, w].
        tiles: how to cut.
        scale: the network's change of resolution: 8 for a decoder, 1/8 for an encoder.

    Returns:
        [B, C', h * scale, w * scale]. Where a quarter of the overlap covers the network's receptive field, and the
        network has no norm over the whole picture, this equals `network(x)` up to rounding.
    """
    rows, columns = (_Axis.of(length, tiles, scale) for length in x.shape[-2:])
    out: Tensor | None = None
    for row in rows:
        for column in columns:
            part = network(x[..., row.start : row.end, column.start : column.end])
            if out is None:
                height, width = (int(length * scale) for length in x.shape[-2:])
                out = part.new_zeros(*part.shape[:2], height, width)
            weight = (row.weight[:, None] * column.weight).to(part)  # [tile, tile]
            out[..., row.out_start : row.out_end, column.out_start : column.out_end] += part * weight
    if out is None:
        raise InvalidInput("x", given=f"shape {tuple(x.shape)}", expected="at least one pixel")
    return out


@dataclass(frozen=True, slots=True)
class _Axis:
    """One tile along one edge: its place in the input and in the output, and its weight there. [tile * scale]"""

    start: int
    end: int
    out_start: int
    out_end: int
    weight: Tensor

    @staticmethod
    def of(length: int, tiles: Tiles, scale: Fraction) -> list[_Axis]:
        starts = tiles.starts(length)
        ends = [min(start + tiles.size, length) for start in starts]
        weights = torch.zeros(len(starts), int(length * scale), dtype=torch.float64)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            weights[i, int(start * scale) : int(end * scale)] = 1
            if i > 0:
                _multiply(weights[i], int(start * scale), _ramp(int((ends[i - 1] - start) * scale)))
            if i < len(starts) - 1:
                _multiply(weights[i], int(starts[i + 1] * scale), 1 - _ramp(int((end - starts[i + 1]) * scale)))
        # Where three tiles meet their ramps do not add up to 1 by themselves.
        weights /= weights.sum(dim=0)
        return [
            _Axis(start, end, int(start * scale), int(end * scale), row[int(start * scale) : int(end * scale)])
            for start, end, row in zip(starts, ends, weights, strict=True)
        ]


def _multiply(weights: Tensor, start: int, ramp: Tensor) -> None:
    weights[start : start + len(ramp)] *= ramp


def _ramp(length: int) -> Tensor:
    """0 over the first quarter, rising over the middle half, 1 over the last quarter. [length]"""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1)
    return ((places - 0.25) * 2).clamp(0, 1)


EPS = 1e-6
LEAST_LOGVAR = -30.0


@dataclass(frozen=True, slots=True)
class CoderShape:
    """What encoder and decoder have in common.

    Attributes:
        channels: width of each level, finest first.
        layers: residual blocks of a level.
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

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        changes: RowChanges | None = None,
        areas: Sequence[Areas] = (),
        pictures: Sequence[PictureTokens] = (),
    ) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B, h*w, C]
        seen = super().forward(tokens, context, mask, changes, areas, pictures)
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


CONDITION_LAYERS = 5
"""Two at full size, then one for each halving."""


class MaskCondition(nn.Module):
    """Feature maps of the picture around a mask, at full size and at halves of it (Zhu et al. 2023, Designing a Better
    Asymmetric VQGAN for StableDiffusion, arXiv:2306.04632, section 3.1).

    Args:
        channels: of the picture.
        first, last: widths of the decoder's finest and coarsest level.
    """

    def __init__(self, channels: int, first: int, last: int) -> None:
        super().__init__()
        widths = [min(first * 2**i, last) for i in range(CONDITION_LAYERS - 1)]
        layers, before = [], channels
        for i, width in enumerate([*widths, last]):
            size, stride = (3, 1) if i < 2 else (4, 2)
            layers.append(nn.Conv2d(before, width, size, stride, padding=1))
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, picture: Tensor) -> dict[tuple[int, ...], Tensor]:
        """picture [B, C, H, W] -> [B, width, h, w] of each layer, by shape; of two of a shape the later."""
        found = {}
        for layer in self.layers:
            picture = layer(picture)
            found[tuple(picture.shape[1:])] = picture
            picture = F.relu(picture)
        return found


class Decoder(nn.Module):
    """Latents to pixels: [B, in, h, w] -> [B, out, h * f, w * f]."""

    def __init__(self, channels_in: int, channels_out: int, shape: CoderShape, *, conditioned: bool = False) -> None:
        super().__init__()
        widths = shape.channels[::-1]
        if conditioned:
            self.condition_encoder = MaskCondition(channels_out, widths[-1], widths[0])
        self.conv_in = nn.Conv2d(channels_in, widths[0], 3, padding=1)
        self.mid_block = CoderMiddle(shape)
        self.up_blocks = nn.ModuleList()
        for before, width, i in zip((widths[0], *widths), widths, range(len(widths)), strict=False):
            up = Upsample(width) if i < len(widths) - 1 else None
            self.up_blocks.append(CoderLevel(shape.resnets(before, width, shape.layers), up=up))
        self.conv_norm_out = GroupNorm(shape.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x: Tensor, picture: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, in, h, w], picture [B, out, h * f, w * f] and mask [B, 1, h * f, w * f] -> [B, out, h * f, w * f]."""
        x = self.mid_block(self.conv_in(x))
        if picture is None or mask is None:
            for block in self.up_blocks:
                x = block(x)
        else:
            around = self.condition_encoder((1 - mask) * picture)
            for block in self.up_blocks:
                x = block(_kept_around(x, around, mask))
            x = _kept_around(x, around, mask)
        out: Tensor = self.conv_out(self.conv_norm_out(x, activate=True))
        return out


def _kept_around(x: Tensor, around: dict[tuple[int, ...], Tensor], mask: Tensor) -> Tensor:
    """Features x under the mask, those of the picture around it. [B, C, h, w]"""
    shape = tuple(x.shape[1:])
    if shape not in around:
        raise ShapeMismatch("the decoder's view of the picture", given=list(around), expected=f"one of {shape}")
    return torch.lerp(around[shape], x, F.interpolate(mask, size=x.shape[-2:], mode="nearest"))


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
        if config.tiny_blocks is not None:
            # Called as the others are; those who look inside an encoder have one with levels before them.
            tiny, blocks = config.channels[0], config.tiny_blocks
            self.encoder = cast("Encoder", TinyEncoder(pixels, width, tiny, blocks[0]))
            self.decoder = cast("Decoder", TinyDecoder(width, pixels, tiny, blocks[1]))
        else:
            layers = config.decoder_layers or config.layers_per_level + 1
            self.encoder = Encoder(pixels, 2 * width, shape)
            self.decoder = Decoder(
                width,
                pixels,
                replace(shape, channels=config.decoder_channels or config.channels, layers=layers),
                conditioned=config.mask_condition,
            )
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
        if self.config.tiny_blocks is not None:
            return Moments(hidden, torch.full_like(hidden, LEAST_LOGVAR))
        mean, logvar = hidden.chunk(2, dim=1)  # each [B, latent_channels, h, w]
        return Moments(mean, logvar.clamp(LEAST_LOGVAR, 20.0))

    def decode(self, latents: Tensor, *, around: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Normalised latents to a picture.

        Args:
            latents: [B, latent_channels, h, w].
            around: for a decoder with a `mask_condition`, the picture in [-1, 1] and the mask, 1 where it is painted
                anew. [B, image_channels, H, W] and [B, 1, H, W]

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
        decoded = self.decoder(hidden) if around is None else self.decoder(hidden, *around)
        return narrow_edges(F.pixel_shuffle(decoded, self.config.patch_size), self.config.narrow_edges)

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


class WithTinyDecoder(AutoencoderKL):
    """An autoencoder whose pictures a tiny decoder makes, from normalised latents; it encodes as before.

    Args:
        whole: the autoencoder; its networks are shared, not copied.
        decoder: for the same latents and pictures.
    """

    def __init__(self, whole: AutoencoderKL, decoder: TinyDecoder) -> None:
        nn.Module.__init__(self)
        self.config = whole.config.model_copy(update={"mask_condition": False})
        self._modules = {**whole._modules, "decoder": decoder}

    def decode(self, latents: Tensor, *, around: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """As `AutoencoderKL.decode`; it takes no mask."""
        if around is not None or latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            given = "a mask" if around is not None else tuple(latents.shape)
            raise ShapeMismatch("latents", given=given, expected=f"[B, {self.config.latent_channels}, h, w] alone")
        decoded: Tensor = self.decoder(latents)
        return decoded
