"""Sigma schedules for inference: which noise levels a sampler visits, from a noise schedule and a number of steps.

Each returns n + 1 strictly descending levels that end in 0; those of `published.STOPPING_ABOVE_ZERO` end above it.
[n + 1] fp64
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.samplers import published
from gouache.diffusion.samplers.names import resolve_schedule
from gouache.diffusion.samplers.published import ALIGN_YOUR_STEPS as ALIGN_YOUR_STEPS
from gouache.diffusion.samplers.published import with_zero as _with_zero
from gouache.errors import InvalidInput, unknown_name


def karras(schedule: NoiseSchedule, n: int, *, rho: float = 7.0) -> Tensor:
    """Equal steps in sigma^(1 / rho): equation 5 of Karras et al. 2022 (arXiv:2206.00364).

    Args:
        schedule: gives sigma_max and sigma_min, the first and the last level before 0.
        n: steps, >= 1.
        rho: 7 as published; larger puts more steps at low noise.
    """
    _check_positive("rho", rho)
    start, end = schedule.sigma_max ** (1 / rho), schedule.sigma_min ** (1 / rho)
    return _with_zero(_ramp(start, end, n) ** rho)


def exponential(schedule: NoiseSchedule, n: int) -> Tensor:
    """Equal steps in log sigma, that is in lambda: section 4.4 of DPM-Solver (Lu et al. 2022, arXiv:2206.00927)."""
    return polyexponential(schedule, n, rho=1.0)


def polyexponential(schedule: NoiseSchedule, n: int, *, rho: float = 1.0) -> Tensor:
    """log sigma falls as ramp^rho: k-diffusion's family (Crowson 2022), equation 5 of Karras et al. 2022 in log sigma.

    Args:
        schedule, n: as `karras`.
        rho: 1 is `exponential`; larger puts more steps at low noise.
    """
    _check_positive("rho", rho)
    low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    return _with_zero((low + _ramp(1.0, 0.0, n) ** rho * (high - low)).exp())


def uniform(schedule: NoiseSchedule, n: int) -> Tensor:
    """Equal steps in time from the last index to the first, fractions allowed: table 1 (VP, "time steps") of Karras et
    al. 2022. A1111 calls it Uniform, ComfyUI normal.
    """
    return _with_zero(schedule.index_to_sigma(_ramp(_last(schedule), 0.0, n)))


def sgm_uniform(schedule: NoiseSchedule, n: int) -> Tensor:
    """Equal steps in time from the last index down to the first, which is left out for 0: `trailing` without rounding
    (table 2 of Lin et al. 2023, arXiv:2305.08891).
    """
    return _with_zero(schedule.index_to_sigma(_ramp(_last(schedule), 0.0, n + 1)[:-1]))


def simple(schedule: NoiseSchedule, n: int) -> Tensor:
    """Every (T / n)-th entry of the table, from the top: `trailing` rounded otherwise (table 2 of Lin et al. 2023)."""
    # Cut off, not rounded, as ComfyUI does, so that its pictures can be repeated.
    total = schedule.num_timesteps
    return _at_indices(schedule, [total - 1 - int(k * total / n) for k in range(n)], n)


def leading(schedule: NoiseSchedule, n: int, *, steps_offset: int = 1) -> Tensor:
    """DDIM's and Stable Diffusion's: whole strides from the bottom; table 2, "leading", of Lin et al. 2023
    (arXiv:2305.08891). It never starts at the most noise.

    Args:
        schedule, n: as `karras`; n <= T.
        steps_offset: added to every index: 1 in Stable Diffusion, 0 in DDIM.
    """
    stride = schedule.num_timesteps // n
    return _at_indices(schedule, [k * stride + steps_offset for k in range(n - 1, -1, -1)], n)


def trailing(schedule: NoiseSchedule, n: int) -> Tensor:
    """Whole strides from the top; table 2, "trailing", of Lin et al. 2023 (arXiv:2305.08891)."""
    total = schedule.num_timesteps
    return _at_indices(schedule, [round(total - k * total / n) - 1 for k in range(n)], n)


def linspace(schedule: NoiseSchedule, n: int) -> Tensor:
    """First and last index and equal steps between, rounded; table 2, "linspace", of Lin et al. 2023."""
    return _at_indices(schedule, _ramp(_last(schedule), 0.0, n).round().long().tolist(), n)


def lcm(schedule: NoiseSchedule, n: int, *, original_steps: int = 50) -> Tensor:
    """Levels among those of the distillation: Algorithm 3 with section 4.3 of Luo et al. 2023 (arXiv:2310.04378).

    Args:
        schedule: as `karras`.
        n: steps, <= original_steps.
        original_steps: steps of the solver that the student learnt from.
    """
    if isinstance(original_steps, bool) or not n <= original_steps <= schedule.num_timesteps:
        raise InvalidInput(
            "original_steps", given=original_steps, expected=f"an integer between {n} and {schedule.num_timesteps}"
        )
    stride = schedule.num_timesteps // original_steps
    return _at_indices(schedule, [(original_steps - k * original_steps // n) * stride - 1 for k in range(n)], n)


def beta(
    schedule: NoiseSchedule, n: int, *, concentration_1: float = 0.6, concentration_0: float = 0.6, over: str = "sigma"
) -> Tensor:
    """Quantiles of a beta distribution, dense at both ends: section 4 of Lee et al. 2024 (arXiv:2407.12173).

    Args:
        schedule, n: as `karras`.
        concentration_1, concentration_0: alpha and beta of the distribution, > 0.
        over: ``"sigma"`` spreads sigma itself (A1111, diffusers); ``"time"`` spreads the index, as the paper does.
    """
    if over not in ("sigma", "time"):
        raise unknown_name("over", over, ("sigma", "time"))
    _check_positive("concentration_1", concentration_1)
    _check_positive("concentration_0", concentration_0)
    shares = [_beta_quantile(float(p), concentration_1, concentration_0) for p in _ramp(1.0, 0.0, n)]
    quantiles = torch.tensor(shares, dtype=torch.float64)
    if over == "time":
        return _with_zero(schedule.index_to_sigma(quantiles * _last(schedule)))
    return _with_zero(schedule.sigma_min + quantiles * (schedule.sigma_max - schedule.sigma_min))


def beta_time(schedule: NoiseSchedule, n: int) -> Tensor:
    """Quantiles of the beta distribution over the table's indices, rounded, the least left out: ComfyUI's list of that
    name (2024) and section 4 of Lee et al. 2024 (arXiv:2407.12173), where `beta` is A1111's.

    Where two of them round to the same entry, which ComfyUI visits once, they are left unrounded.
    """
    shares = [_beta_quantile(1 - k / n, 0.6, 0.6) for k in range(n)]
    places = torch.tensor(shares, dtype=torch.float64) * _last(schedule)
    whole = places.round(decimals=6).round()  # first what bisection leaves of a half
    return _with_zero(schedule.index_to_sigma(whole if bool((whole.diff() < 0).all()) else places))


def kl_optimal(schedule: NoiseSchedule, n: int) -> Tensor:
    """Equal steps in atan(sigma), optimal for a Gaussian: section 3 of Align Your Steps (Sabour et al. 2024,
    arXiv:2404.14507, theorem 3.1).
    """
    return _with_zero(_ramp(math.atan(schedule.sigma_max), math.atan(schedule.sigma_min), n).tan())


def align_your_steps(schedule: NoiseSchedule, n: int, *, family: str = "sd1") -> Tensor:
    """The published table of Align Your Steps (Sabour et al. 2024, arXiv:2404.14507), log-linear between its entries.

    Args:
        schedule, n: as `karras`; the table must lie within the schedule.
        family: ``"sd1"``, ``"sdxl"`` or ``"svd"``.
    """
    if family not in ALIGN_YOUR_STEPS:
        raise unknown_name("family", family, ALIGN_YOUR_STEPS)
    table = torch.tensor(ALIGN_YOUR_STEPS[family], dtype=torch.float64)
    if table[0] > 1.01 * schedule.sigma_max:
        raise InvalidInput(
            "align_your_steps",
            given=f"a noise schedule up to sigma {schedule.sigma_max:.4g}",
            expected=f"one that reaches {float(table[0])}, for which the table was made",
            cure="Choose another sigma schedule, such as 'kl_optimal'.",
        )
    # Ten steps take the published levels themselves; a trip through the logarithm would change their last bits.
    if n + 1 == len(table):
        return _with_zero(table[:-1])
    places = _ramp(0.0, len(table) - 1.0, n + 1)[:-1]
    low = places.floor().long()
    return _with_zero(torch.lerp(table.log()[low], table.log()[low + 1], places - low).exp())


def custom(schedule: NoiseSchedule, n: int, *, levels: Sequence[float]) -> Tensor:
    """A given list, checked: t_0 > t_1 > ... of Algorithm 1 in Karras et al. 2022, with 0 added if it is not there.

    Args:
        schedule: its sigma_max bounds the list.
        n: must be the number of levels above 0.
        levels: strictly descending and >= 0.
    """
    values = [float(value) for value in levels]
    values = values[:-1] if values and values[-1] == 0 else values
    if len(values) != n:
        raise InvalidInput("levels", given=f"{len(values)} above 0", expected=f"{n}, one for each step")
    if values and values[0] > 1.01 * schedule.sigma_max:
        raise InvalidInput("levels[0]", given=values[0], expected=f"at most sigma_max = {schedule.sigma_max:.4g}")
    return _with_zero(torch.tensor(values, dtype=torch.float64))


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "uniform": uniform,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "beta": beta,
    "beta_time": beta_time,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "lcm": lcm,
    "linear_quadratic": published.linear_quadratic,
    "turbo": published.turbo,
    "sd_turbo": published.sd_turbo,
    "align_your_steps_gits": published.align_your_steps_gits,
    "align_your_steps_11": published.align_your_steps_11,
    "align_your_steps_32": published.align_your_steps_32,
    "leading_to_first": published.leading_to_first,
    "uniform_to_min": published.uniform_to_min,
    "kl_optimal_to_min": published.kl_optimal_to_min,
    "custom": custom,
}
"""Name -> function; `sampler_table.SCHEDULE_INFOS` holds the same names with their aliases, and two more: ``"model"``
and ``"diffusers"`` are lists of schedulers, which `pipeline.generate.scheduler_levels` makes."""

ScheduleOption = int | float | str | Sequence[float]


def make_sigmas(
    name: str,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    *,
    options: Mapping[str, ScheduleOption] | None = None,
) -> Tensor:
    """The levels of a schedule by name, for Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364).

    Args:
        name: any name or alias that `sampler_table.resolve_schedule` knows.
        schedule: the model's noise schedule.
        num_inference_steps: n, >= 1.
        options: the function's own keywords.

    Returns:
        strictly descending levels, ending in 0 but for `published.STOPPING_ABOVE_ZERO`. [n + 1] fp64

    Raises:
        UnknownName: no such schedule, or no such option of it.
        InvalidInput: a value out of range, or a table too short for that many steps.
    """
    resolved = resolve_schedule(name)
    if resolved not in SCHEDULES:
        raise InvalidInput(
            "schedule",
            given=repr(resolved),
            expected="a list that follows from the noise schedule alone",
            cure="The lists of a model's or a sampler's scheduler are made in the pipeline.",
        )
    make = SCHEDULES[resolved]
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise InvalidInput("num_inference_steps", given=num_inference_steps, expected="an integer >= 1")
    known = [key for key, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in options or {}:
        if key not in known:
            raise unknown_name(f"option of the {name} schedule", key, known)
    return make(schedule, num_inference_steps, **dict(options or {}))


def discard_penultimate(sigmas: Tensor) -> Tensor:
    """Leave out the last level but one: A1111's habit (2022) for samplers whose last step to equation 5's sigma_min is
    wasted; ask for one step more to keep their number.

    Args:
        sigmas: n + 2 levels.

    Returns:
        n + 1 levels.
    """
    if len(sigmas) < 3:
        raise InvalidInput("sigmas", given=f"{len(sigmas)} levels", expected="at least 3")
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def _ramp(start: float, end: float, n: int) -> Tensor:
    """n values from start to end, both included; one value is the start."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def _last(schedule: NoiseSchedule) -> float:
    return float(schedule.num_timesteps - 1)


