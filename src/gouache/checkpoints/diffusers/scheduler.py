"""What a folder's `scheduler_config.json` makes of a model: its noise schedule, its sampler, and the defaults of
requests that leave sampler, schedule, steps and guidance open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, TypeVar

from gouache.errors import ConfigError, IncompatibleCheckpoint
from gouache.models.configs import DenoiserConfig, NoiseScheduleConfig
from gouache.models.family import SD2
from gouache.models.scheduler_config import SCHEDULER_CLASSES, SchedulerConfig, number, sampler_of, setting

if TYPE_CHECKING:
    from gouache.diffusion.parameterization import Parameterization

Json = Mapping[str, object]

PREDICTIONS: dict[str, Parameterization] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
EDM_PREDICTIONS: dict[str, Parameterization] = {"epsilon": "edm", "v_prediction": "v"}
SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
CURVES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
REFUSED: dict[str, object] = {"stochastic_sampling": False, "invert_sigmas": False}
"""Keys that turn a flow into another process, with the values that don't."""
NOTED: dict[str, object] = {
    "lambda_min_clipped": None,
    "disable_corrector": None,
    "solver_p": None,
}
"""Keys that change steps in a way that gouache doesn't offer, with the values that don't."""
FEW_STEPS = 4
"""Steps of a consistency model and of SDXL-Lightning, as their cards recommend."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler's file, read.

    Attributes:
        config: its keys; None if it names no class.
        denoiser: what the network's output means, and its noise schedule.
        sampler, schedule: of requests that leave them open.
        steps, guidance_scale: the same; None = as every model of the family.
        notes: what was taken, and what of it gouache does otherwise.
    """

    config: SchedulerConfig | None
    denoiser: DenoiserConfig
    sampler: str = "ddim"
    schedule: str = "uniform"
    steps: int | None = None
    guidance_scale: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> str:
        """The defaults in one line; empty if the file names no class."""
        if self.config is None:
            return ""
        few = (
            ""
            if self.steps is None
            else f", {self.steps} step{'s' * (self.steps > 1)}, guidance {self.guidance_scale:g}"
        )
        return f"{self.config.class_name}: {self.sampler}, schedule {self.schedule}{few}"


def read_scheduler(values: Json, where: str, *, pipeline: str = "", family: str = "", names: str = "") -> Scheduler:
    """A folder's scheduler.

    Args:
        values: its file.
        where: for errors.
        pipeline: the class that the folder's `model_index.json` names. StableDiffusionPipeline corrects two keys of
            old files, whatever they say.
        family: of the model.
        names: what the model is called, where a number of steps may stand.

    Raises:
        IncompatibleCheckpoint: a class, a prediction type or a noise schedule that gouache doesn't know.
    """
    values = _corrected(values, pipeline)
    if values.get("_class_name") is None:
        return Scheduler(None, denoiser_from_json(values, where))
    config = _config(values, where)
    denoiser = denoiser_from_json(values, where)
    choice = sampler_of(config)
    few = _few_steps(config, denoiser, family, names)
    return Scheduler(
        config=config,
        denoiser=denoiser,
        sampler=choice.name,
        schedule=_schedule(config, denoiser),
        steps=None if few is None else few[0],
        guidance_scale=None if few is None else few[1],
        notes=(*choice.notes, *_notes(values, config, denoiser)),
    )


def _corrected(values: Json, pipeline: str) -> Json:
    """diffusers 0.42 sets these in SD 1.x's and 2.x's pipelines: files of 2022 lacked them."""
    known = SCHEDULER_CLASSES.get(str(values.get("_class_name")))
    if known is None or not pipeline.startswith("StableDiffusion") or "XL" in pipeline:
        return values
    more: dict[str, object] = {} if known.spacing is None else {"steps_offset": 1}
    return {**values, **more, **({"clip_sample": False} if "clip_sample" in known.takes else {})}


