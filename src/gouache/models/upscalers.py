"""Up-sampling networks: the model's own decoder, and ESRGAN's generator (Wang et al. 2018, arXiv:1809.00219, figure 4).

The own one: The up-sampling decoder: a small picture four times as large, its edges drawn anew.

A residual network without norms (Lim et al. 2017, arXiv:1707.02921, figure 3) that works at the small picture's
resolution and unfolds channels into pixels at the very end (Shi et al. 2016, arXiv:1609.05158, equation 4). What it
predicts is added to the bilinear enlargement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gouache.config import Config
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


SLOPE, DAMPING = 0.2, 0.2


class RRDBConfig(Config):
    """Everything that decides the network's tensors. The defaults are RealESRGAN x4plus."""

    scale: int = Field(default=4, gt=0)
    """How much larger the result is: 1, 2 or 4; below 4 the input is folded first."""
    channels: int = Field(default=64, gt=0)
    growth: int = Field(default=32, gt=0)
    """Channels that each layer of a dense block adds."""
    blocks: int = Field(default=23, gt=0)
    image_channels: int = Field(default=3, gt=0)

    @property
    def fold(self) -> int:
        """Side of the patches that are folded into channels: the network itself always enlarges by 4."""
        return max(1, 4 // self.scale)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for k in range(1, 6):
            out = growth if k < 5 else channels
            self.add_module(f"conv{k}", nn.Conv2d(channels + (k - 1) * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C,h,w] -> [B,C,h,w]."""
        seen = [x]
        for k in range(1, 5):
            seen.append(F.leaky_relu(self.get_submodule(f"conv{k}")(torch.cat(seen, 1)), SLOPE))
        last: Tensor = self.get_submodule("conv5")(torch.cat(seen, 1))
        return last * DAMPING + x


class RRDB(nn.Module):
    """Three dense blocks in a residual."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C,h,w] -> [B,C,h,w]."""
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * DAMPING + x


class RRDBNet(nn.Module):
    """A picture, larger. Parameter names are those of the Real-ESRGAN files."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.conv_first = nn.Conv2d(config.image_channels * config.fold**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, config.growth) for _ in range(config.blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """image [B,3,H,W] in [0, 1], H and W multiples of `fold` -> [B,3,scale H,scale W], about [0, 1]."""
        x = self.conv_first(F.pixel_unshuffle(image, self.config.fold))
        x = x + self.conv_body(self.body(x))
        for up in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")), SLOPE)
        out: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
        return out
