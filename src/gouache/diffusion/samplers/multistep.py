"""Deterministic samplers of one call a step that remember earlier calls: PLMS, LMS, DPM-Solver++(2M), DEIS, UniPC."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from gouache.diffusion.samplers.common import (
    _check_count,
    euler_step,
    interpolation_weights,
    intervals,
    level,
    weighted_sum,
)
from gouache.diffusion.samplers.step import Denoise, Step, Steps

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Steps:
    """Pseudo linear multistep: equations 9, 12 and Algorithm 2 of PNDM (Liu et al. 2022, arXiv:2202.09778).

    Started as Stable Diffusion does, by one pseudo improved Euler step (two calls) instead of Runge-Kutta. The weights
    are those of equal steps whatever the list, so the method is of second order.

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
    """
    past: list[Tensor] = []  # eps, newest first
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:4]
        eps = weighted_sum(ADAMS_BASHFORTH[len(past) - 1], past)
        # There is no past yet. Averaging the slopes at both ends keeps the first step, usually the longest, of second
        # order; a step straight to zero has no slope (x - D) / sigma at its end.
        if i == 0 and sigma_next > 0:
            guess = x + (sigma_next - sigma) * eps
            eps = (eps + (guess - denoise(guess, level(sigma_next))) / sigma_next) / 2
        x = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, denoised)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4) -> Steps:
    """Adams-Bashforth with exact weights for unequal steps (Hairer, Norsett & Wanner 1993, Solving Ordinary
    Differential Equations I, section III.5) on dx/dsigma = eps.

    Args:
        denoise, x, sigmas: as `plms`.
        order: how many slopes are used, 1 .. 4; fewer at the start.
    """
    _check_count("order", order, 1, 4)
    levels: list[float] = sigmas.tolist()
    past: list[Tensor] = []
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:order]
        step = sigma_next - sigma
        # Distances in sigma, so that a list of any spacing gets its own weights; `plms` has those of equal steps.
        nodes = [levels[i - j] - sigma for j in range(len(past))]
        moments = [step ** (k + 1) / (k + 1) for k in range(len(past))]
        x = x + weighted_sum(interpolation_weights(nodes, moments), past)
        yield Step(i, sigma, sigma_next, x, denoised)


def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2, lower_order_final: bool = True) -> Steps:
    """DEIS, tAB in log rho: equations 14 and 15 and Table 3 (Zhang & Chen 2022, arXiv:2204.13902).

    eps is extrapolated by a polynomial in u = log(sigma / sigma_i) and integrated exactly over d sigma = sigma du.

    Args:
        denoise, x, sigmas: as `plms`.
        order: how many eps are used, 1 .. 4; fewer at the start, one on the step to zero, where u is infinite.
        lower_order_final: with fewer than 15 steps, also fewer at the end: steadier, less exact.
    """
    _check_count("order", order, 1, 4)
    levels: list[float] = sigmas.tolist()
    steps = len(levels) - 1
    past: list[Tensor] = []
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:order]
        if sigma_next == 0:
            # log sigma is infinite here; the exact step where D stands still lands on D.
            x = denoised
        else:
            # With few steps the last ones are long in log sigma, and extrapolating across them overshoots: the rule of
            # DPM-Solver++'s own code, below 15 steps.
            used = min(len(past), steps - i) if lower_order_final and steps < 15 else len(past)
            nodes = [math.log(levels[i - j] / sigma) for j in range(used)]
            weights = interpolation_weights(nodes, _exponential_moments(sigma, sigma_next, used))
            x = x + weighted_sum(weights, past[:used])
        yield Step(i, sigma, sigma_next, x, denoised)


def _exponential_moments(sigma: float, sigma_next: float, count: int) -> list[float]:
    """Integrals of u^k over d sigma from sigma to sigma_next, u = log(sigma' / sigma), by parts."""
    u = math.log(sigma_next / sigma)
    moments = [sigma_next - sigma]
    for k in range(1, count):
        moments.append(sigma_next * u**k - k * moments[-1])
    return moments


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Steps:
    """DPM-Solver++(2M), Algorithm 2 (Lu et al. 2022, arXiv:2211.01095).

    First order on the first step, which has no past, and on the step to zero, where lambda is infinite.

    Args: as `plms`.
    """
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        estimate = denoised
        # To zero the step in lambda is infinite and nothing can be extrapolated: the estimate is D, of first order.
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if previous is not None:
                # D at the middle of the step, on the line in lambda through the last two estimates.
                estimate = denoised + (h / (2 * h_last)) * (denoised - previous)
            h_last = h
        x = euler_step(x, estimate, sigma, sigma_next)
        previous = denoised
        yield Step(i, sigma, sigma_next, x, denoised)


def unipc_bh1(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2, lower_order_final: bool = True) -> Steps:
    """UniPC: predictor UniP, Algorithm 2, and corrector UniC, Algorithm 1, in data prediction, with B(h) = h (Zhao et
    al. 2023, arXiv:2302.04867): their choice for few steps. The corrector uses the call that the next step makes.

    Args:
        denoise, x, sigmas: as `plms`.
        order: p, 1 .. 4; fewer at the start, one on the step to zero.
        lower_order_final: fewer at the end: steadier, less exact.

    Yields:
        predicted states; the correction of one shows in the next.
    """
    return _unipc(denoise, x, sigmas, order, lower_order_final, bound_of=lambda h: -h)


def unipc_bh2(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2, lower_order_final: bool = True) -> Steps:
    """`unipc_bh1` with B(h) = exp(h) - 1, Algorithms 1 and 2 (Zhao et al. 2023, arXiv:2302.04867).

    Args: as `unipc_bh1`.
    """
    return _unipc(denoise, x, sigmas, order, lower_order_final, bound_of=lambda h: math.expm1(-h))


def _unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, order: int, lower_order_final: bool, bound_of: Callable[[float], float]
) -> Steps:
    """Both variants; `bound_of` gives -B(h) in data prediction."""
    _check_count("order", order, 1, 4)
    levels: list[float] = sigmas.tolist()
    past: list[tuple[float, Tensor]] = []  # (log sigma, denoised), newest first
    corrected, used = x, 0
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        # The call just made corrects the step that led here, so the corrector costs no call of its own.
        if i > 0:
            now = (math.log(sigma), denoised)
            corrected = _unified(corrected, levels[i - 1], sigma, [*past[:used], now], bound_of)
        past = [(math.log(sigma), denoised), *past][:order]
        used = min(len(past), len(levels) - 1 - i) if lower_order_final else len(past)
        if sigma_next == 0:  # lambda is infinite there, and with it every r_m
            used = 1
        x = _unified(corrected, sigma, sigma_next, past[:used], bound_of)
        yield Step(i, sigma, sigma_next, x, denoised)