def _at_indices(schedule: NoiseSchedule, indices: Sequence[int], n: int) -> Tensor:
    """Table entries at descending indices."""
    total = schedule.num_timesteps
    if n > total or indices[0] > total - 1 or indices[-1] < 0:
        raise InvalidInput(
            "num_inference_steps",
            given=f"{n} steps, from index {indices[0]} to {indices[-1]}",
            expected=f"indices within 0 .. {total - 1} of the noise schedule",
            cure="Take fewer steps, or for 'leading' a smaller steps_offset.",
        )
    return _with_zero(schedule.sigmas[torch.tensor(indices)])


def _check_positive(where: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InvalidInput(where, given=value, expected="a finite number > 0")


def _beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, by bisection."""
    if p in (0.0, 1.0):
        return p
    # Bisection can't miss, whatever the shape of the distribution; 100 halvings exhaust fp64.
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(middle, a, b) < p else (low, middle)
    return (low + high) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """I_x(a, b) for 0 < x < 1 by its continued fraction (NIST Digital Library of Mathematical Functions, 8.17.22)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) - math.log(a) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    )
    fraction = 1.0
    for m in range(80, 0, -1):  # from the inside out; 80 terms are far beyond fp64 for any x on this side
        k, odd = divmod(m, 2)
        if odd:
            d = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            d = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        fraction = 1 + d / fraction
    return front / fraction
