"""Pictures whose edges meet: every convolution looks around the edge instead of at zeros."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gouache.diffusion.step import Denoise
from gouache.nn.resnet import Upsample
from gouache.pipeline.request import Seamless


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