def _unified(
    x: Tensor,
    sigma: float,
    sigma_next: float,
    points: list[tuple[float, Tensor]],
    bound_of: Callable[[float], float],
) -> Tensor:
    """Equations 3 and 8 of UniPC: from sigma to sigma_next with denoised values at `points`, the first at sigma.

    For the predictor all points lie behind; for the corrector the last one lies at sigma_next.
    """
    start, newest = points[0]
    base = euler_step(x, newest, sigma, sigma_next)
    if len(points) == 1:
        return base
    h = start - math.log(sigma_next)
    places = [(start - place) / h for place, _ in points[1:]]  # r_m
    differences = [(value - newest) / r for r, (_, value) in zip(places, points[1:], strict=True)]  # D_m / r_m
    bound = bound_of(h)
    return base - bound * weighted_sum(_unified_weights(places, h, bound), differences)


def _unified_weights(places: list[float], h: float, bound: float) -> list[float]:
    """Solve R_p(h) a_p(h) B(h) = phi_p(h), equation 6 of UniPC. With one place a = 1/2 is admissible and is taken."""
    if len(places) == 1:
        return [0.5]
    phi = math.expm1(-h) / -h - 1  # h phi_2(h) and so on, in data prediction
    right: list[float] = []
    factorial = 1
    for k in range(1, len(places) + 1):
        right.append(phi * factorial / bound)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return interpolation_weights(places, right)
