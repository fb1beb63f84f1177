"""The exact likelihood under the probability-flow ODE, the second, independent way to -log p(x0).

In u = log sigma the ODE reads dx/du = x - D(x, sigma), so along a trajectory

    d log p(x) / du = -div(x - D(x, sigma)) = -(d - tr dD/dx)

(Song et al. 2021, arXiv:2011.13456, equations 13 and 39; Karras et al. 2022, arXiv:2206.00364, equation 1). The data
are carried from sigma_min up to sigma_max, where p is N(0, sigma_max^2 I) but for O(1 / sigma_max^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.samplers.step import Denoise
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

Solver = Literal["rk4", "heun"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
Slope = Callable[[Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class FlowLikelihood:
    """What the ODE says of each picture.

    Attributes:
        log_likelihood: log p(x; sigma_min), a density in nats. [B]
        latents: where the ODE took the picture, at sigma_max. [B, ...]
    """

    log_likelihood: Tensor
    latents: Tensor


def exact_trace(denoised: Tensor, x: Tensor) -> Tensor:
    """tr(dD/dx) of each picture, one backward pass per dimension (Chen et al. 2018, arXiv:1806.07366, equation 8).

    denoised [B, ...] must hang on x [B, ...] in the autograd graph -> [B]
    """
    flat = denoised.flatten(1)
    total = x.new_zeros(len(x))
    for d in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, d].sum(), x, retain_graph=True)
        total = total + row.flatten(1)[:, d]
    return total


def hutchinson_trace(denoised: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """mean over probes of probe^T (dD/dx) probe, unbiased for tr(dD/dx) (Hutchinson 1990, equation 1; Song et al. 2021,
    equation 40).

    Args:
        denoised: hangs on x in the autograd graph. [B, ...]
        x: [B, ...]
        probes: independent entries of mean 0 and variance 1; +-1 has the least variance. [K, B, ...]

    Returns:
        [B]
    """
    if probes.shape[1:] != x.shape:
        raise ShapeMismatch("probes", given=tuple(probes.shape), expected=f"(K, {', '.join(map(str, x.shape))})")
    total = x.new_zeros(len(x))
    for probe in probes:
        (row,) = torch.autograd.grad(denoised, x, probe, retain_graph=True)
        total = total + (row * probe).flatten(1).sum(1)
    return total / len(probes)


def flow_log_likelihood(
    x: Tensor,
    denoise: Denoise,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    num_steps: int = 100,
    probes: Tensor | None = None,
    solver: Solver = "rk4",
) -> FlowLikelihood:
    """log p(x; sigma_min) by the instantaneous change of variables (Song et al. 2021, arXiv:2011.13456, equation 39).

    Steps are uniform in log sigma.

    Args:
        x: data. [B, ...]
        denoise: D(x, sigma), differentiable; pictures must not influence each other.
        sigma_min, sigma_max: where to start, and where p is taken as N(0, sigma_max^2 I).
        num_steps: of the integrator, each 4 (rk4) or 2 (heun) calls of the denoiser.
        probes: for Hutchinson's estimate of the trace, [K, B, ...], kept along the trajectory; None: the exact trace,
            one backward pass per dimension, for small data.
        solver: ``"rk4"`` (order 4) or ``"heun"`` (order 2).
    """
    if num_steps < 1:
        raise InvalidInput("num_steps", given=num_steps, expected="an integer >= 1")
    if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
        raise InvalidInput("sigma_min, sigma_max", given=(sigma_min, sigma_max), expected="0 < sigma_min < sigma_max")
    if solver not in SOLVERS:
        raise unknown_name("solver", str(solver), SOLVERS)

    def slope(x: Tensor, u: float) -> tuple[Tensor, Tensor]:
        """dx/du [B, ...] and its divergence [B]."""
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            denoised = denoise(place, x.new_tensor(math.exp(u)))
            trace = exact_trace(denoised, place) if probes is None else hutchinson_trace(denoised, place, probes)
        return x - denoised.detach(), math.prod(x.shape[1:]) - trace

    start = math.log(sigma_min)
    h = (math.log(sigma_max) - start) / num_steps
    state, gained = x.detach(), x.new_zeros(len(x))
    advance = _rk4 if solver == "rk4" else _heun
    for i in range(num_steps):
        dx, divergence = advance(slope, state, start + i * h, h)
        state, gained = state + dx, gained + divergence
    dimensions = math.prod(x.shape[1:])
    exponent = -(state**2).flatten(1).sum(1) / (2 * sigma_max**2)
    prior = exponent - dimensions * math.log(2 * math.pi * sigma_max**2) / 2
    return FlowLikelihood(prior + gained, state)


def _rk4(slope: Slope, x: Tensor, u: float, h: float) -> tuple[Tensor, Tensor]:
    """The increments of x and of the divergence's integral over [u, u + h], order 4."""
    k1, d1 = slope(x, u)
    k2, d2 = slope(x + h / 2 * k1, u + h / 2)
    k3, d3 = slope(x + h / 2 * k2, u + h / 2)
    k4, d4 = slope(x + h * k3, u + h)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


def _heun(slope: Slope, x: Tensor, u: float, h: float) -> tuple[Tensor, Tensor]:
    """The same, order 2."""
    k1, d1 = slope(x, u)
    k2, d2 = slope(x + h * k1, u + h)
    return h / 2 * (k1 + k2), h / 2 * (d1 + d2)
