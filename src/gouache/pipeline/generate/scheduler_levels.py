"""The noise levels that a scheduler of diffusers walks, from its file's keys: with the timesteps that the network is
told at them, and what the first noise is multiplied by.

diffusers' classes make their lists in six ways, and within one way they differ in how they round. The levels here are
theirs up to float32; states are x0 + sigma eps as everywhere in gouache, so a level of a flow, f, is f / (1 - f), and
EDM's are in units of sigma_data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import DiscreteVP, EdmSchedule, NoiseSchedule, VarianceExploding, alpha_and_std
from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.diffusion.samplers.sigmas import beta, exponential, karras
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import MMDiTConfig
from gouache.models.scheduler_config import SCHEDULER_CLASSES, SchedulerConfig, in_pairs, number, sampler_of, setting

CURVES = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
    "use_lu_lambdas": exponential,  # Lu's lambdas with the exponent 1, which is all that diffusers has
}
ENDING_ABOVE_ZERO = ("DEISMultistepScheduler", "SASolverScheduler")
"""Solvers whose last step leaves the least noise, and with a curve changes nothing."""
NEVER_LIMITING = ("TCDScheduler",)
"""Classes whose step doesn't look at `clip_sample` and `thresholding`, which they take."""
LAST_FLOW = 1 - 1e-6
"""A flow's level of pure noise, f = 1, is an infinite sigma."""


@dataclass(frozen=True, slots=True)
class Levels:
    """A list of noise levels.

    Attributes:
        sigmas: descending. [n + 1] fp64
        timesteps: what the network is told at all but the last; empty = what its noise schedule gives.
        start: the state at the first level is this times noise; sigma there if all is as usual.
    """

    sigmas: Tensor
    timesteps: tuple[float, ...] = ()
    start: float = 0.0

    @property
    def start_ratio(self) -> float:
        """`start` in units of the first level."""
        return self.start / float(self.sigmas[0]) if self.start else 1.0


def scheduler_of(sampler: str, schedule: str, bundle: ModelBundle) -> SchedulerConfig | None:
    """The scheduler whose list a schedule's name means: ``"model"`` the file's, ``"diffusers"`` that of the sampler's
    own class over the file's keys, as `from_config` does there (diffusers 0.42, 2026). None for every other name, and
    for a model or a sampler that has none.
    """
    own = bundle.defaults.scheduler
    if schedule == "model":
        return own
    if schedule != "diffusers":
        return None
    if own is not None and sampler_of(own).name == sampler:
        return own
    names = [alias for alias in SAMPLER_INFOS[sampler].aliases if alias in SCHEDULER_CLASSES]
    fitting = [name for name in names if _fits(name, bundle.schedule)]
    if not fitting:
        return None
    keys = {} if own is None else own.model_dump(exclude_none=True)
    return SchedulerConfig.from_dict({**keys, "class_name": fitting[0]})


def limit_of(sampler: str, schedule: str, bundle: ModelBundle) -> Callable[[Tensor], Tensor] | None:
    """What the scheduler of a schedule's name does to the estimate of every step: `clip_sample` cuts it off,
    `thresholding` makes it smaller by its own largest numbers (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
    None if it does neither. A class that takes another's file over clips only if the file says so.
    """
    config, own = scheduler_of(sampler, schedule, bundle), bundle.defaults.scheduler
    if config is None or config.class_name in NEVER_LIMITING:
        return None
    data = (number(config, "sigma_data") or 1.0) if SCHEDULER_CLASSES[config.class_name].kind == "edm" else 1.0
    if setting(config, "thresholding"):
        share, most = number(config, "dynamic_thresholding_ratio"), number(config, "sample_max_value")
        return lambda denoised: _thresholded(denoised * data, 0.995 if share is None else share, most or 1.0) / data
    if setting(config, "clip_sample") and (config is own or config.clip_sample):
        most = (number(config, "clip_sample_range") or 1.0) / data
        return lambda denoised: denoised.clamp(-most, most)
    return None


def _thresholded(denoised: Tensor, share: float, most: float) -> Tensor:
    """Each picture cut off at the quantile s of its absolute numbers, 1 <= s <= `most`, and divided by s. [B,C,h,w]"""
    absolute = denoised.float().abs().flatten(1)
    s = torch.quantile(absolute, share, dim=1).clamp(min=1.0, max=most).view(-1, *(1,) * (denoised.ndim - 1))
    return (denoised.float().clamp(-s, s) / s).to(denoised)


def _fits(name: str, schedule: NoiseSchedule) -> bool:
    """Whether a class makes levels for networks on such a schedule."""
    kind = SCHEDULER_CLASSES[name].kind
    if isinstance(schedule, EdmSchedule):
        return kind == "edm"
    if schedule.path == "flow":
        return kind in ("flow", "solver")
    return kind in ("chain", "interpolated", "solver", "lcm")


