"""Exponential integrators in data prediction: RES, SEEDS, the exponential Heun method, and ER-SDE.

With lambda = -log(sigma) the ODE is dx/dlambda = D - x; its linear part is solved exactly, and only D is approximated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gouache.diffusion.samplers.common import (
    _check_choice,
    _check_count,
    add_noise,
    ancestral_split,
    euler_step,
    intervals,
    level,
)
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps
from gouache.errors import InvalidInput


def phi_1(z: float) -> float:
    """(exp(z) - 1) / z, the first of the phi functions (Zhang et al. 2023, arXiv:2308.02157, section 3)."""
    return math.expm1(z) / z


def phi_2(z: float) -> float:
    """(phi_1(z) - 1) / z, the second of the phi functions (Zhang et al. 2023, arXiv:2308.02157, section 3)."""
    return (phi_1(z) - 1) / z


def res_multistep_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """The second-order multistep RES method (Zhang et al. 2023, arXiv:2308.02157, section 4), with ancestral noise
    (equation 16 of DDIM, Song et al. 2021, arXiv:2010.02502). The first step and the one to zero are Euler's.

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        eta: share of fresh noise, >= 0; 0 is `res_multistep`.
        s_noise: scale of that noise.
        noise: needed where eta > 0.
    """
    previous: Tensor | None = None
    above = reached = 0.0  # the level before, and the one that its step was solved down to
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        x = euler_step(x, denoised, sigma, down)
        if down > 0 and previous is not None:
            h = math.log(sigma / down)
            # c_2 of the paper, < 0: where the older estimate lies, in units of this step. With noise the published
            # programs measure it from the level that was solved down to.
            c_2 = math.log(reached / above) / h
            x = x + (h * phi_2(-h) / c_2) * (previous - denoised)
        x = add_noise(x, up, noise, sigma, sigma_next, s_noise=s_noise)
        # Where nothing was solved down to, the next step has no past.
        previous, above, reached = denoised if down > 0 else None, sigma, down
        yield Step(i, sigma, sigma_next, x, denoised)


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Steps:
    """The second-order multistep RES method (Zhang et al. 2023, arXiv:2308.02157, section 4): the Adams-Bashforth rule
    with exact exponential weights.

    Args: as `res_multistep_ancestral`, whose eta = 0 this is.
    """
    yield from res_multistep_ancestral(denoise, x, sigmas, eta=0.0)


def seeds_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    solver_type: str = "phi_1",
    noise: NoiseSource | None = None,
) -> Steps:
    """SEEDS-2 on the reverse SDE in data prediction (Gonzalez et al. 2023, arXiv:2305.14267, algorithm 2).

    Args:
        denoise, x, sigmas, s_noise, noise: as `res_multistep_ancestral`; two calls a step.
        eta: share of fresh noise; 0 is the exponential midpoint rule.
        r: where in log sigma the second call lies, within (0, 1].
        solver_type: ``"phi_1"`` takes D half way through the step, ``"phi_2"`` integrates its line exactly.
    """
    _check_choice("solver_type", solver_type, ("phi_1", "phi_2"))
    if not 0 < r <= 1:
        raise InvalidInput("r", given=r, expected="a number above 0 and up to 1")
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            path = _NoisePath(noise, sigma, eta, s_noise)
            middle = sigma_next if r == 1 else sigma ** (1 - r) * sigma_next**r
            x_middle = path.to(_solved(x, denoised, sigma, middle, eta), middle)
            slope = (denoise(x_middle, level(middle)) - denoised) / r
            a = (1 + eta) * math.log(sigma / sigma_next)
            weight = -math.expm1(-a) / 2 if solver_type == "phi_1" else a * phi_2(-a)
            x = path.to(_solved(x, denoised, sigma, sigma_next, eta) + weight * slope, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def seeds_3(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """SEEDS-3, calls at a third and two thirds of the step (Gonzalez et al. 2023, arXiv:2305.14267, algorithm 3).

    Args: as `seeds_2`; three calls a step.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            path = _NoisePath(noise, sigma, eta, s_noise)
            first, second = (sigma ** (1 - r) * sigma_next**r for r in (1 / 3, 2 / 3))
            x_first = path.to(_solved(x, denoised, sigma, first, eta), first)
            slope = 3 * (denoise(x_first, level(first)) - denoised)
            a = (1 + eta) * math.log(sigma / sigma_next)
            b = a * 2 / 3
            x_second = _solved(x, denoised, sigma, second, eta) + (2 / 3 * b * phi_2(-b)) * slope
            slope = 3 / 2 * (denoise(path.to(x_second, second), level(second)) - denoised)
            x = path.to(_solved(x, denoised, sigma, sigma_next, eta) + (a * phi_2(-a)) * slope, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def exp_heun_2_x0(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Steps:
    """The exponential Heun method in data prediction (Zhang et al. 2023, arXiv:2308.02157, section 4): `seeds_2`
    without noise, its second call at the step's end.

    Args: as `seeds_2`.
    """
    yield from seeds_2(denoise, x, sigmas, eta=0.0, r=1.0, solver_type="phi_2")


def exp_heun_2_x0_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """The exponential Heun method on the reverse SDE (Gonzalez et al. 2023, arXiv:2305.14267, algorithm 2 with its
    second call at the step's end).

    Args: as `seeds_2`.
    """
    yield from seeds_2(denoise, x, sigmas, eta=eta, s_noise=s_noise, r=1.0, solver_type="phi_2", noise=noise)


def er_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_noise: float = 1.0,
    order: int = 3,
    noise: NoiseSource | None = None,
) -> Steps:
    """ER-SDE-Solver-3 with the authors' fifth noise scale (Cui et al. 2023, arXiv:2309.06169, algorithm 3).

    With phi(s) = s (exp(s^0.3) + 10) the solution of the extended reverse SDE is x' = r x + (1 - r) D + ..., r =
    phi(sigma') / phi(sigma), and D's derivatives in sigma enter by integrals of 1 / phi.

    Args:
        denoise, x, sigmas, noise: as `res_multistep_ancestral`; one call a step.
        s_noise: scale of the noise.
        order: 1 .. 3; lower at the start.
    """
    _check_count("order", order, 1, 3)
    levels: list[float] = sigmas.tolist()
    previous: Tensor | None = None
    slope_before: Tensor | None = None
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            ratio = _er_scale(sigma_next) / _er_scale(sigma)
            slope = bend = None
            if previous is not None and order > 1:
                slope = (denoised - previous) / (sigma - levels[i - 1])
                if slope_before is not None and order > 2:
                    bend = 2 * (slope - slope_before) / (sigma - levels[i - 2])
            x = denoised + ratio * (x - denoised)
            first, second = _er_integrals(sigma, sigma_next)
            x = x if slope is None else x + first * slope
            x = x if bend is None else x + second * bend
            slope_before = slope
            amount = math.sqrt(max(sigma_next**2 - (ratio * sigma) ** 2, 0.0))
            x = add_noise(x, amount, noise, sigma, sigma_next, s_noise=s_noise)
        previous = denoised
        yield Step(i, sigma, sigma_next, x, denoised)


def _er_scale(sigma: float) -> float:
    return sigma * (math.exp(sigma**0.3) + 10)


def _er_integrals(sigma: float, sigma_next: float, points: int = 200) -> tuple[float, float]:
    """Weights of D' and D'': dt + phi(sigma') S_0 and dt^2 / 2 + phi(sigma') S_1, where S_k is the integral of
    (s - sigma)^k / phi(s), taken as the authors do: a sum over 200 equal parts, each at its lower end."""
    # The sum's own error is part of the published method, and of its pictures.
    dt, width = sigma_next - sigma, (sigma - sigma_next) / points
    places = sigma_next + width * torch.arange(points, dtype=torch.float64)
    inverse = 1 / (places * ((places**0.3).exp() + 10))
    scale = _er_scale(sigma_next) * width
    return dt + scale * float(inverse.sum()), dt**2 / 2 + scale * float(((places - sigma) * inverse).sum())


def _solved(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, eta: float) -> Tensor:
    """The reverse SDE's mean where D stands still: D + exp(-(1 + eta) h) (x - D)."""
    return denoised + math.pow(sigma_next / sigma, 1 + eta) * (x - denoised)


class _NoisePath:
    """The SDE's noise since a level, added up over parts of a step so that later stages contain the earlier ones'.

    In units of the level itself, noise shrinks by exp(-eta h) over a stretch h and gains variance 1 - exp(-2 eta h).
    """

    def __init__(self, noise: NoiseSource | None, sigma: float, eta: float, s_noise: float) -> None:
        self.noise, self.at, self.eta, self.s_noise = noise, sigma, eta, s_noise
        self.sum: Tensor | None = None

    def to(self, x: Tensor, sigma: float) -> Tensor:
        """x with the noise gathered on the way down to sigma."""
        if self.eta == 0 or self.s_noise == 0:
            return x
        kept = (sigma / self.at) ** self.eta
        held = torch.zeros_like(x) if self.sum is None else kept * self.sum
        if kept < 1:
            held = add_noise(held, math.sqrt(1 - kept**2), self.noise, self.at, sigma)
        self.sum, self.at = held, sigma
        return x + (sigma * self.s_noise) * held
