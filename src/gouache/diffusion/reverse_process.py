"""The reverse step p_theta(x_{t-1} | x_t) = N(mu_theta, Sigma_theta) with its kinds of variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.forward_process import ForwardProcess, Gaussian
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

Variance = Literal["fixed_small", "fixed_large", "learned"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says at (x_t, t).

    Attributes:
        x0: its estimate of the data. [B, ...]
        interpolation: for learned variance, its second output, -1 = least variance, 1 = greatest. [B, ...]
    """

    x0: Tensor
    interpolation: Tensor | None = None


Predict = Callable[[Tensor, Tensor], Prediction]
"""(x_t [B, ...], t [B] integers) -> Prediction"""


def log_variance_of(
    process: ForwardProcess, t: Tensor | int, x_t: Tensor, variance: Variance, interpolation: Tensor | None = None
) -> Tensor:
    """log Sigma_theta (Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15).

    ===============  ====================================================================================
    ``fixed_small``  the posterior's beta~_t: right if the data were one point
    ``fixed_large``  beta_t: right if the data were N(0, I)
    ``learned``      exp(f log beta_t + (1 - f) log beta~_t), f = (interpolation + 1) / 2
    ===============  ====================================================================================

    At t = 0, where beta~ is 0, the two fixed kinds take beta~_1; learned reaches from there to beta_0.

    Returns:
        [B or 1, 1, ...], or interpolation's shape for ``learned``.
    """
    small = process.posterior_log_variance
    if variance == "fixed_small":
        return process.at(small, t, x_t)
    if variance == "fixed_large":
        return process.at(torch.cat([small[:1], process.betas[1:].log()]), t, x_t)
    if variance != "learned":
        raise unknown_name("variance", str(variance), VARIANCES)
    if interpolation is None:
        raise InvalidInput("interpolation", given=None, expected="the network's second output, for learned variance")
    if interpolation.shape != x_t.shape:
        raise ShapeMismatch("interpolation", given=tuple(interpolation.shape), expected=f"{tuple(x_t.shape)}")
    fraction = (interpolation + 1) / 2
    return fraction * process.at(process.betas.log(), t, x_t) + (1 - fraction) * process.at(small, t, x_t)


def reverse_step(
    process: ForwardProcess, prediction: Prediction, x_t: Tensor, t: Tensor | int, variance: Variance
) -> Gaussian:
    """p_theta(x_{t-1} | x_t): the posterior with the estimate in x0's place (Ho et al. 2020, equations 1, 7 and 11).

    Args:
        process: the chain.
        prediction: the network's word at (x_t, t).
        x_t: [B, ...]
        t: int, or integers [B].
        variance: one of `VARIANCES`.
    """
    mean = process.posterior(prediction.x0, x_t, t).mean
    return Gaussian(mean, log_variance_of(process, t, x_t, variance, prediction.interpolation))


def ancestral_step(
    process: ForwardProcess, prediction: Prediction, x_t: Tensor, t: int, variance: Variance, noise: Tensor
) -> Tensor:
    """Draw x_{t-1} (Ho et al. 2020, arXiv:2006.11239, algorithm 2, line 4): no noise is added at t = 0.

    x_t, noise [B, ...] -> [B, ...].
    """
    step = reverse_step(process, prediction, x_t, t, variance)
    return step.mean if t == 0 else step.sample(noise)
