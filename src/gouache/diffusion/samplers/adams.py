"""Further samplers that remember earlier calls: iPNDM, PNDM's own start, gradient estimation, SA-Solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.diffusion.samplers.common import (
    _check_choice,
    _check_count,
    add_noise,
    interpolation_weights,
    intervals,
    level,
    weighted_sum,
)
from gouache.diffusion.samplers.multistep import ADAMS_BASHFORTH
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4) -> Steps:
    """iPNDM (Zhang & Chen 2022, arXiv:2204.13902, section 4): the Adams-Bashforth weights of equal steps on eps, one
    more value at each step from the first on. The step to zero lands on D.

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        order: how many eps are used, 1 .. 4; fewer at the start.
    """
    _check_count("order", order, 1, 4)
    past: list[Tensor] = []
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:order]
        eps = weighted_sum(ADAMS_BASHFORTH[len(past) - 1], past)
        x = denoised if sigma_next == 0 else x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, denoised)


def ipndm_v(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4, weights: str = "published") -> Steps:
    """`ipndm` with weights for unequal steps, in Newton's form (Hairer, Norsett & Wanner 1993, Solving Ordinary
    Differential Equations I, section III.5). The step to zero lands on D.

    Args:
        denoise, x, sigmas, order: as `ipndm`.
        weights: ``"exact"`` takes the book's; ``"published"`` those of the authors' program, which others copied: its
            third and fourth values are weighted wrongly where steps are unequal, so it is of second order.
    """
    _check_count("order", order, 1, 4)
    _check_choice("weights", weights, ("published", "exact"))
    levels: list[float] = sigmas.tolist()
    past: list[Tensor] = []
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:order]
        if sigma_next == 0:
            x = denoised
        else:
            steps = [levels[i + 1 - j] - levels[i - j] for j in range(len(past))]
            x = x + (sigma_next - sigma) * weighted_sum(_newton_weights(steps, exact=weights == "exact"), past)
        yield Step(i, sigma, sigma_next, x, denoised)


def _newton_weights(steps: list[float], *, exact: bool) -> list[float]:
    """Weights of the newest values of a slope for a step of length steps[0] after steps[1], steps[2] and so on.

    The integral is f_0 + sum over k of g_k beta_k Phi_k, with Phi_k the k-th difference, scaled to the latest steps.
    """
    h = steps[0]
    total = [1.0] + [0.0] * (len(steps) - 1)
    if len(steps) > 1:
        _add(total, h / steps[1] / 2, [1.0, -1.0])
    if len(steps) > 2:
        h1, h2 = steps[1:3]
        r, b = h1 / h2, h * (h + h1) / (h1 * (h1 + h2))
        c = h / (3 * (h + h1))
        _add(total, (1 - c) * b / 2 if exact else (1 - c * b) / 2, [1.0, -1 - r, r])
    if len(steps) > 3:
        h3 = steps[3]
        b = h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        d = (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        last = h2 / h3
        scale = (_third_moment(h, h1, h2) if exact else (1 - c) / 2 + d) * b
        _add(total, scale, [1.0, -1 - r - q, r + q * (1 + last), -q * (last if exact else r)])
    return total


def _third_moment(h: float, h1: float, h2: float) -> float:
    """g_3: the mean of u (u + h1) (u + h1 + h2) over the step, divided by its value at the step's end."""
    moments = h**3 / 4 + (2 * h1 + h2) * h**2 / 3 + h1 * (h1 + h2) * h / 2
    return moments / (h * (h + h1) * (h + h1 + h2))


def _add(total: list[float], scale: float, difference: list[float]) -> None:
    for j, weight in enumerate(difference):
        total[j] += scale * weight


def pndm_prk(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    middle_of: Callable[[float, float], float] | None = None,
) -> Steps:
    """PNDM as published: three pseudo Runge-Kutta steps, then the linear multistep (equations 9, 12, 13 and Algorithm 2
    of Liu et al. 2022, arXiv:2202.09778).

    Args:
        denoise, x, sigmas: as `ipndm`; four calls in each of the first three steps.
        middle_of: (sigma, sigma_next) -> the level between them where the second and third call are made; None: the
            middle in sigma, for which the start is of fourth order.
    """
    past: list[Tensor] = []  # eps, newest first
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [(x - denoised) / sigma, *past][:4]
        eps = weighted_sum(ADAMS_BASHFORTH[len(past) - 1], past)
        if i < 3 and sigma_next > 0:
            middle = (sigma + sigma_next) / 2 if middle_of is None else middle_of(sigma, sigma_next)
            slopes = [past[0]]
            for then in (middle, middle, sigma_next):
                guess = x + (then - sigma) * slopes[-1]
                slopes.append((guess - denoise(guess, level(then))) / then)
            eps = weighted_sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), slopes)
        x = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, denoised)


def gradient_estimation(denoise: Denoise, x: Tensor, sigmas: Tensor, *, gamma: float = 2.0) -> Steps:
    """Gradient estimation: eps is replaced by gamma eps + (1 - gamma) eps of the step before (Permenter & Yuan 2024,
    arXiv:2306.04848, section 5). The step to zero lands on D.

    Args:
        denoise, x, sigmas: as `ipndm`.
        gamma: 1 is `euler`; 2 as published; 3/2 is the two-step Adams-Bashforth rule on equal steps.
    """
    previous: Tensor | None = None
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        slope = (x - denoised) / sigma
        used = slope if previous is None else slope + (gamma - 1) * (slope - previous)
        x = denoised if sigma_next == 0 else x + (sigma_next - sigma) * used
        previous = slope
        yield Step(i, sigma, sigma_next, x, denoised)


