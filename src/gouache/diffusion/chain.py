"""The forward chain of T steps, its posterior, and the Gaussians they are made of.

    q(x_t | x_{t-1})       = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)
    q(x_t | x_0)           = N(sqrt(acp_t) x_0, (1 - acp_t) I)
    q(x_{t-1} | x_t, x_0)  = N(c0_t x_0 + ct_t x_t, beta~_t I)

(Ho et al. 2020, arXiv:2006.11239, equations 2, 4, 6 and 7.) t counts from 0: t = 0 is the first, least noise, and
acp_{-1} = 1.

The reverse step p_theta(x_{t-1} | x_t) = N(mu_theta, Sigma_theta) with its kinds of variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.betas import betas_of
from gouache.diffusion.noise_schedule import DiscreteVP, NoiseSchedule
from gouache.diffusion.parameterization import Prediction, expand_to
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian with independent components.

    Attributes:
        mean: [B, ...]
        log_variance: natural logarithm; of the mean's shape or broadcastable to it.
    """

    mean: Tensor
    log_variance: Tensor

    @property
    def variance(self) -> Tensor:
        """exp(log_variance)"""
        return self.log_variance.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(log_variance / 2) noise. noise [B, ...] standard normal"""
        return self.mean + (self.log_variance / 2).exp() * noise

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; mean, variance) of every component, in nats. [B, ...]"""
        return -((x - self.mean) ** 2 / self.variance + self.log_variance + math.log(2 * math.pi)) / 2

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) of every component, in nats. [B, ...]"""
        shift = (self.mean - other.mean) ** 2 / other.variance
        change = self.log_variance - other.log_variance
        return (shift + change.exp() - 1 - change) / 2


class ForwardProcess:
    """The chain that belongs to a table of alphas_cumprod; all coefficients in fp64 (Ho et al. 2020, section 2).

    t is an int, or a tensor [B] of integers, one per picture.

    Args:
        schedule: a variance-preserving schedule; its T levels are the chain.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        if schedule.path != "vp":
            raise InvalidInput("schedule", given=f"a {schedule.path} path", expected="a vp path")
        acp = schedule.alphas_cumprod
        previous = torch.cat([acp.new_ones(1), acp[:-1]])
        self.num_timesteps = len(acp)
        self.alphas_cumprod = acp
        self.betas = betas_of(acp)
        self.posterior_variance = self.betas * (1 - previous) / (1 - acp)
        # At t = 0 the posterior is a point; its logarithm takes the value of t = 1 (Ho et al. 2020, section 3.2).
        self.posterior_log_variance = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        self._of_x0 = previous.sqrt() * self.betas / (1 - acp)
        self._of_x_t = (1 - self.betas).sqrt() * (1 - previous) / (1 - acp)

    def respaced(self, timesteps: Tensor) -> ForwardProcess:
        """The shorter chain through some of the levels (Nichol & Dhariwal 2021, arXiv:2102.09672, section 4).

        timesteps: strictly ascending integers in [0, T). [S], S >= 2
        """
        chosen = self._checked(timesteps)
        if not bool((chosen.diff() > 0).all()):
            raise InvalidInput("timesteps", given=timesteps.tolist(), expected="strictly ascending integers")
        return ForwardProcess(DiscreteVP(self.alphas_cumprod[chosen]))

    def at(self, table: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
        """table[t], shaped and typed to multiply x. table [T] -> [B or 1, 1, ...]"""
        return expand_to(table[self._checked(t)], x)

    def step(self, x_previous: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Draw from q(x_t | x_{t-1}) (Ho et al. 2020, equation 2). x_previous, noise [B, ...]"""
        _same_shape(x_previous, noise)
        beta = self.at(self.betas, t, x_previous)
        return (1 - beta).sqrt() * x_previous + beta.sqrt() * noise

    def diffuse(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Draw from q(x_t | x_0) (Ho et al. 2020, equation 4). x0, noise [B, ...]"""
        _same_shape(x0, noise)
        return (
            self.at(self.alphas_cumprod.sqrt(), t, x0) * x0 + self.at((1 - self.alphas_cumprod).sqrt(), t, x0) * noise
        )

    def marginal(self, x0: Tensor, t: Tensor | int) -> Gaussian:
        """q(x_t | x_0) itself (Ho et al. 2020, equation 4)."""
        return Gaussian(
            self.at(self.alphas_cumprod.sqrt(), t, x0) * x0, self.at(torch.log1p(-self.alphas_cumprod), t, x0)
        )

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor | int) -> Gaussian:
        """q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 6 and 7). x0, x_t [B, ...]"""
        _same_shape(x0, x_t)
        mean = self.at(self._of_x0, t, x0) * x0 + self.at(self._of_x_t, t, x_t) * x_t
        return Gaussian(mean, self.at(self.posterior_log_variance, t, x_t))

    def _checked(self, t: Tensor | int) -> Tensor:
        value = torch.as_tensor(t).cpu()
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise InvalidInput("t", given=f"dtype {value.dtype}", expected="integers")
        if value.numel() and not (value.min() >= 0 and value.max() < self.num_timesteps):
            raise InvalidInput("t", given=value.tolist(), expected=f"integers in [0, {self.num_timesteps})")
        return value.long()


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeMismatch(
            "tensors of one batch", given=f"{tuple(first.shape)} and {tuple(second.shape)}", expected="equal shapes"
        )


Variance = Literal["fixed_small", "fixed_large", "learned"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)


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
