"""What a diffusers folder's `scheduler_config.json` says of sampling, and what its class takes for granted. No torch.

The keys are diffusers' own (0.42, 2026). None means that the file is silent, and the class's default holds, so that
another class may take the same file over, as `SomeScheduler.from_config(pipe.scheduler.config)` does there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from gouache.config import Config
from gouache.diffusion.samplers.names import NOT_OFFERED, resolve
from gouache.errors import UnknownName

Spacing = Literal["linspace", "leading", "trailing"]
SchedulerKind = Literal["chain", "interpolated", "solver", "lcm", "edm", "flow"]


class SchedulerConfig(Config):
    """The keys of a scheduler's file that decide noise levels and steps."""

    class_name: str
    """The class in diffusers, for example EulerDiscreteScheduler."""
    timestep_spacing: Spacing | None = None
    """How n timesteps are chosen of all (table 2 of Lin et al. 2023, arXiv:2305.08891)."""
    steps_offset: int | None = Field(default=None, ge=0)
    """Added to every timestep of the spacing leading."""
    set_alpha_to_one: bool | None = None
    """Whether the last step of DDIM and PNDM goes to no noise, not to the least of the table."""
    skip_prk_steps: bool | None = None
    """Whether PNDM starts without Runge-Kutta steps."""
    use_karras_sigmas: bool | None = None
    """Whether the levels follow Karras et al. 2022 (equation 5)."""
    use_exponential_sigmas: bool | None = None
    """Whether the levels are spaced evenly in their logarithm."""
    use_beta_sigmas: bool | None = None
    """Whether the levels follow a beta distribution (Lee et al. 2024, arXiv:2407.12173)."""
    use_lu_lambdas: bool | None = None
    """Whether the levels are spaced evenly in log SNR (Lu et al. 2022)."""
    use_flow_sigmas: bool | None = None
    """Whether a solver runs on the levels of flow matching."""
    flow_shift: float | None = Field(default=None, gt=0)
    """Shift of a solver's flow levels."""
    shift: float | None = Field(default=None, gt=0)
    """The same of the FlowMatch classes."""
    shift_terminal: float | None = Field(default=None, gt=0, lt=1)
    """Where flow levels are stretched to end."""
    sigma_min: float | None = Field(default=None, gt=0)
    """The least noise level."""
    sigma_max: float | None = Field(default=None, gt=0)
    """The greatest noise level."""
    sigma_data: float | None = Field(default=None, gt=0)
    """Deviation of the data that EDM's preconditioning takes for granted."""
    sigma_schedule: Literal["karras", "exponential"] | None = None
    """Curve of the EDM classes' levels."""
    rho: float | None = Field(default=None, gt=0)
    """Exponent of the EDM classes' Karras curve."""
    final_sigmas_type: Literal["zero", "sigma_min"] | None = None
    """Whether the last step ends without noise or at the least level."""
    interpolation_type: Literal["linear", "log_linear"] | None = None
    """How levels between two timesteps are found: from the sigmas, or from their logarithms."""
    timestep_type: Literal["discrete", "continuous"] | None = None
    """What the network is told: the timestep, or the logarithm of the level."""
    algorithm_type: str | None = None
    """Variant of a DPM-Solver, for example dpmsolver++ or sde-dpmsolver++."""
    solver_type: str | None = None
    """How a solver takes its second-order step, for example midpoint, heun, bh1 or bh2."""
    solver_order: int | None = Field(default=None, ge=1)
    """Order of the solver."""
    lower_order_final: bool | None = None
    """Whether the last steps have a lower order, where steps are few."""
    euler_at_final: bool | None = None
    """Whether the last step is an Euler step."""
    variance_type: str | None = None
    """Which variance the noise of a DDPM step has."""
    original_inference_steps: int | None = Field(default=None, ge=1)
    """Steps of the solver that a consistency model learnt from."""
    timestep_scaling: float | None = Field(default=None, gt=0)
    """Factor on the timestep in the weights of a consistency model."""
    clip_sample: bool | None = None
    """Whether the estimate of every step is cut off at +- `clip_sample_range`."""
    clip_sample_range: float | None = Field(default=None, gt=0)
    """Where `clip_sample` cuts off."""
    thresholding: bool | None = None
    """Whether it is thresholded dynamically (Saharia et al. 2022, arXiv:2205.11487, section 2.3)."""
    dynamic_thresholding_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of an estimate's numbers below its threshold."""
    sample_max_value: float | None = Field(default=None, ge=1)
    """Largest threshold."""
    use_dynamic_shifting: bool | None = None
    """Whether a flow's shift follows from the picture's size, in patches of 16 x 16 pixels."""
    base_shift: float | None = None
    """Logarithm of the shift (or the shift itself, if linear) at `base_image_seq_len` patches."""
    max_shift: float | None = None
    """The same at `max_image_seq_len`."""
    base_image_seq_len: int | None = Field(default=None, ge=1)
    """Patches of a picture that gets `base_shift`."""
    max_image_seq_len: int | None = Field(default=None, ge=1)
    """Patches of a picture that gets `max_shift`."""
    time_shift_type: Literal["exponential", "linear"] | None = None
    """Whether the shift is the exponential of what follows from the size, or that itself."""
    predict_x0: bool | None = None
    """Whether UniPC works with the estimate of the clean latents; else with that of the noise."""