def scheduler_levels(
    config: SchedulerConfig, schedule: NoiseSchedule, n: int, size: tuple[int, int] | None = None
) -> Levels:
    """The levels of a scheduler after `set_timesteps(n)` (diffusers 0.42, 2026; spacings: table 2 of Lin et al. 2023,
    arXiv:2305.08891).

    Args:
        config: the scheduler.
        schedule: the network's.
        n: steps, >= 1.
        size: width and height of the picture in patches, for shifts that follow from it; None = 64 x 64.

    Raises:
        InvalidInput: more steps than the spacing has timesteps.
    """
    kind = SCHEDULER_CLASSES[config.class_name].kind
    if kind == "edm":
        return _edm(config, n)
    if kind == "flow" or (kind == "solver" and setting(config, "use_flow_sigmas")):
        return _flow(config, schedule, n, size or (64, 64))
    if kind == "interpolated":
        return _interpolated(config, schedule, n)
    if kind == "lcm":
        return _consistency(config, schedule, n)
    return _solver(config, schedule, n) if kind == "solver" else _chain(config, schedule, n)


def _chain(config: SchedulerConfig, schedule: NoiseSchedule, n: int) -> Levels:
    """DDPM, DDIM, PNDM: whole timesteps."""
    indices = _spaced(config, schedule.num_timesteps, n, whole=True)
    sigmas = _at(schedule.sigmas, indices)
    end = 0.0 if setting(config, "set_alpha_to_one") is not False else schedule.sigma_min
    return _unit(sigmas, indices, end, schedule)


def _interpolated(config: SchedulerConfig, schedule: NoiseSchedule, n: int) -> Levels:
    """Euler, Heun, DPM2, LMS: timesteps with fractions, sigma linear between the table's entries."""
    times = _spaced(config, schedule.num_timesteps, n, whole=False)
    sigmas = _at(schedule.sigmas, times)
    end = schedule.sigma_min if setting(config, "final_sigmas_type") == "sigma_min" else 0.0
    curve = _curve(config)
    if setting(config, "interpolation_type") == "log_linear" and curve is None:
        # One level more than there are steps; what would follow them is never reached.
        whole = torch.linspace(math.log(schedule.sigma_max), math.log(schedule.sigma_min), n + 1, dtype=torch.float64)
        sigmas, end = whole[:-1].exp(), schedule.sigma_min
    if curve is not None:
        low, high = number(config, "sigma_min"), number(config, "sigma_max")
        sigmas = _curved(
            curve, float(sigmas[-1]) if low is None else low, float(sigmas[0]) if high is None else high, n
        )
        times = schedule.sigma_to_t(sigmas)
        if curve == "use_karras_sigmas" and config.class_name.startswith("KDPM2"):
            times = times.round()
    timesteps = () if isinstance(schedule, EdmSchedule) else tuple(times.tolist())
    top = float(sigmas[0])
    start = math.hypot(top, 1.0) if setting(config, "timestep_spacing") == "leading" else top
    return _closed(sigmas, timesteps, end, start)


def _solver(config: SchedulerConfig, schedule: NoiseSchedule, n: int) -> Levels:
    """DPM-Solver++, UniPC, DEIS: n + 1 whole timesteps without the last; what is left of a fraction is cut off."""
    times = _solver_spaced(config, schedule.num_timesteps, n)
    sigmas = _at(schedule.sigmas, times)
    least = config.class_name in ENDING_ABOVE_ZERO or setting(config, "final_sigmas_type") == "sigma_min"
    end = schedule.sigma_min if least else 0.0
    curve = _curve(config)
    if curve is not None:
        low, high = number(config, "sigma_min"), number(config, "sigma_max")
        low, high = schedule.sigma_min if low is None else low, schedule.sigma_max if high is None else high
        sigmas = _curved(curve, low, high, n)
        times = schedule.sigma_to_t(sigmas)
        if curve in ("use_karras_sigmas", "use_lu_lambdas"):
            times = times.round()
        else:
            # Cut off; in float32 the most noise lies a hair below the table's end, and is cut to the timestep before.
            times = (times - 1e-6).floor().clamp(min=0)
        if least:
            end = float(sigmas[-1])
    made = _unit(sigmas, times, end, schedule)
    return _in_pairs(made) if in_pairs(config) else made


