"""The arithmetic that several samplers share: pairs of levels, ancestral splits, churn, integration weights.

Everything is in variance-exploding space, x = x0 + sigma * eps, where the probability-flow ODE is
dx/dsigma = (x - D(x; sigma)) / sigma = eps (Karras et al. 2022, arXiv:2206.00364, equation 1 with s = 1). A
variance-preserving state is x / sqrt(1 + sigma^2); its log-SNR is lambda = -log(sigma) in both spaces, so a method
published for one is exact in the other.

Levels are Python floats: their arithmetic is fp64 whatever the dtype of `x`, and needs no device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gouache.diffusion.samplers.step import NoiseSource
from gouache.errors import InvalidInput, unknown_name


def level(sigma: float) -> Tensor:
    """The noise level as a denoiser takes it, sigma in equation 1 of Karras et al. 2022: [] fp64 on the CPU.

    A tensor without axes mixes with any device and dtype and does not change the other's dtype.
    """
    return torch.tensor(sigma, dtype=torch.float64)


def intervals(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """The steps (i, t_i, t_(i+1)) of Algorithm 1 in Karras et al. 2022 (arXiv:2206.00364).

    Args:
        sigmas: n + 1 noise levels.
    """
    levels: list[float] = sigmas.tolist()
    for i in range(len(levels) - 1):
        yield i, levels[i], levels[i + 1]


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Equation 12 of DDIM (Song et al. 2021, arXiv:2010.02502) without noise: x0 + sigma_next * eps. [B, ...]

    It is Euler's step on the ODE, and the exact solution where D does not change; at sigma_next = 0 it is `denoised`.
    """
    return denoised + (sigma_next / sigma) * (x - denoised)


def ancestral_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Split a step into a level to solve down to and the noise to add: down^2 + up^2 = sigma_next^2.

    Equation 16 of DDIM (Song et al. 2021, arXiv:2010.02502) carried into sigma; eta = 1 is the posterior of DDPM,
    eta = 0 the ODE. Above 1 more noise is added; the split stops where nothing is left to solve down to.

    Returns:
        (down, up).
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    # Rounding may leave the difference a hair below 0.
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


def add_noise(
    x: Tensor, amount: float, noise: NoiseSource | None, sigma: float, sigma_next: float, *, s_noise: float = 1.0
) -> Tensor:
    """x + amount * s_noise * eps, the random term of equation 12 of DDIM (Song et al. 2021, arXiv:2010.02502).

    Raises:
        InvalidInput: noise is needed and there is no source of it.
    """
    # Nothing is drawn for nothing: a step without noise must not move the draws of those that follow.
    if amount == 0:
        return x
    if noise is None:
        raise InvalidInput(
            "noise",
            given=None,
            expected=f"a source of noise for the step from sigma {sigma:.4g} to {sigma_next:.4g}",
            cure="Pass noise=..., or choose a deterministic sampler (eta 0, s_churn 0).",
        )
    return x + (amount * s_noise) * noise(x, sigma, sigma_next)


def churn(
    x: Tensor,
    sigma: float,
    num_steps: int,
    noise: NoiseSource | None,
    *,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> tuple[Tensor, float]:
    """Raise the noise level before a step: lines 4 to 6 of Algorithm 2 in Karras et al. 2022 (arXiv:2206.00364).

    Returns:
        the state at the raised level, and that level.
    """
    # The bound doubles the variance at most: never more new noise than is in the state already (their section 4).
    gamma = min(s_churn / num_steps, math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
    raised = sigma * (1 + gamma)
    return add_noise(x, math.sqrt(raised**2 - sigma**2), noise, sigma, raised, s_noise=s_noise), raised


def interpolation_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights w with sum_j w_j nodes_j^k = moments_k: the integral of the polynomial through values at the nodes.

    With moments_k = integral of u^k, this is the variable-step Adams-Bashforth rule (Hairer, Norsett & Wanner 1993,
    Solving Ordinary Differential Equations I, section III.5); with a weight inside the integral, the exponential one
    (Zhang & Chen 2022, arXiv:2204.13902, equation 14).

    Args:
        nodes: places of the values, all different. [order]
        moments: integrals of u^k against the weight, k = 0 .. order - 1. [order]
    """
    # In units of the widest distance: powers of raw distances in sigma, from 0.01 to 100, are ill-conditioned.
    scale = max(abs(node) for node in nodes) or 1.0
    places = torch.tensor(nodes, dtype=torch.float64) / scale
    powers = torch.arange(len(nodes), dtype=torch.float64)
    vandermonde = places[None, :] ** powers[:, None]  # [k, j]
    right = torch.tensor(moments, dtype=torch.float64) / scale**powers
    weights: list[float] = torch.linalg.solve(vandermonde, right).tolist()
    return weights


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum_j weights_j values_j, the combination in Algorithm 2 of PNDM (Liu et al. 2022, arXiv:2202.09778). [B, ...]"""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


def _check_choice(where: str, given: str, known: Sequence[str]) -> None:
    """Refuse a named variant that a method does not have."""
    if given not in known:
        raise unknown_name(where, given, known)


def _check_count(where: str, given: int, lowest: int, highest: int) -> None:
    """Refuse an order or a number of iterations that a method does not have."""
    if isinstance(given, bool) or not isinstance(given, int) or not lowest <= given <= highest:
        raise InvalidInput(where, given=given, expected=f"an integer between {lowest} and {highest}")
