"""Edges made narrower by moving pixels, not by adding contrast: what is flat stays flat, and nothing overshoots.

Autoencoders that halve a picture three times blur the edges of drawings. Warping sharpens them as a morphological
operator does (compare Osher & Rudin 1990, "Feature-oriented image enhancement using shock filters"): every pixel takes
the colours from a little further away from the ridge of the nearest edge. All channels move together, so that no fringe
of another colour appears, and the bicubic look-up keeps edges smooth.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PASSES = 2
SEEN_AT, RIDGE = 1.0, 0.7
"""Deviation in pixels of the blur through which edges are looked for, and of that of their strength."""
FAINT = 4e-3
"""Strength, the square of a gradient of values in [-1, 1] a pixel, below which colours move less: it may be shading."""
FARTHEST = 1.0
"""Pixels that one pass moves a colour at most."""


def narrow_edges(picture: Tensor, reach: float) -> Tensor:
    """A picture [B,C,H,W] in about [-1, 1] with narrower edges, of the same type.

    Args:
        picture: colours, and alpha if it has any, which move together.
        reach: how far a pass moves the colours beside an edge, in pixels for one of a blurred step; 0 changes nothing.
    """
    if reach == 0:
        return picture
    x = picture.float()
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=x.device) + 0.5, torch.arange(width, device=x.device) + 0.5, indexing="ij"
    )
    for _ in range(PASSES):
        across, down = _slopes(_blurred(x, SEEN_AT))
        strength = _blurred((across.square() + down.square()).sum(1, keepdim=True), RIDGE)
        away = torch.cat(_slopes(strength), dim=1) * (-reach / (strength + FAINT))  # [B,2,H,W], x first
        length = away.square().sum(1, keepdim=True).sqrt()
        away = away * FARTHEST * torch.tanh(length / FARTHEST) / (length + 1e-9)
        places = torch.stack([(columns + away[:, 0]) * 2 / width - 1, (rows + away[:, 1]) * 2 / height - 1], dim=-1)
        x = F.grid_sample(x, places, mode="bicubic", padding_mode="border", align_corners=False)
    return x.to(picture.dtype)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences across and down, a pixel. [B,C,H,W] each"""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2, (
        padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    ) / 2


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Convolved with a Gaussian, edges repeated. [B,C,H,W]"""
    reach, channels = int(3 * deviation + 0.5), x.shape[1]
    steps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-steps.square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=channels)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=channels)