@dataclass(frozen=True, slots=True)
class SchedulerClass:
    """One class of diffusers.

    Attributes:
        kind: how it makes its levels; see `pipeline.generate.scheduler_levels`.
        takes: its own keys with their defaults, besides `timestep_spacing` and `steps_offset`.
        spacing: its default `timestep_spacing`; None if it has no such key, and then it is linspace.
        betas: ends of beta_t where the file is silent.
        beta_schedule: the same of the curve between them.
        zero_snr: whether it takes `rescale_betas_zero_snr`.
    """

    kind: SchedulerKind
    takes: Mapping[str, object] = field(default_factory=dict)
    spacing: Spacing | None = "linspace"
    betas: tuple[float, float] = (0.0001, 0.02)
    beta_schedule: str = "linear"
    zero_snr: bool = False


_CURVES: dict[str, object] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DYNAMIC: dict[str, object] = {
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
_FLOW: dict[str, object] = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_THRESHOLD: dict[str, object] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_CLIP: dict[str, object] = {"clip_sample": True, "clip_sample_range": 1.0, **_THRESHOLD}
_DPM: dict[str, object] = {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    **_THRESHOLD,
}
_EULER: dict[str, object] = {
    **_CURVES,
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
_UNIPC: dict[str, object] = {
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    **_THRESHOLD,
    "sigma_min": None,
    "sigma_max": None,
    "shift_terminal": None,
}
_DEIS: dict[str, object] = {
    "solver_order": 2,
    "algorithm_type": "deis",
    "solver_type": "logrho",
    "lower_order_final": True,
    **_THRESHOLD,
}
_SA: dict[str, object] = {
    "algorithm_type": "data_prediction",
    "lower_order_final": True,
    **_THRESHOLD,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
}
_CONSISTENCY = SchedulerClass(
    "lcm",
    {
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
        "set_alpha_to_one": True,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        **_THRESHOLD,
    },
    "leading",
    betas=(0.00085, 0.012),
    beta_schedule="scaled_linear",
    zero_snr=True,
)
_EDM: dict[str, object] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_DDIM = SchedulerClass("chain", {**_CLIP, "set_alpha_to_one": True}, "leading", zero_snr=True)
_DDPM = SchedulerClass("chain", {**_CLIP, "variance_type": "fixed_small"}, "leading", zero_snr=True)
_SD_BETAS = (0.00085, 0.012)
_TWO_CALLS = SchedulerClass("interpolated", _CURVES, betas=_SD_BETAS)

SCHEDULER_CLASSES: Mapping[str, SchedulerClass] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": SchedulerClass("chain", {"set_alpha_to_one": False, "skip_prk_steps": False}, "leading"),
    "EulerDiscreteScheduler": SchedulerClass("interpolated", _EULER, zero_snr=True),
    "EulerAncestralDiscreteScheduler": SchedulerClass("interpolated", zero_snr=True),
    "HeunDiscreteScheduler": SchedulerClass(
        "interpolated", {**_CURVES, "clip_sample": False, "clip_sample_range": 1.0}, betas=_SD_BETAS
    ),
    "KDPM2DiscreteScheduler": _TWO_CALLS,
    "KDPM2AncestralDiscreteScheduler": _TWO_CALLS,
    "DPMSolverSDEScheduler": _TWO_CALLS,
    "LMSDiscreteScheduler": SchedulerClass("interpolated", _CURVES),
    "DPMSolverMultistepScheduler": SchedulerClass(
        "solver", {**_DPM, **_CURVES, **_FLOW, "use_lu_lambdas": False}, zero_snr=True
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        "solver",
        {**{key: _DPM[key] for key in _DPM if key != "euler_at_final"}, **_CURVES, **_FLOW, "lower_order_final": False},
        spacing=None,
    ),
    "UniPCMultistepScheduler": SchedulerClass("solver", {**_UNIPC, **_CURVES, **_FLOW}, zero_snr=True),
    "DEISMultistepScheduler": SchedulerClass("solver", {**_DEIS, **_CURVES, **_FLOW}),
    "SASolverScheduler": SchedulerClass("solver", {**_SA, **_CURVES}),
    "LCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "EDMEulerScheduler": SchedulerClass("edm", _EDM, spacing=None),
    "EDMDPMSolverMultistepScheduler": SchedulerClass("edm", {**_DPM, **_EDM}, spacing=None),
    "FlowMatchEulerDiscreteScheduler": SchedulerClass(
        "flow",
        {
            **_CURVES,
            "shift": 1.0,
            **_DYNAMIC,
            "shift_terminal": None,
        },
        spacing=None,
    ),
    "FlowMatchHeunDiscreteScheduler": SchedulerClass("flow", {"shift": 1.0}, spacing=None),
}
"""Every class of diffusers 0.42 (2026) that samples the families gouache loads, in its defaults."""


def setting(config: SchedulerConfig, key: str) -> object:
    """A key's value: the file's, else the class's default; None for a key that the class doesn't take.

    Args:
        config: of a class in `SCHEDULER_CLASSES`.
        key: one of `SchedulerConfig`'s.
    """
    known = SCHEDULER_CLASSES[config.class_name]
    if key == "timestep_spacing":
        return "linspace" if known.spacing is None else config.timestep_spacing or known.spacing
    if key == "steps_offset":
        return 0 if known.spacing is None else config.steps_offset or 0
    if key not in known.takes:
        return None
    given: object = getattr(config, key)
    return known.takes[key] if given is None else given


def number(config: SchedulerConfig, key: str) -> float | None:
    """`setting` of a key that is a number; None if neither file nor class (diffusers 0.42, 2026) has one."""
    value = setting(config, key)
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """The sampler that does what a scheduler's `step` does.

    Attributes:
        name: ours.
        options: its own keywords.
        notes: where the two part.
    """

    name: str
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def sampler_of(config: SchedulerConfig) -> SamplerChoice:
    """Our sampler for a scheduler of diffusers 0.42 (2026), with the options that its file sets."""
    name = config.class_name
    if name in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return _dpm_multistep(config)
    if name == "DPMSolverSinglestepScheduler":
        return _dpm_singlestep(config)
    if name == "UniPCMultistepScheduler":
        kind = "unipc_bh1" if setting(config, "solver_type") == "bh1" else "unipc_bh2"
        return SamplerChoice(kind, _order_of(config), _unless(config, "predict_x0", expected=True))
    if name == "DEISMultistepScheduler":
        return SamplerChoice("deis", _order_of(config))
    if name.startswith("DDPM"):
        kind = str(setting(config, "variance_type"))
        fixed = kind in ("fixed_small", "fixed_large")
        why = () if fixed else (f"variance_type = {kind!r} is not used; the variance is fixed_small",)
        return SamplerChoice("ddpm", {"variance": kind if fixed else "fixed_small"}, why)
    if name == "PNDMScheduler" and setting(config, "skip_prk_steps") is False:
        return SamplerChoice("pndm_prk")
    try:
        return SamplerChoice(resolve(name)[0])
    except UnknownName:
        return SamplerChoice(NOT_OFFERED[name], notes=(f"{name} is not offered; the nearest sampler stands in",))


def _dpm_multistep(config: SchedulerConfig) -> SamplerChoice:
    order, algorithm = setting(config, "solver_order"), str(setting(config, "algorithm_type"))
    random, heun = algorithm.startswith("sde-"), setting(config, "solver_type") == "heun"
    notes: tuple[str, ...] = ()
    if algorithm in ("dpmsolver", "sde-dpmsolver"):
        notes = (f"algorithm_type = {algorithm!r} is not offered; {algorithm}++ stands in",)
    if order == 1:
        return SamplerChoice("ddpm" if random else "euler", notes=notes)
    silenced = {} if random else {"eta": 0.0}
    if order == 2:
        if heun:
            return SamplerChoice("dpmpp_2m_sde_heun", silenced, notes)
        return SamplerChoice("dpmpp_2m_sde" if random else "dpmpp_2m", notes=notes)
    if random or not heun or setting(config, "lower_order_final"):
        notes = (*notes, "solver_order = 3 is taken by DPM++ 3M SDE, whose first and last steps differ")
    return SamplerChoice(resolve("DPM++ 3M SDE")[0], silenced, notes)


def in_pairs(config: SchedulerConfig) -> bool:
    """Whether two of the class's levels are one step of ours: the single-step solver with noise (diffusers 0.42)."""
    random = setting(config, "algorithm_type") == "sde-dpmsolver++"
    return config.class_name == "DPMSolverSinglestepScheduler" and random


def _dpm_singlestep(config: SchedulerConfig) -> SamplerChoice:
    if in_pairs(config):
        why = "DPMSolverSinglestepScheduler's middles are moved to the geometric means of their steps"
        return SamplerChoice("dpmpp_sde", notes=(why,))
    return SamplerChoice("dpmpp_singlestep", {"order": int(number(config, "solver_order") or 2)})


def _order_of(config: SchedulerConfig) -> dict[str, bool | int | float | str]:
    order = int(number(config, "solver_order") or 2)
    return {"order": order, "lower_order_final": bool(setting(config, "lower_order_final"))}


def _unless(config: SchedulerConfig, key: str, *, expected: bool) -> tuple[str, ...]:
    given = setting(config, key)
    return () if given is None or given == expected else (f"{key} = {given} is not offered; {expected} stands in",)