def _in_pairs(fine: Levels) -> Levels:
    """A single-step solver of order 2 spends two of its n levels on one of our steps; the last two are of order 1."""
    last = len(fine.sigmas) - 1
    kept = [*range(0, last - 1, 2), last - 1, last] if last > 1 else [0, last]
    kept = sorted(set(kept))
    timesteps = tuple(fine.timesteps[k] for k in kept[:-1])
    return Levels(fine.sigmas[torch.tensor(kept)], timesteps, fine.start)


def _consistency(config: SchedulerConfig, schedule: NoiseSchedule, n: int) -> Levels:
    """LCM, TCD: levels among those of the distillation (section 4.3 of Luo et al. 2023, arXiv:2310.04378)."""
    total = schedule.num_timesteps
    original = int(number(config, "original_inference_steps") or 50)
    if not n <= original <= total:
        raise InvalidInput(
            "num_inference_steps",
            given=n,
            expected=f"at most {original}, the steps that the model was distilled from",
            cure="Take fewer steps.",
        )
    stride = total // original
    indices = torch.tensor([(original - k * original // n) * stride - 1 for k in range(n)], dtype=torch.float64)
    return _unit(_at(schedule.sigmas, indices), indices, 0.0, schedule)


def _edm(config: SchedulerConfig, n: int) -> Levels:
    low, high = number(config, "sigma_min") or 0.002, number(config, "sigma_max") or 80.0
    data = number(config, "sigma_data") or 0.5
    ends = VarianceExploding(low, high)
    if setting(config, "sigma_schedule") == "exponential":
        sigmas = exponential(ends, n)[:-1] if n > 1 else torch.tensor([high], dtype=torch.float64)
    else:
        sigmas = karras(ends, n, rho=number(config, "rho") or 7.0)[:-1]
    end = float(sigmas[-1]) if setting(config, "final_sigmas_type") == "sigma_min" else 0.0
    timesteps = tuple((sigmas.log() / 4).tolist())
    return _closed(sigmas / data, timesteps, end / data, math.hypot(high, 1.0) / data)


def _flow(config: SchedulerConfig, schedule: NoiseSchedule, n: int, size: tuple[int, int]) -> Levels:
    """Levels f of a flow, x_t = (1 - f) x0 + f eps, shifted (Esser et al. 2024, arXiv:2403.03206, equation 23)."""
    total, solver = schedule.num_timesteps, SCHEDULER_CLASSES[config.class_name].kind == "solver"
    dynamic = bool(setting(config, "use_dynamic_shifting"))
    shift = _shift_for(config, size) if dynamic else number(config, "flow_shift" if solver else "shift") or 1.0
    unipc = config.class_name == "UniPCMultistepScheduler"
    if not solver:
        # A fixed shift is in the list's ends already; diffusers shifts them once more.
        before = 1.0 if dynamic else shift
        ends = [_shifted(torch.tensor(f, dtype=torch.float64), before).item() for f in (1.0, 1 / total)]
        parts = torch.linspace(ends[0], ends[1], n, dtype=torch.float64)
    elif unipc:
        parts = torch.from_numpy(np.linspace(1, 1 / total, n + 1))[:-1]
    else:
        parts = (1 - torch.from_numpy(np.linspace(1, 1 / total, n + 1))).flip(0)[:-1]
    parts = _shifted(parts, shift)
    terminal = number(config, "shift_terminal")
    if terminal is not None and n > 1:
        parts = 1 - (1 - parts) / ((1 - parts[-1]) / (1 - terminal))
    curve = _curve(config)
    if curve is not None and not solver and n > 1:
        parts = _curved(curve, float(parts[-1]), float(parts[0]), n)
    parts = parts.clamp(max=LAST_FLOW) if solver else parts
    timesteps = parts * total
    if solver:
        timesteps = timesteps.floor()
    parts = parts.clamp(max=LAST_FLOW)
    return _unit(parts / (1 - parts), timesteps, 0.0, schedule)


SHIFTS = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
"""What diffusers' pipelines take where a scheduler's file is silent."""
PATCH = 16
"""Side in pixels of what counts as one of a picture's patches, for a U-Net, which has none."""


def patches_of(width: int, height: int, bundle: ModelBundle) -> tuple[int, int]:
    """How many patches a picture of this size in pixels has along its edges."""
    config = bundle.unet.config
    side = bundle.vae.config.downscale * config.patch_size if isinstance(config, MMDiTConfig) else PATCH
    return width // side, height // side


def _shift_for(config: SchedulerConfig, size: tuple[int, int]) -> float:
    """The shift of a picture's size: on a line through two numbers of patches, as diffusers' SD3 pipeline has it."""
    base, most, least_length, most_length = (
        float(usual if (given := getattr(config, key)) is None else given) for key, usual in SHIFTS.items()
    )
    shifts, lengths = (base, most), (least_length, most_length)
    patches = size[0] * size[1]
    slope = (shifts[1] - shifts[0]) / (lengths[1] - lengths[0]) if lengths[1] != lengths[0] else 0.0
    mu = shifts[0] + slope * (patches - lengths[0])
    shift = mu if setting(config, "time_shift_type") == "linear" else math.exp(mu)
    if shift <= 0:
        raise InvalidInput(
            "width, height",
            given=f"{size[0]} x {size[1]} patches, whose shift of noise levels would be {shift:g}",
            expected="a size for which the model's scheduler has a shift above 0",
            cure="Take a larger picture, or another schedule.",
        )
    return shift


def _shifted(parts: Tensor, shift: float) -> Tensor:
    return shift * parts / (1 + (shift - 1) * parts)


def _spaced(config: SchedulerConfig, total: int, n: int, *, whole: bool) -> Tensor:
    """Timesteps, descending. [n] fp64"""
    spacing, offset = setting(config, "timestep_spacing"), int(number(config, "steps_offset") or 0)
    if n > total:
        raise InvalidInput("num_inference_steps", given=n, expected=f"at most {total}, the timesteps of the model")
    if spacing == "linspace":
        # One step takes the first of both ends, which is the least: so does diffusers.
        times = torch.from_numpy(np.linspace(0, total - 1, n)).flip(0)
        return times.round() if whole else times.float().double()
    if spacing == "leading":
        return torch.arange(n, dtype=torch.float64).flip(0) * (total // n) + offset
    return torch.tensor([round(total - k * (total / n)) - 1 for k in range(n)], dtype=torch.float64)


def _solver_spaced(config: SchedulerConfig, total: int, n: int) -> Tensor:
    spacing, offset = setting(config, "timestep_spacing"), int(number(config, "steps_offset") or 0)
    if n >= total:
        raise InvalidInput("num_inference_steps", given=n, expected=f"below {total}, the timesteps of the model")
    if spacing == "linspace":
        return torch.from_numpy(np.linspace(0, total - 1, n + 1)).round().flip(0)[:-1]
    if spacing == "leading":
        return torch.arange(1, n + 1, dtype=torch.float64).flip(0) * (total // (n + 1)) + offset
    return torch.tensor([round(total - k * (total / n)) - 1 for k in range(n)], dtype=torch.float64)


def _at(table: Tensor, times: Tensor) -> Tensor:
    """Entries of a table, linear between them."""
    last = len(table) - 1
    if float(times.max()) > last or float(times.min()) < 0:
        raise InvalidInput(
            "num_inference_steps",
            given=f"{len(times)} steps, up to timestep {float(times.max()):g}",
            expected=f"timesteps from 0 to {last}",
            cure="Take fewer steps.",
        )
    low = times.floor().long().clamp(max=last - 1)
    return torch.lerp(table[low], table[low + 1], times - low)


def _curve(config: SchedulerConfig) -> str | None:
    return next((key for key in CURVES if setting(config, key)), None)


def _curved(key: str, low: float, high: float, n: int) -> Tensor:
    """n levels of a curve between two ends. [n]"""
    if n == 1 or low >= high:
        return torch.full((1,), high, dtype=torch.float64)
    return CURVES[key](VarianceExploding(low, high), n)[:-1]


def _unit(sigmas: Tensor, timesteps: Tensor, end: float, schedule: NoiseSchedule) -> Levels:
    """Levels of a scheduler whose first state is noise of deviation 1: x = x_t / alpha."""
    alpha, _ = alpha_and_std(sigmas[:1], schedule.path)
    listed = tuple(timesteps.tolist()) if isinstance(schedule, DiscreteVP) or schedule.path == "flow" else ()
    return _closed(sigmas, listed, end, 1 / float(alpha))


def _closed(sigmas: Tensor, timesteps: tuple[float, ...], end: float, start: float) -> Levels:
    """With the last level behind. A step that ends where it begins changes nothing and is left out; as the only one it
    goes to zero, so that a picture comes of it."""
    if len(sigmas) == 1 and float(sigmas[0]) <= end * (1 + 1e-9):
        end = 0.0
    while len(sigmas) > 1 and end > 0 and float(sigmas[-1]) <= end * (1 + 1e-9):
        sigmas, timesteps = sigmas[:-1], timesteps[:-1]
    levels = torch.cat([sigmas, sigmas.new_tensor([end])])
    if not bool((levels.diff() < 0).all()):
        raise InvalidInput(
            "num_inference_steps",
            given=f"{len(sigmas)} steps, two of them at the same level",
            expected="fewer",
            cure="Take fewer steps or another sigma schedule.",
        )
    return Levels(levels, timesteps, start)