@dataclass(frozen=True, slots=True)
class _Point:
    """An estimate and its log-SNR, lambda = -log(sigma)."""

    place: float
    denoised: Tensor


def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    predictor_order: int = 3,
    corrector_order: int = 4,
    simple: bool = False,
    pece: bool = False,
    noisy_at: Callable[[float, float], bool] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """SA-Solver, Algorithm 1: the stochastic Adams predictor, equation 15, and corrector, equation 18, in data
    prediction (Xue et al. 2023, arXiv:2309.05019).

    Args:
        denoise, x, sigmas: as `ipndm`; one call a step, or two with `pece`.
        eta: tau of the paper: 0 the ODE, 1 the reverse SDE.
        s_noise: scale of the noise.
        predictor_order, corrector_order: 1 .. 4; lower at the start, and towards a list's end at zero. A corrector of
            order 1 has the newest estimate alone.
        simple: two points take their simplified weights (the paper's appendix on implementation), of the same order.
        pece: call once more at the corrected state.
        noisy_at: (sigma, sigma_next) -> whether the step has noise; None: every step.
        noise: needed where eta > 0.

    Yields:
        predicted states; the correction of one shows in the next.
    """
    _check_count("predictor_order", predictor_order, 1, 4)
    _check_count("corrector_order", corrector_order, 1, 4)
    levels: list[float] = sigmas.tolist()
    steps, to_zero = len(levels) - 1, levels[-1] == 0
    past: list[_Point] = []  # newest first
    corrected, tau = x, 0.0
    gathered: Tensor | None = None
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        past = [_Point(-math.log(sigma), denoised), *past][:4]
        used = min(corrector_order, len(past), steps - i if to_zero else 4)
        if i > 0 and (sigma_next > 0 or pece):
            corrected = _stochastic_adams(corrected, levels[i - 1], sigma, past[:used], tau, simple=simple)
            corrected = corrected if gathered is None else corrected + gathered
            if pece:
                denoised = denoise(corrected, level(sigma))
                past[0] = _Point(past[0].place, denoised)
        else:
            corrected = x
        if sigma_next == 0:
            x = denoised
        else:
            tau = eta if noisy_at is None or noisy_at(sigma, sigma_next) else 0.0
            used = min(predictor_order, len(past), steps - 1 - i if to_zero else 4)
            x = _stochastic_adams(corrected, sigma, sigma_next, past[:used], tau, simple=simple)
            gathered = None
            if tau > 0 and s_noise > 0:
                # The corrector repeats the step, so it has to repeat this noise as well.
                amount = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** (2 * tau**2))
                gathered = add_noise(torch.zeros_like(x), amount, noise, sigma, sigma_next, s_noise=s_noise)
                x = x + gathered
        yield Step(i, sigma, sigma_next, x, denoised)


def sa_solver_pece(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    predictor_order: int = 3,
    corrector_order: int = 4,
    noisy_at: Callable[[float, float], bool] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """`sa_solver` that predicts, evaluates, corrects and evaluates again (Algorithm 1 of Xue et al. 2023,
    arXiv:2309.05019, with its option PECE).

    Args: as `sa_solver`; two calls a step.
    """
    yield from sa_solver(
        denoise,
        x,
        sigmas,
        eta=eta,
        s_noise=s_noise,
        predictor_order=predictor_order,
        corrector_order=corrector_order,
        pece=True,
        noisy_at=noisy_at,
        noise=noise,
    )


def sa_solver_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noisy_at: Callable[[float, float], bool] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """`sa_solver` with two points in both formulas and their simplified weights, which Xue et al. 2023
    (arXiv:2309.05019, its appendix on implementation) take for guided sampling in few steps.

    Args: as `sa_solver`.
    """
    yield from sa_solver(
        denoise,
        x,
        sigmas,
        eta=eta,
        s_noise=s_noise,
        predictor_order=2,
        corrector_order=2,
        simple=True,
        noisy_at=noisy_at,
        noise=noise,
    )


def _stochastic_adams(
    x: Tensor, sigma: float, sigma_next: float, points: list[_Point], tau: float, *, simple: bool
) -> Tensor:
    """Equations 15 and 18 of SA-Solver without the noise: from sigma to sigma_next with D through the points."""
    if len(points) == 1:
        shrunk = math.pow(sigma_next / sigma, 1 + tau**2)
        return points[0].denoised + shrunk * (x - points[0].denoised)
    start, h, a = -math.log(sigma), math.log(sigma / sigma_next), 1 + tau**2
    # Integrals of u^k with the weight a exp(a (u - h)), u = lambda - lambda_start, by parts.
    moments = [-math.expm1(-a * h)]
    for k in range(1, len(points)):
        moments.append(h**k - k / a * moments[-1])
    if simple and len(points) == 2:
        moments[1] = a * h**2 / 2
    weights = interpolation_weights([point.place - start for point in points], moments)
    mean = math.pow(sigma_next / sigma, a) * x
    return mean + weighted_sum(weights, [point.denoised for point in points])
