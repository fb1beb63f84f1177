"""Diffusion in overlapping tiles, for pictures larger than the network knows (MultiDiffusion, arXiv:2302.08113), and
seamless pictures: every convolution looks around the edge instead of at zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.diffusion.samplers.step import Denoise
from gouache.models.bundle import ModelBundle
from gouache.models.denoiser import Condition
from gouache.nn.resnet import Upsample
from gouache.pipeline.generate.guided import Network
from gouache.pipeline.request import Seamless, Tiled


def wrapped_around(denoise: Denoise, network: nn.Module, seamless: Seamless) -> Denoise:
    """A denoiser whose network looks around the edges during each call."""
    if seamless == "none":
        return denoise

    def around(x: Tensor, sigma: Tensor) -> Tensor:
        with circular(network, seamless):
            return denoise(x, sigma)

    return around


@contextmanager
def circular(network: nn.Module, seamless: Seamless) -> Iterator[None]:
    """While it lasts, all convolutions of `network` wrap around horizontally (x), vertically (y) or both."""
    modules = [] if seamless == "none" else list(network.modules())
    convolutions = [part for part in modules if isinstance(part, nn.Conv2d) and part.padding != (0, 0)]
    upsamplers = [part for part in modules if isinstance(part, Upsample)]
    for convolution in convolutions:
        convolution._conv_forward = partial(_convolve, convolution, seamless)  # type: ignore[method-assign]
    for upsampler in upsamplers:
        # Its own short cut pads with zeros and does not come past the convolution.
        upsampler.forward = partial(_upsample, upsampler)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution._conv_forward
        for upsampler in upsamplers:
            del upsampler.forward


def _upsample(part: Upsample, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    size = size or (2 * x.shape[-2], 2 * x.shape[-1])
    out: Tensor = part.conv(F.interpolate(x, size=size, mode="nearest"))
    return out


def _convolve(part: nn.Conv2d, seamless: Seamless, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    vertical, horizontal = (int(width) for width in part.padding)
    x = F.pad(x, (horizontal, horizontal, 0, 0), mode="circular" if seamless in ("x", "both") else "constant")
    x = F.pad(x, (0, 0, vertical, vertical), mode="circular" if seamless in ("y", "both") else "constant")
    stride, dilation = (int(part.stride[0]), int(part.stride[1])), (int(part.dilation[0]), int(part.dilation[1]))
    return F.conv2d(x, weight, bias, stride, (0, 0), dilation, part.groups)


def tiled_network(bundle: ModelBundle, tiled: Tiled) -> TiledNetwork:
    """The model's denoiser in tiles."""
    side = tiled.tile or min(bundle.defaults.width, bundle.defaults.height)
    multiple = bundle.unet.config.multiple
    whole = side // (bundle.vae.config.downscale * multiple) * multiple
    return TiledNetwork(bundle.denoiser, max(multiple, whole), tiled.overlap)


class TiledNetwork:
    """Runs a denoiser on overlapping tiles; where they overlap the estimates are averaged, centres weighing more.

    Args:
        network: the denoiser.
        tile: side of a tile in latent pixels.
        overlap: share of a tile that its neighbour covers too, 0..1.
    """

    def __init__(self, network: Network, tile: int, overlap: float) -> None:
        self.network, self.tile, self.overlap = network, tile, overlap

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """x [B,C,h,w] -> denoised [B,C,h,w]; one network call for each tile."""
        height, width = x.shape[-2:]
        rows, columns = min(self.tile, height), min(self.tile, width)
        weight = _bump(rows)[:, None] * _bump(columns)[None]  # [rows,columns]
        weight = weight.to(x)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for top in starts(height, rows, self.overlap):
            for left in starts(width, columns, self.overlap):
                place = (..., slice(top, top + rows), slice(left, left + columns))
                draft = None if condition.draft is None else condition.draft[place]
                box = (top, left, rows, columns)
                controls = tuple(control.cut(*box, (height, width)) for control in condition.controls)
                share = (top / height, (top + rows) / height, left / width, (left + columns) / width)
                pictures = tuple(one.cropped(share) for one in condition.pictures)
                cut = {one: one.cut(place[1], place[2]) for one in condition.regions if one is not None}
                regions = tuple(None if one is None else cut[one] for one in condition.regions)
                cached = tuple(row.within(top, left) for row in condition.cached)
                part = replace(
                    condition, draft=draft, controls=controls, pictures=pictures, regions=regions, cached=cached
                )
                total[place] += self.network(x[place], sigma, part) * weight
                weights[place] += weight
        return total / weights


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin so that they cover `length` evenly with at least the overlap.

    >>> starts(100, 64, 0.5)
    [0, 18, 36]
    >>> starts(64, 64, 0.5)
    [0]
    """
    if length <= tile:
        return [0]
    stride = max(1, round(tile * (1.0 - overlap)))
    count = -(-(length - tile) // stride)
    return [round(k * (length - tile) / count) for k in range(count + 1)]


def _bump(length: int) -> Tensor:
    """Weights from small at both ends to 1 in the middle. [length]"""
    centre = (torch.arange(length) + 0.5) / length
    return torch.sin(torch.pi * centre).square().clamp_min(1e-3)
