"""DPM-Solver++ for the reverse SDE: one-step, two-step and three-step memory.

With lambda = -log(sigma) and h = lambda' - lambda, the reverse SDE with noise share eta is, exactly where D does not
change, x' = (sigma' / sigma) exp(-eta h) x + (1 - exp(-(1 + eta) h)) D + sigma' sqrt(1 - exp(-2 eta h)) eps
(equation 18 and appendix B of Lu et al. 2022, arXiv:2211.01095, with eta = 1; eta = 0 is the ODE).
"""

from __future__ import annotations

import math

from torch import Tensor

from gouache.diffusion.samplers.common import _check_choice, add_noise, ancestral_split, euler_step, intervals, level
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps
from gouache.errors import InvalidInput


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    one_path: bool = True,
    noise: NoiseSource | None = None,
) -> Steps:
    """SDE-DPM-Solver++(2S): Algorithm 1 on the reverse SDE of section 5 (Lu et al. 2022, arXiv:2211.01095).

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        eta: share of fresh noise, >= 0; 0 is `dpmpp_2s`.
        s_noise: scale of that noise.
        r: where in log sigma the second call lies, within (0, 1).
        one_path: the noise up to the middle is made a part of the whole step's, as on a Brownian path; without that the
            variance is only of first order. False takes both from `noise` as they come, for a source that is a path.
        noise: needed where eta > 0.
    """
    if not 0 < r < 1:
        raise InvalidInput("r", given=r, expected="a number between 0 and 1, both excluded")
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            # Without noise: what the last step adds, no step takes out again.
            x = denoised
        else:
            middle = sigma ** (1 - r) * sigma_next**r
            source = _one_path(noise, sigma, middle, sigma_next, eta) if noise and one_path and eta > 0 else noise
            down, up = ancestral_split(sigma, middle, eta)
            x_middle = euler_step(x, denoised, sigma, down)
            x_middle = add_noise(x_middle, up, source, sigma, middle, s_noise=s_noise)
            # From D to its value half way through the whole step, on the line through both calls.
            slope = (denoise(x_middle, level(middle)) - denoised) / (2 * r)
            down, up = ancestral_split(sigma, sigma_next, eta)
            x = euler_step(x, denoised + slope, sigma, down)
            x = add_noise(x, up, source, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def _one_path(noise: NoiseSource, top: float, middle: float, bottom: float, eta: float) -> NoiseSource:
    """Answer for [top, middle], then for [top, bottom], as increments of one Brownian path.

    Its clock is sigma^(-2 eta), in which the noise of the SDE is an increment exactly.
    """
    start, between, end = (sigma ** (-2 * eta) for sigma in (top, middle, bottom))
    share = (between - start) / (end - start)
    first: list[Tensor] = []

    def answer(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        fresh = noise(x, sigma, sigma_next)
        if not first:
            first.append(fresh)
            return fresh
        return math.sqrt(share) * first[0] + math.sqrt(1 - share) * fresh

    return answer


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    noise: NoiseSource | None = None,
) -> Steps:
    """SDE-DPM-Solver++(2M): Algorithm 2 on the reverse SDE of section 5 (Lu et al. 2022, arXiv:2211.01095).

    Args:
        denoise, x, sigmas, eta, s_noise, noise: as `dpmpp_sde`; one call a step.
        solver_type: how D's slope enters: ``"midpoint"``, or ``"heun"``, its exact integral.
    """
    _check_choice("solver_type", solver_type, ("midpoint", "heun"))
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            a = (1 + eta) * h
            x = _first_order(x, denoised, a)
            if previous is not None:
                # "midpoint" takes D half way through the step, "heun" integrates its line exactly; they differ in the
                # third order of h only.
                weight = _phi_2(a) if solver_type == "heun" else -math.expm1(-a) / 2
                x = x + (weight * h / h_last) * (denoised - previous)
            x = _fresh(x, sigma, sigma_next, eta, s_noise, noise)
            h_last = h
        previous = denoised
        yield Step(i, sigma, sigma_next, x, denoised)


def dpmpp_2m_sde_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """`dpmpp_2m_sde` with D's slope integrated exactly (Lu et al. 2022, arXiv:2211.01095, Algorithm 2 and appendix B).

    Args: as `dpmpp_2m_sde`.
    """
    yield from dpmpp_2m_sde(denoise, x, sigmas, eta=eta, s_noise=s_noise, solver_type="heun", noise=noise)


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    curvature: str = "published",
    noise: NoiseSource | None = None,
) -> Steps:
    """SDE-DPM-Solver++(3M): three points (appendix B of Lu et al. 2022, arXiv:2211.01095, extended as their code does).

    Args:
        denoise, x, sigmas, eta, s_noise, noise: as `dpmpp_sde`; one call a step.
        curvature: ``"published"`` takes D's second divided difference for its second derivative, as every published
            code does; it is half of it, so the method stays of second order. ``"exact"`` doubles it.
    """
    _check_choice("curvature", curvature, ("published", "exact"))
    factor = 2.0 if curvature == "exact" else 1.0
    past: list[tuple[float, Tensor]] = []  # (lambda, denoised), newest first
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(-math.log(sigma), denoised), *past][:3]
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            a = (1 + eta) * h
            x = _first_order(x, denoised, a)
            # The first step has one estimate, the second two: the order grows with what there is.
            if len(past) > 1:
                slope, bend = _derivatives(past, h)
                x = x + _phi_2(a) * slope - (factor * _phi_3(a)) * bend if bend is not None else x + _phi_2(a) * slope
            x = _fresh(x, sigma, sigma_next, eta, s_noise, noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def _derivatives(past: list[tuple[float, Tensor]], h: float) -> tuple[Tensor, Tensor | None]:
    """D's slope at the newest point and its second divided difference, in units of h; by Newton's interpolation."""
    (l0, d0), (l1, d1) = past[:2]
    r0 = (l0 - l1) / h
    slope = (d0 - d1) / r0
    if len(past) < 3:
        return slope, None
    l2, d2 = past[2]
    r1 = (l1 - l2) / h
    bend = (slope - (d1 - d2) / r1) / (r0 + r1)
    return slope + r0 * bend, bend


def _first_order(x: Tensor, denoised: Tensor, a: float) -> Tensor:
    """exp(-a) x + (1 - exp(-a)) D: the update without noise where D stands still; a = (1 + eta) h."""
    return denoised + math.exp(-a) * (x - denoised)


def _fresh(x: Tensor, sigma: float, sigma_next: float, eta: float, s_noise: float, noise: NoiseSource | None) -> Tensor:
    amount = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** (2 * eta))
    return add_noise(x, amount, noise, sigma, sigma_next, s_noise=s_noise)


def _phi_2(a: float) -> float:
    """(exp(-a) - 1) / a + 1, the integral of a linear D."""
    return math.expm1(-a) / a + 1


def _phi_3(a: float) -> float:
    """phi_2 / a - 1/2, minus the integral of half a square."""
    return _phi_2(a) / a - 0.5