def _config(values: Json, where: str) -> SchedulerConfig:
    name = values["_class_name"]
    if name not in SCHEDULER_CLASSES:
        raise IncompatibleCheckpoint(
            where,
            given=f"_class_name = {name!r}",
            expected=f"one of {', '.join(SCHEDULER_CLASSES)}",
            cure="Save the folder with one of these schedulers, if its network was trained for them.",
        )
    for key, harmless in REFUSED.items():
        if values.get(key, harmless) not in (harmless, None):
            raise IncompatibleCheckpoint(
                where, given=f"{key} = {values[key]!r}", expected=f"{harmless!r}", cure="gouache has no such process."
            )
    curves = [key for key in CURVES if values.get(key)]
    if len(curves) > 1:
        raise IncompatibleCheckpoint(where, given=" and ".join(curves), expected="one of them at most")
    known = {key: value for key, value in values.items() if key in SchedulerConfig.model_fields and value is not None}
    try:
        return SchedulerConfig.from_dict({**known, "class_name": name}, where=where)
    except ConfigError as error:
        raise IncompatibleCheckpoint(error.where, given=error.given, expected=error.expected) from error


def denoiser_from_json(values: Json, where: str) -> DenoiserConfig:
    """What a folder's `scheduler_config.json` says of the network's output and the noise it was trained on.

    Raises:
        IncompatibleCheckpoint: a prediction type or a noise schedule that gouache doesn't know.
    """
    known = SCHEDULER_CLASSES.get(str(values.get("_class_name")))
    if known is not None and known.kind == "edm":
        return _edm(values, where)
    if known is not None and (known.kind == "flow" or (values.get("use_flow_sigmas") and known.kind == "solver")):
        return _flow(values, where, solver=known.kind == "solver")
    prediction = _choice(values, "prediction_type", "epsilon", PREDICTIONS, where)
    if values.get("timestep_type") == "continuous" and prediction == "v":
        return _continuous(values, where)
    curve = _choice(values, "beta_schedule", "linear" if known is None else known.beta_schedule, SCHEDULES, where)
    start, end = (None, None) if known is None else known.betas
    betas: dict[str, object] = {}
    if curve != "cosine":
        betas = {"beta_start": values.get("beta_start", start), "beta_end": values.get("beta_end", end)}
    trained = values.get("trained_betas")
    if trained is not None:
        curve, betas = "table", {"alphas_cumprod": _cumulated(trained, where)}
    schedule = {
        "name": curve,
        "num_timesteps": len(trained) if isinstance(trained, list) else values.get("num_train_timesteps", 1000),
        "zero_terminal_snr": values.get("rescale_betas_zero_snr", False),
        **{key: value for key, value in betas.items() if value is not None},
    }
    return DenoiserConfig(parameterization=prediction, schedule=NoiseScheduleConfig.from_dict(schedule, where=where))


Known = TypeVar("Known", bound=str)


def _choice(values: Json, key: str, default: str, known: Mapping[str, Known], where: str) -> Known:
    given = values.get(key)
    given = default if given is None else given
    if not isinstance(given, str) or given not in known:
        raise IncompatibleCheckpoint(
            where,
            given=f"{key} = {given!r}",
            expected=f"one of {', '.join(map(repr, known))}",
            cure="gouache doesn't know networks with this option.",
        )
    return known[given]


def _edm(values: Json, where: str) -> DenoiserConfig:
    prediction = _choice(values, "prediction_type", "epsilon", EDM_PREDICTIONS, where)
    config = _config(values, where)
    schedule = {
        "name": "edm",
        "num_timesteps": values.get("num_train_timesteps", 1000),
        **{key: number(config, key) for key in ("sigma_min", "sigma_max", "sigma_data")},
    }
    return DenoiserConfig(parameterization=prediction, schedule=NoiseScheduleConfig.from_dict(schedule, where=where))


def _continuous(values: Json, where: str) -> DenoiserConfig:
    """EulerDiscreteScheduler with a network that is told log(sigma) / 4, as EDM's with sigma_data = 1."""
    ends = [values.get(key) for key in ("sigma_min", "sigma_max")]
    if None in ends or not any(values.get(key) for key in CURVES):
        raise IncompatibleCheckpoint(
            where,
            given="timestep_type = 'continuous' on the levels of a table",
            expected=f"sigma_min, sigma_max and one of {', '.join(CURVES)}",
        )
    schedule = {"name": "edm", "sigma_min": ends[0], "sigma_max": ends[1], "sigma_data": 1.0}
    return DenoiserConfig(parameterization="v", schedule=NoiseScheduleConfig.from_dict(schedule, where=where))


