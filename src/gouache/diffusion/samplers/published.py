"""Sigma schedules that single models or programs brought: published tables, Turbo's, Mochi's, and lists that stop above
zero. Each is a function (schedule, n, options) -> levels, as in `sigmas`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.errors import InvalidInput, unknown_name

ALIGN_YOUR_STEPS = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Eleven levels for ten steps, as their authors publish them; the last stands for 0."""

GITS = {
    "sd1": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}
"""Eleven levels by GITS, from the curvature of trajectories."""

ALIGN_YOUR_STEPS_32 = {
    "sd1": (
        *(14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609),
        *(3.13490466, 2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953),
        *(1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202),
        *(0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015),
    ),
    "sdxl": (
        *(14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457),
        *(2.74396527, 2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443),
        *(0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517),
        *(0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015),
    ),
}
"""Thirty-two levels, interpolated from the published ones and made smooth by a user of Align Your Steps."""


def align_your_steps_gits(schedule: NoiseSchedule, n: int, *, family: str = "sd1") -> Tensor:
    """Levels found by GITS (Chen et al. 2024, arXiv:2405.11326, section 4), n of them to the table's end, then 0.

    Args:
        schedule: must reach the table's first level.
        n: steps, >= 1; other numbers than the table's are log-linear between its entries.
        family: ``"sd1"`` or ``"sdxl"``.
    """
    return _of_table("align_your_steps_gits", GITS, schedule, n, family)


def align_your_steps_11(schedule: NoiseSchedule, n: int, *, family: str = "sd1") -> Tensor:
    """The table of Align Your Steps (Sabour et al. 2024, arXiv:2404.14507) as A1111 walks it: n levels to the table's
    end, then 0. The authors' rule, n + 1 levels the last of which becomes 0, is `align_your_steps`.

    Args: as `align_your_steps_gits`; family also ``"svd"``.
    """
    return _of_table("align_your_steps_11", ALIGN_YOUR_STEPS, schedule, n, family)


def align_your_steps_32(schedule: NoiseSchedule, n: int, *, family: str = "sd1") -> Tensor:
    """The table of 32 levels after Align Your Steps (Sabour et al. 2024, arXiv:2404.14507), n of them to its end, then
    0.

    Args: as `align_your_steps_gits`.
    """
    return _of_table("align_your_steps_32", ALIGN_YOUR_STEPS_32, schedule, n, family)


def turbo(schedule: NoiseSchedule, n: int) -> Tensor:
    """Whole strides from the top for SDXL Turbo (Sauer et al. 2023, arXiv:2311.17042, section 3): `trailing`, with each
    half rounded to the even timestep itself."""
    total = schedule.num_timesteps
    return _at(schedule, [min(max(round(k * total / n - 1), 0), total - 1) for k in range(n, 0, -1)], "turbo")


