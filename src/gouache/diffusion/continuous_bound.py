"""The variational bound in continuous time: -log p(x0) as an integral of the denoiser's error over all noise levels.

    -log p(x0) <= KL(q(x | x0; sigma_max) || N(0, sigma_max^2)) + E[-log N(x0; D, sigma_min^2)]
                  + integral over log sigma of E |x0 - D(x0 + sigma eps, sigma)|^2 / sigma^2

(Kingma et al. 2021, arXiv:2107.00630, equations 11 and 15, with SNR = 1 / sigma^2, so that -dSNR / 2 = d log sigma /
sigma^2.) It holds for every schedule and parameterization alike, needs no backward pass, and costs one call of the
denoiser per noise level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.diffusion.step import Denoise
from gouache.errors import InvalidInput, ShapeMismatch


@dataclass(frozen=True, slots=True)
class ContinuousBound:
    """The bound of each picture, in nats, by its three parts.

    Attributes:
        integral: over the noise levels. [B]
        decoder: -log N(x0; D, sigma_min^2) at the least noise. [B]
        prior: KL at the most noise. [B]
        dimensions: numbers in one picture.
    """

    integral: Tensor
    decoder: Tensor
    prior: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """Upper bound of -log p(x0), a density's. [B] nats"""
        return self.integral + self.decoder + self.prior

    @property
    def bits(self) -> Tensor:
        """The same in bits. [B]"""
        return self.total / math.log(2)


def stratified_sigmas(sigma_min: float, sigma_max: float, offsets: Sequence[float]) -> Tensor:
    """One noise level in each of as many equal strata of log sigma as there are offsets in [0, 1): the low-variance
    sampler of Kingma et al. 2021 (arXiv:2107.00630, appendix I.1), each stratum with its own offset.

    Returns:
        [K] fp64, ascending.
    """
    if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
        raise InvalidInput("sigma_min, sigma_max", given=(sigma_min, sigma_max), expected="0 < sigma_min < sigma_max")
    if not offsets or any(not 0 <= offset < 1 for offset in offsets):
        raise InvalidInput("offsets", given=len(offsets), expected="one or more numbers in [0, 1)")
    places = (torch.arange(len(offsets), dtype=torch.float64) + torch.tensor(offsets, dtype=torch.float64)) / len(
        offsets
    )
    return (math.log(sigma_min) + places * math.log(sigma_max / sigma_min)).exp()


def continuous_bound(
    denoise: Denoise, x0: Tensor, sigmas: Tensor, noises: Tensor, *, sigma_min: float, sigma_max: float
) -> ContinuousBound:
    """An unbiased estimate of the bound (Kingma et al. 2021, arXiv:2107.00630, equations 11 and 15).

    With the same levels and noises two conditions are compared with far less noise than either has.

    Args:
        denoise: D(x, sigma).
        x0: data. [B, ...]
        sigmas: from `stratified_sigmas` with these ends. [K]
        noises: standard normal, one for each level and one more for the decoder's term. [K+1, B, ...]
        sigma_min, sigma_max: ends of the integral.
    """
    if noises.shape != (len(sigmas) + 1, *x0.shape):
        raise ShapeMismatch(
            "noises", given=tuple(noises.shape), expected=f"({len(sigmas) + 1}, {', '.join(map(str, x0.shape))})"
        )
    total = x0.new_zeros(len(x0))
    for sigma, noise in zip(sigmas, noises[1:], strict=True):
        total = total + _squared_error(denoise, x0, sigma, noise) / float(sigma) ** 2
    width = math.log(sigma_max / sigma_min)
    least = torch.tensor(sigma_min, dtype=torch.float64)
    error = _squared_error(denoise, x0, least, noises[0])
    dimensions = math.prod(x0.shape[1:])
    decoder = error / (2 * sigma_min**2) + dimensions * math.log(2 * math.pi * sigma_min**2) / 2
    prior = x0.square().flatten(1).sum(1) / (2 * sigma_max**2)
    return ContinuousBound(total * width / len(sigmas), decoder, prior, dimensions)


def _squared_error(denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """|x0 - D(x0 + sigma eps, sigma)|^2 of each picture. [B]"""
    x = x0 + float(sigma) * noise
    return (x0 - denoise(x, sigma)).square().flatten(1).sum(1)
