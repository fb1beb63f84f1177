"""Residual convolution blocks and the changes of resolution between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.layers import GroupNorm, add


def upsample_and_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as repeating every pixel twice in both directions and then convolving with padding 1.

    An output pixel sees a 3x3 window of repeated pixels, thus only 2x2 different ones: its even and odd rows and
    columns are four 2x2 convolutions of the small map, whose weights are sums of the given ones.

    Args:
        x: [B, C, h, w].
        weight: [C', C, 3, 3].
        bias: [C'] or None.

    Returns:
        [B, C', 2h, 2w], channels-last in memory, equal up to rounding.
    """
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0], 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for row, by_rows in enumerate(_halves(weight, 2)):
        for column, kernel in enumerate(_halves(by_rows, 3)):
            part = F.conv2d(x, kernel, bias, padding=1)  # [B, C', h + 1, w + 1]
            out[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return out


def _halves(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along `dim` as two: for even outputs the first alone, for odd ones the last alone."""
    first, middle, last = torch.unbind(weight, dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)


def saves_time(x: Tensor, weight: Tensor) -> bool:
    """Whether the trick pays: fp32 weights (sums would round in less) and enough pixels, as measured on a CPU."""
    pixels, autocast = x.shape[-2] * x.shape[-1], torch.is_autocast_enabled(x.device.type)
    if weight.dtype != torch.float32:
        return False
    if not torch.is_grad_enabled():
        return x.dtype == torch.float32 and 2 * pixels >= weight.shape[0] and not autocast
    if not x.is_cpu:
        return False
    return pixels >= 256 if autocast and x.dtype == torch.bfloat16 else pixels >= 64 and not autocast


class ResnetBlock(nn.Module):
    """norm, SiLU, conv; plus the embedding's shift; norm, SiLU, conv; plus the input.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the result; a 1x1 convolution carries the input over where they differ.
        embedding_width: width of the (already activated) embedding that shifts the channels; 0 = none (the VAE).
        groups: groups of the two group norms.
        eps: their epsilon.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, embedding_width: int = 0, groups: int = 32, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels_in, eps=eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_width, channels_out) if embedding_width else None
        self.norm2 = GroupNorm(groups, channels_out, eps=eps)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x [B, channels_in, h, w], embedding [B, embedding_width] -> [B, channels_out, h, w]."""
        hidden: Tensor = self.conv1(self.norm1(x, activate=True))
        if self.time_emb_proj is not None:
            hidden = add(hidden, self.time_emb_proj(embedding)[:, :, None, None])
        hidden = self.conv2(self.norm2(hidden, activate=True))
        return add(hidden, x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve the resolution by a 3x3 convolution of stride 2.

    Args:
        channels: channels in and out.
        pad_end_only: pad one row and column at the bottom and right only, as the VAE's encoder does, instead of
            one on every side, as the U-Net does.
    """

    def __init__(self, channels: int, *, pad_end_only: bool = False) -> None:
        super().__init__()
        self.pad_end_only = pad_end_only
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_end_only else 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h / 2, w / 2] (rounded up)."""
        if self.pad_end_only:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Repeat every pixel in both directions, then a 3x3 convolution.

    Args:
        channels: channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x [B, C, h, w] -> [B, C, 2h, 2w], or [B, C, *size] where the skip connection has an odd size."""
        height, width = size or (2 * x.shape[-2], 2 * x.shape[-1])
        # An exported graph takes every size, and its engine has a short cut of its own. A convolution with hooks, by
        # which low-rank changes are trained, has to be called itself.
        plain = torch.compiler.is_exporting() or bool(self.conv._forward_hooks)
        if not plain and (height, width) == (2 * x.shape[-2], 2 * x.shape[-1]) and saves_time(x, self.conv.weight):
            return upsample_and_convolve(x, self.conv.weight, self.conv.bias)
        out: Tensor = self.conv(F.interpolate(x, size=(height, width), mode="nearest"))
        return out


def zero_(layer: nn.Module) -> None:
    """Set a layer's weights to zero, so that its residual branch starts as the identity (arXiv:1706.02677, 5.1)."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
