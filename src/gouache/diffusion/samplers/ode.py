"""Samplers of one to three calls a step that remember nothing: Euler, Heun, DPM-Solver-2, DDIM and its inversion."""

from __future__ import annotations

import math

from torch import Tensor

from gouache.diffusion.samplers.common import _check_count, churn, euler_step, intervals, level
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """Euler's method: Algorithm 2 without its second-order lines (Karras et al. 2022, arXiv:2206.00364).

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        s_churn, s_tmin, s_tmax, s_noise: how much noise is put back before a step, between which levels, and its scale.
        noise: needed where s_churn > 0.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        x, raised = churn(
            x, sigma, len(sigmas) - 1, noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, level(raised))
        x = euler_step(x, denoised, raised, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """Heun's method: Algorithm 2 (Karras et al. 2022, arXiv:2206.00364). The step to zero is Euler's.

    Args: as `euler`; two calls a step.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        x, raised = churn(
            x, sigma, len(sigmas) - 1, noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, level(raised))
        guess = euler_step(x, denoised, raised, sigma_next)
        if sigma_next == 0:
            # Euler's step has landed on D, and the slope (x - D) / sigma is not defined there: a second call would be
            # spent on nothing.
            x = guess
        else:
            slope = (x - denoised) / raised
            slope_next = (guess - denoise(guess, level(sigma_next))) / sigma_next
            x = x + (sigma_next - raised) * (slope + slope_next) / 2
        yield Step(i, sigma, sigma_next, x, denoised)


def heunpp2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """Heun++ 2 (Carzit 2024): Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) that looks two levels ahead and
    weighs the slopes there by sigma / (3 sigma_0), so that it turns into Euler's method where little noise is left. The
    last step but one looks one level ahead, with sigma / (2 sigma_0), and the last is Euler's.

    Args: as `euler`; three calls a step.
    """
    levels: list[float] = sigmas.tolist()
    for i, sigma, sigma_next in intervals(sigmas):
        x, raised = churn(
            x, sigma, len(sigmas) - 1, noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, level(raised))
        slope = (x - denoised) / raised
        ahead = levels[i + 1 : min(i + 3, len(levels) - 1)]
        mean, state, at, last = slope, x, raised, slope
        for place in ahead:
            state = state + (place - at) * last
            last, at = (state - denoise(state, level(place))) / place, place
            mean = mean + (place / ((len(ahead) + 1) * levels[0])) * (last - slope)
        x = denoised if sigma_next == 0 else x + (sigma_next - raised) * mean
        yield Step(i, sigma, sigma_next, x, denoised)


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """The midpoint rule with the midpoint in log sigma, as in DPM-Solver-2, Algorithm 1 (Lu et al. 2022,
    arXiv:2206.00927), with the churn of Karras et al. 2022. The step to zero is Euler's.

    Args: as `euler`; two calls a step.
    """
    for i, sigma, sigma_next in intervals(sigmas):
        x, raised = churn(
            x, sigma, len(sigmas) - 1, noise, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise
        )
        denoised = denoise(x, level(raised))
        x = midpoint_step(denoise, x, denoised, raised, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def midpoint_step(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of `dpm_2`: the slope at the geometric mean of both levels, used for the whole step (DPM-Solver-2,
    Algorithm 1, Lu et al. 2022, arXiv:2206.00927, with the middle in log sigma). [B, ...]
    """
    if sigma_next == 0:
        return denoised  # the geometric mean with 0 is 0: there is no middle to look at
    # D changes about evenly along log sigma. The arithmetic mean of 10 and 0.1 is 5, hardly less noisy than the start.
    middle = math.sqrt(sigma * sigma_next)
    x_middle = euler_step(x, denoised, sigma, middle)
    slope = (x_middle - denoise(x_middle, level(middle))) / middle
    return x + (sigma_next - sigma) * slope


def ddim_inversion(denoise: Denoise, x: Tensor, sigmas: Tensor, *, iterations: int = 0) -> Steps:
    """Walk a picture up to noise: the ODE of DDIM, section 4.3 (Song et al. 2021, arXiv:2010.02502), upwards.

    The step up to sigma' needs eps at sigma', where the state is not yet known. The state at hand, x / alpha as a
    variance-preserving network sees it, stands in for it, which also serves at sigma = 0. Each iteration then replaces
    it by the newest guess (Pan et al. 2023, arXiv:2309.04907, algorithm 1); at the fixed point `ddim` undoes it.

    Args:
        denoise: D(x, sigma).
        x: the clean state, at sigmas[-1]. [B, ...]
        sigmas: the same DESCENDING list that `ddim` takes to run back; it is walked from its end. [n + 1]
        iterations: further calls a step, >= 0.

    Yields:
        steps with sigma < sigma_next.
    """
    _check_count("iterations", iterations, 0, 1000)
    for i, sigma, sigma_next in intervals(sigmas.flip(0)):
        # The network sees x / sqrt(1 + sigma^2), which changes less from level to level than x does.
        guess = x * math.sqrt((1 + sigma_next**2) / (1 + sigma**2))
        for _ in range(iterations + 1):
            denoised = denoise(guess, level(sigma_next))
            eps = (guess - denoised) / sigma_next
            guess = x + (sigma_next - sigma) * eps
        x = guess
        yield Step(i, sigma, sigma_next, x, denoised)