def _flow(values: Json, where: str, *, solver: bool) -> DenoiserConfig:
    if solver:
        _choice(values, "prediction_type", "epsilon", {"flow_prediction": "flow"}, where)
    shift = values.get("flow_shift" if solver else "shift")
    schedule = {
        "name": "flow",
        "num_timesteps": values.get("num_train_timesteps", 1000),
        "shift": 1.0 if shift is None else shift,
    }
    return DenoiserConfig(parameterization="flow", schedule=NoiseScheduleConfig.from_dict(schedule, where=where))


def _cumulated(betas: object, where: str) -> tuple[float, ...]:
    """Products of 1 - beta, from the first on."""
    if not isinstance(betas, list) or not all(isinstance(b, int | float) and 0 < b < 1 for b in betas):
        raise IncompatibleCheckpoint(where, given="trained_betas that are none", expected="numbers between 0 and 1")
    return tuple(accumulate((1.0 - beta for beta in betas), mul))


def _schedule(config: SchedulerConfig, denoiser: DenoiserConfig) -> str:
    """The plain name of a scheduler's list where one is exactly that list, start included; else ``"model"``."""
    known = SCHEDULER_CLASSES[config.class_name]
    plain = all(
        setting(config, key) in (None, usual)
        for key, usual in {
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "clip_sample": False,
        }.items()
    )
    if known.kind != "interpolated" or not plain or denoiser.schedule.name == "edm":
        return "model"
    curve = next((name for key, name in CURVES.items() if setting(config, key)), None)
    spacing = setting(config, "timestep_spacing")
    rounded = config.class_name.startswith("KDPM2") and curve == "karras"
    if curve is not None:
        return curve if spacing == "linspace" and not rounded else "model"
    return "trailing" if spacing == "trailing" else "model"


def _few_steps(config: SchedulerConfig, denoiser: DenoiserConfig, family: str, names: str) -> tuple[int, float] | None:
    """Steps and guidance of a model that was distilled to few steps without guidance; None for any other.

    Consistency models have schedulers of their own. SDXL-Turbo, SD-Turbo and SDXL-Lightning (2023, 2024) are published
    with Euler's over "trailing" levels for eps networks, which no model that wants guidance is: those with "trailing"
    levels predict v with zero terminal SNR (Lin et al. 2023).
    """
    counted = re.search(r"(\d+)[-_ ]?steps?\b", names.lower())
    if SCHEDULER_CLASSES[config.class_name].kind == "lcm":
        return (int(counted[1]) if counted else FEW_STEPS), 1.0
    euler = config.class_name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    plain = denoiser.parameterization == "eps" and not denoiser.schedule.zero_terminal_snr
    if not euler or not plain or _schedule(config, denoiser) != "trailing":
        return None
    turbo = config.class_name == "EulerAncestralDiscreteScheduler" or family == SD2.name
    return (int(counted[1]) if counted else 1 if turbo else FEW_STEPS), 1.0


def _notes(values: Json, config: SchedulerConfig, denoiser: DenoiserConfig) -> tuple[str, ...]:
    known = SCHEDULER_CLASSES[config.class_name]
    notes = []
    if config.class_name == "PNDMScheduler" and denoiser.parameterization != "eps":
        notes.append(f"PNDMScheduler combines {denoiser.parameterization} of several steps; plms combines noise")
    cut = setting(config, "clip_sample") or setting(config, "thresholding")
    if cut and known.kind == "chain" and setting(config, "set_alpha_to_one") is False and not config.steps_offset:
        notes.append("the last step of set_alpha_to_one = False, which stays at its level, is left out")
    for key, harmless in NOTED.items():
        given = setting(config, key) if key in known.takes else values.get(key)
        if given not in (harmless, None, [], "-inf", float("-inf")):
            notes.append(f"{key} = {given!r} of the scheduler is not applied")
    return tuple(notes)