def sd_turbo(schedule: NoiseSchedule, n: int) -> Tensor:
    """The first n of ten equal strides from the top: the timesteps that SDXL Turbo was distilled at lie among them
    (Sauer et al. 2023, arXiv:2311.17042, section 3).

    Args:
        schedule: the model's.
        n: steps, 1 .. 10.
    """
    if n > 10:
        raise InvalidInput("num_inference_steps", given=n, expected="at most 10 steps with the sd_turbo schedule")
    return _at(schedule, [k * schedule.num_timesteps // 10 - 1 for k in range(10, 10 - n, -1)], "sd_turbo")


def linear_quadratic(
    schedule: NoiseSchedule, n: int, *, threshold_noise: float = 0.025, linear_steps: int | None = None
) -> Tensor:
    """Mochi's list (Genmo 2024; its inference code, section "linear_quadratic_schedule"): in the share of noise taken
    away, first equal small steps up to a threshold, then a parabola that meets them with the same slope and ends at 1.

    The share is of sigma_max, and for flow matching of its own time.

    Args:
        schedule, n: as `align_your_steps_gits`.
        threshold_noise: where the parabola begins, within (0, 1).
        linear_steps: equal steps before it; None: half of all, rounded down.
    """
    if not 0 < threshold_noise < 1:
        raise InvalidInput("threshold_noise", given=threshold_noise, expected="a number between 0 and 1, both excluded")
    first = n // 2 if linear_steps is None else linear_steps
    if n > 1 and not 1 <= first < n:
        raise InvalidInput("linear_steps", given=first, expected=f"an integer between 1 and {n - 1}")
    slope = threshold_noise / first if n > 1 else 1.0
    # p(s) = threshold + slope s + bend s^2 with s steps beyond the equal ones; p(n - first) = 1.
    rest = n - first
    bend = (1 - threshold_noise - slope * rest) / rest**2
    taken = [
        slope * k if k <= first else threshold_noise + slope * (k - first) + bend * (k - first) ** 2 for k in range(n)
    ]
    left = 1 - torch.tensor(taken, dtype=torch.float64)
    if schedule.path == "flow":
        top = schedule.sigma_max / (1 + schedule.sigma_max)
        return with_zero(left * top / (1 - left * top))
    return with_zero(left * schedule.sigma_max)


def leading_to_first(schedule: NoiseSchedule, n: int) -> Tensor:
    """Strides of T // n from index 1 up (table 2, "leading", of Lin et al. 2023, arXiv:2305.08891), without a step from
    the first to zero: A1111's DDIM and PLMS, which make one call less than asked, and stop a little above zero.

    Returns:
        descending levels, the last that of index 1. [n] or more
    """
    total = schedule.num_timesteps
    if n >= total:
        raise InvalidInput("num_inference_steps", given=n, expected=f"at most {total - 1} steps with this schedule")
    # Where n doesn't divide T, whole strides leave room for one index more, and it is used.
    indices = sorted({min(k + 1, total - 1) for k in range(0, total, total // n)}, reverse=True)
    if len(indices) < 2:
        indices = [total - 1, 1]
    return descending(schedule.sigmas[torch.tensor(indices)])


def uniform_to_min(schedule: NoiseSchedule, n: int) -> Tensor:
    """Equal steps in time from the last index to the first, where it ends: A1111's UniPC (time-uniform steps, section 4
    of Zhao et al. 2023, arXiv:2302.04867). They are n, or one more for each whole stride of T // n beyond the n-th.

    Returns:
        descending levels, the last sigma_min. [n + 1] or more
    """
    total = schedule.num_timesteps
    steps = len(range(0, total, max(total // n, 1)))
    places = torch.linspace(total - 1.0, 0.0, steps + 1, dtype=torch.float64)
    return descending(schedule.index_to_sigma(places))


def kl_optimal_to_min(schedule: NoiseSchedule, n: int) -> Tensor:
    """n equal steps in atan(sigma) down to sigma_min, where it ends: A1111's KL Optimal (section 3, theorem 3.1, of
    Sabour et al. 2024, arXiv:2404.14507).

    Returns:
        descending levels, the last sigma_min. [n + 1]
    """
    ends = math.atan(schedule.sigma_max), math.atan(schedule.sigma_min)
    return descending(torch.linspace(*ends, n + 1, dtype=torch.float64).tan())


STOPPING_ABOVE_ZERO = ("leading_to_first", "uniform_to_min", "kl_optimal_to_min")
"""Schedules whose last level isn't 0: what noise is left there stays in the picture, as in A1111."""


def with_zero(levels: Tensor) -> Tensor:
    """Append 0, as Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364) ends, and make sure that the levels descend."""
    # A list that stopped at sigma_min would leave that much noise in the picture; the last step, to 0, lands on D.
    return descending(torch.cat([levels.double(), levels.new_zeros(1, dtype=torch.float64)]))


def descending(sigmas: Tensor) -> Tensor:
    """The levels, checked to be finite and to descend, t_0 > t_1 > ... in Algorithm 1 of Karras et al. 2022
    (arXiv:2206.00364)."""
    if not bool(sigmas.isfinite().all()) or not bool((sigmas.diff() < 0).all()):
        raise InvalidInput(
            "sigmas",
            given=", ".join(f"{value:.6g}" for value in sigmas[:12].tolist()),
            expected="finite, strictly descending levels above 0",
            cure="Take fewer steps or another sigma schedule.",
        )
    return sigmas.double()


def _of_table(name: str, tables: Mapping[str, Sequence[float]], schedule: NoiseSchedule, n: int, family: str) -> Tensor:
    """n levels from a table's first to its last entry, log-linear between them, then 0."""
    if family not in tables:
        raise unknown_name("family", family, tables)
    table = torch.tensor(tables[family], dtype=torch.float64)
    if table[0] > 1.01 * schedule.sigma_max:
        raise InvalidInput(
            name,
            given=f"a noise schedule up to sigma {schedule.sigma_max:.4g}",
            expected=f"one that reaches {float(table[0])}, for which the table was made",
            cure="Choose another sigma schedule, such as 'kl_optimal'.",
        )
    if n == len(table):
        return with_zero(table)
    places = torch.linspace(0.0, len(table) - 1.0, n, dtype=torch.float64)
    low = places.floor().long().clamp(max=len(table) - 2)
    logs = table.log()
    return with_zero(torch.lerp(logs[low], logs[low + 1], places - low).exp())


def _at(schedule: NoiseSchedule, indices: list[int], name: str) -> Tensor:
    """Table entries at descending indices, then 0."""
    if len(set(indices)) < len(indices):
        raise InvalidInput(
            "num_inference_steps",
            given=len(indices),
            expected=f"at most {schedule.num_timesteps} steps with the {name} schedule",
        )
    return with_zero(schedule.sigmas[torch.tensor(indices)])
