"""Encoder and decoder of the autoencoder: the U-Net's residual blocks without time, text and skip connections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gouache.nn.attention import Attention
from gouache.nn.elementwise import add
from gouache.nn.group_norm import GroupNorm
from gouache.nn.resnet import Downsample, ResnetBlock, Upsample

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
