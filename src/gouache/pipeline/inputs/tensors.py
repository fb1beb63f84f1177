"""Pictures as tensors and back: numbers in [-1, 1], transparent ones with their colours composited on white."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gouache.errors import ShapeMismatch
from gouache.pipeline.inputs.images import on_background

Pixels = npt.NDArray[np.uint8]


def to_tensor(picture: Image.Image, channels: int) -> Tensor:
    """A picture as a tensor.

    Args:
        picture: mode RGB or RGBA, W x H pixels.
        channels: 3 (transparency is laid on white) or 4 (see `rgba_to_tensor`).

    Returns:
        [channels, H, W] float32 in [-1, 1].
    """
    if channels == 4:
        return rgba_to_tensor(np.asarray(picture.convert("RGBA")))
    if channels != 3:
        raise ShapeMismatch("channels", given=channels, expected="3 (RGB) or 4 (RGBA)")
    return _channels_first(np.asarray(on_background(picture, "white"))) * 2.0 - 1.0


def to_image(tensor: Tensor, *, cut: bool = False) -> Image.Image:
    """The inverse of `to_tensor`; values outside [-1, 1] are clipped.

    Args:
        tensor: [3, H, W] or [4, H, W].
        cut: colours of RGB are rounded down to whole bytes, as A1111 does, and not to the nearest.
    """
    if tensor.ndim != 3 or tensor.shape[0] not in (3, 4):
        raise ShapeMismatch("picture tensor", given=tuple(tensor.shape), expected="[3,H,W] or [4,H,W]")
    if tensor.shape[0] == 4:
        return Image.fromarray(tensor_to_rgba(tensor), "RGBA")
    unit = _unit(tensor)
    return Image.fromarray(_bytes((unit * 255.0).floor() / 255.0 if cut else unit), "RGB")


def rgba_to_tensor(pixels: Pixels) -> Tensor:
    """Straight-alpha pixels to the tensor of an RGBA model: colours laid on white, and alpha, both in [-1, 1].

    So the first three channels alone are the picture on white, and an invisible colour carries no information.

    Args:
        pixels: uint8 [..., H, W, 4].

    Returns:
        float32 [..., 4, H, W].
    """
    straight = _channels_first(pixels)
    colour, alpha = straight[..., :3, :, :], straight[..., 3:, :, :]
    return torch.cat([colour * alpha + (1.0 - alpha), alpha], dim=-3) * 2.0 - 1.0


def tensor_to_rgba(tensor: Tensor) -> Pixels:
    """The inverse of `rgba_to_tensor`, up to rounding; where nothing is visible the colour is white.

    Args:
        tensor: [..., 4, H, W].

    Returns:
        uint8 [..., H, W, 4], straight alpha.
    """
    unit = _unit(tensor)
    on_white, alpha = unit[..., :3, :, :], unit[..., 3:, :, :]
    visible = alpha >= 0.5 / 255
    colour = (on_white - (1.0 - alpha)) / torch.where(visible, alpha, 1.0)
    return _bytes(torch.cat([torch.where(visible, colour.clamp(0.0, 1.0), 1.0), alpha], dim=-3))


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 255.0  # [...,C,H,W]


def _unit(tensor: Tensor) -> Tensor:
    return (tensor.detach().float().cpu() / 2.0 + 0.5).clamp(0.0, 1.0)


def _bytes(unit: Tensor) -> Pixels:
    pixels: Pixels = (unit * 255.0).round().to(torch.uint8).movedim(-3, -1).contiguous().numpy()
    return pixels
