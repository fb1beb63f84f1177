"""Samplers that draw fresh noise at each step: DDPM and the ancestral ones, LCM, TCD, restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
from gouache.diffusion.samplers.ode import heun, midpoint_step
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps
from gouache.errors import InvalidInput


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """Euler's step to the lower level of the split, then noise: equations 12 and 16 of DDIM (Song et al. 2021,
    arXiv:2010.02502) in sigma.

    Args: as `dpm_2_ancestral`; one call a step. eta = 0 is `euler`.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        x = euler_step(x, denoised, sigma, down)
        x = add_noise(x, up, noise, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    limit: Callable[[Tensor], Tensor] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """DDIM, equations 12 and 16 (Song et al. 2021, arXiv:2010.02502).

    Divided by alpha, the variance-preserving update is `euler_ancestral`: with eta = 0 Euler's method, with eta = 1 the
    DDPM chain. The two names exist because their defaults differ.

    Args:
        denoise, x, sigmas: as `euler`.
        eta: 0 deterministic, 1 as random as DDPM.
        limit: cuts off the estimate, D -> D; the direction that points to x stays that of the whole estimate.
        noise: needed where eta > 0.
    """
    if limit is None:
        yield from euler_ancestral(denoise, x, sigmas, eta=eta, noise=noise)
        return
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        limited = limit(denoised)
        x = add_noise(limited + down / sigma * (x - denoised), up, noise, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, limited)


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """`dpm_2` down to the lower level of the split, then noise: equation 16 of DDIM (Song et al. 2021,
    arXiv:2010.02502).

    Args:
        denoise, x, sigmas: as `euler`.
        eta: share of fresh noise, >= 0; 0 is `dpm_2`.
        s_noise: scale of that noise.
        noise: needed where eta > 0.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        x = midpoint_step(denoise, x, denoised, sigma, down)
        x = add_noise(x, up, noise, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """DPM-Solver++(2S), Algorithm 1 with r = 1/2 (Lu et al. 2022, arXiv:2211.01095), with ancestral noise.

    Args: as `dpm_2_ancestral`; two calls a step.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        if down == 0:
            x = denoised  # the last step, or one whose whole level is fresh noise: there is no middle to call at
        else:
            middle = math.sqrt(sigma * down)
            denoised_middle = denoise(euler_step(x, denoised, sigma, middle), level(middle))
            x = euler_step(x, denoised_middle, sigma, down)
        x = add_noise(x, up, noise, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def dpmpp_2s(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Steps:
    """DPM-Solver++(2S), Algorithm 1 with r = 1/2 (Lu et al. 2022, arXiv:2211.01095): deterministic.

    Args: as `dpmpp_2s_ancestral`, whose eta = 0 this is.
    """
    yield from dpmpp_2s_ancestral(denoise, x, sigmas, eta=0.0)


def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, variance: str = "fixed_small", noise: NoiseSource | None = None
) -> Steps:
    """The DDPM chain: equation 7 and the two variances of section 3.2 (Ho et al. 2020, arXiv:2006.11239).

    Divided by alpha, the posterior's mean is D + (sigma' / sigma)^2 (x - D) and its variance sigma'^2 (1 - (sigma' /
    sigma)^2). No noise on the step to zero.

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        variance: ``"fixed_small"``, the posterior's, or ``"fixed_large"``, beta_t of the (strided) chain.
        noise: needed.
    """
    _check_choice("variance", variance, ("fixed_small", "fixed_large"))
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        kept = (sigma_next / sigma) ** 2
        std = sigma_next * math.sqrt(1 - kept)
        # On the step to zero the posterior's variance vanishes by itself; that of beta_t would stay in the picture as
        # noise (z = 0 at t = 1 in their Algorithm 2).
        if variance == "fixed_large" and sigma_next > 0:
            std = math.sqrt((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2))
        x = add_noise(denoised + kept * (x - denoised), std, noise, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    timestep_of: Callable[[float], float] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """Multistep consistency sampling, Algorithm 3 of Latent Consistency Models (Luo et al. 2023, arXiv:2310.04378).

    Args:
        denoise: D(x, sigma) of a model distilled for this.
        x, sigmas: as `ddpm`.
        timestep_of: sigma -> timestep. With it the boundary condition of their section 4.1 is applied, c_skip(t) x_t +
            c_out(t) D with t scaled by 10 and sigma_data = 0.5: hardly visible but in the last steps.
        noise: needed for more than one step.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if timestep_of is not None:
            t = 10.0 * timestep_of(sigma)
            c_skip, c_out = 0.25 / (t**2 + 0.25), t / math.sqrt(t**2 + 0.25)
            denoised = c_out * denoised + (c_skip / math.sqrt(1 + sigma**2)) * x
        x = add_noise(denoised, sigma_next, noise, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.3,
    lower_of: Callable[[float, float], float] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """Strategic stochastic sampling of Trajectory Consistency Distillation (Zheng et al. 2024, arXiv:2402.19159,
    section 4): along the trajectory to a level below the next one, then noise up to it.

    Args:
        denoise: D(x, sigma) of a model distilled for this.
        x, sigmas: as `ddpm`.
        eta: gamma of the paper, in [0, 1]: how far below. 0 is deterministic, 1 goes to the end.
        lower_of: (sigma_next, eta) -> the level below, by a schedule's timesteps; for sigma_next = 0 the level at which
            the last state is left, scaled as at timestep 0. None: (1 - eta) sigma_next.
        noise: needed where eta > 0, but for one step.
    """
    if not 0 <= eta <= 1:
        raise InvalidInput("eta", given=eta, expected="a number in [0, 1] for tcd")
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        lower = (1 - eta) * sigma_next if lower_of is None else lower_of(sigma_next, eta)
        x = euler_step(x, denoised, sigma, lower)
        if sigma_next == 0:
            x = x / math.sqrt(1 + lower**2)
        else:
            x = add_noise(x, math.sqrt(max(sigma_next**2 - lower**2, 0.0)), noise, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


@dataclass(frozen=True, slots=True)
class Restart:
    """One interval of `restart`: from sigma_min back up to sigma_max and down again, `times` times.

    `steps` None goes down the list's own levels again; a number makes that many, spaced as Karras et al. 2022 do.
    """

    sigma_min: float = 0.1
    sigma_max: float = 2.0
    steps: int | None = None
    times: int = 1


def restart_plan(sigmas: Sequence[float], restarts: Sequence[Restart]) -> list[tuple[float, float]]:
    """The steps down of Algorithm 1 of Restart sampling (Xu et al. 2023, arXiv:2306.14878), in order.

    Both ends of a restart are moved to the nearest levels of the list; between them the levels are the list's own, or
    follow equation 5 of Karras et al. 2022 with rho = 7. Where a step starts above the end of the one before it, noise
    is added first.

    Args:
        sigmas: descending levels. n + 1 of them.
        restarts: what to repeat; one whose ends meet on the same level adds nothing.

    Returns:
        (sigma, sigma_next) of every step.
    """
    plan = [(sigma, sigmas[i + 1]) for i, sigma in enumerate(sigmas[:-1])]
    inner = [sigma for sigma in sigmas if sigma > 0]
    for one in sorted(restarts, key=lambda r: r.sigma_min):  # from the end, so that insertions do not meet
        low = min(inner, key=lambda sigma: abs(sigma - one.sigma_min))
        high = min(inner, key=lambda sigma: abs(sigma - one.sigma_max))
        at = next((k for k, (_, end) in enumerate(plan) if end == low), None)
        if low < high and at is not None:
            levels = [sigma for sigma in inner if low <= sigma <= high]
            if one.steps is not None:
                shares = [k / one.steps for k in range(1, one.steps)]
                levels = [high, *(((1 - w) * high ** (1 / 7) + w * low ** (1 / 7)) ** 7 for w in shares), low]
            plan[at + 1 : at + 1] = list(pairwise(levels)) * one.times
    return plan


def restart(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    restarts: Sequence[Restart] = (Restart(),),
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """Restart sampling, Algorithm 1 with Heun's steps (Xu et al. 2023, arXiv:2306.14878).

    Args:
        denoise, x, sigmas: as `ddpm`; two calls a step.
        restarts: the intervals to repeat. `restart_plan` tells how many steps that makes.
        s_noise: scale of the noise that carries the state back up.
        noise: needed where a restart takes place.
    """
    for one in restarts:
        _check_count("restarts.steps", 1 if one.steps is None else one.steps, 1, 10_000)
        _check_count("restarts.times", one.times, 0, 10_000)
        if not 0 < one.sigma_min < one.sigma_max < math.inf:
            raise InvalidInput("restarts", given=one, expected="0 < sigma_min < sigma_max, both finite")
    at = float(sigmas[0])
    for i, (sigma, sigma_next) in enumerate(restart_plan(sigmas.tolist(), restarts)):
        # Independent noises add in squares: this much is missing between the level reached and the one to restart at.
        if sigma > at:
            x = add_noise(x, math.sqrt(sigma**2 - at**2), noise, at, sigma, s_noise=s_noise)
        (step,) = heun(denoise, x, torch.tensor([sigma, sigma_next], dtype=torch.float64))
        x, at = step.x, sigma_next
        yield Step(i, sigma, sigma_next, x, step.denoised)
