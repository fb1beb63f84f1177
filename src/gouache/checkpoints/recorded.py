"""What files say of how their network is used: its prediction, its distillation to few steps, the settings that it is
painted with; in metadata, by tensors that only mark, by a scheduler's file or by names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gouache.checkpoints.diffusers.scheduler import Scheduler
from gouache.checkpoints.formats.header import Header
from gouache.models.configs import GenerationDefaults, NetworkConfig, UNetConfig
from gouache.models.family import family_named
from gouache.models.few_steps import TOLD_CONSISTENCY, TOLD_SCALE, FewSteps, few_steps_of

if TYPE_CHECKING:  # headers are read without torch
    from gouache.diffusion.parameterization import Parameterization

DEFAULTS_KEY = "gouache.defaults"
"""Single files that gouache wrote of few-step models carry the settings that such a model is painted with."""
EDM_SAMPLING = {
    "edm_mean": "EDMDPMSolverMultistepScheduler: dpmpp_2m, schedule model",
    "edm_vpred.sigma_max": "EDMEulerScheduler: euler, schedule model",
}
"""Mark of an EDM network -> the scheduler that its levels are those of, as folders' `Scheduler.taken` says it."""
RECORDED_PREDICTIONS: Mapping[str, Parameterization] = {
    "epsilon": "eps",
    "v": "v",
    "v_prediction": "v",
    "sample": "x0",
    "x0": "x0",
}
"""What the metadata of single files call a network's output."""


def recorded_defaults(header: Header) -> GenerationDefaults | None:
    """The settings that a single file of gouache's carries; None if it carries none.

    Raises:
        ConfigError: they can't be read.
    """
    text = header.metadata.get(DEFAULTS_KEY)
    where = f"{header.path} metadata {DEFAULTS_KEY}"
    return None if text is None else GenerationDefaults.from_json(text, where=where)


def defaults_to_record(defaults: GenerationDefaults, family: str) -> dict[str, str]:
    """Metadata of a single file: the settings of a model whose number of steps isn't its family's, else nothing."""
    usual = family_named(family).steps or GenerationDefaults().num_inference_steps
    return {} if defaults.num_inference_steps == usual else {DEFAULTS_KEY: defaults.to_json()}


def few_steps_of_file(header: Header, family: str, unet: NetworkConfig) -> FewSteps | None:
    """The distillation that a file's metadata, its U-Net or its name tell of."""
    recorded = recorded_defaults(header)
    if recorded is not None:
        return FewSteps(
            method="a few-step model",
            sampler=recorded.sampler,
            schedule=recorded.schedule,
            steps=recorded.num_inference_steps,
            guidance_scale=recorded.guidance_scale,
            source="metadata",
            told=f"its metadata ({DEFAULTS_KEY})",
        )
    if isinstance(unet, UNetConfig) and unet.guidance_width:
        return TOLD_CONSISTENCY
    return few_steps_of({header.path.stem: "the file's name"}, header.metadata, family=family)


def few_steps_of_folder(
    folder: Path, index: Mapping[str, object], scheduler: Scheduler | None, unet: NetworkConfig | None, family: str
) -> FewSteps | None:
    """The distillation that a folder's scheduler, its U-Net or its names tell of.

    Args:
        folder: of diffusers.
        index: its `model_index.json`.
        scheduler: its scheduler's file, if it has one.
        unet: the network that denoises, if it has one.
        family: of the model.
    """
    if unet is None:
        return None
    told_guidance = isinstance(unet, UNetConfig) and unet.guidance_width > 0
    if scheduler is not None and scheduler.config is not None and scheduler.steps is not None:
        return FewSteps(
            method="a few-step model",
            sampler=scheduler.sampler,
            schedule=scheduler.schedule,
            steps=scheduler.steps,
            guidance_scale=TOLD_SCALE if told_guidance else 1.0,
            source="scheduler",
            told=f"its {scheduler.config.class_name}",
        )
    if told_guidance:
        return TOLD_CONSISTENCY if scheduler is None or scheduler.config is None else None
    # In the hub's cache the folder of a revision has the hash as its name, its repository stands two above.
    places = [str(folder), *(one for one in (index.get("_name_or_path"),) if isinstance(one, str))]
    hub = [re.search(r"models--[^/\\]+", place) for place in places]
    names = [*(Path(place).name for place in places), *(place[0] for place in hub if place is not None)]
    return few_steps_of(dict.fromkeys(names, "the folder's name"), {}, family=family)


def prediction_of(header: Header, family: str, unet: NetworkConfig | None) -> tuple[Parameterization | None, str]:
    """What the network's output means, and how that is known. None: SD 2.x, where only the weights tell."""
    if "edm_mean" in header.tensors:
        return "edm", "a mark among the tensors"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        recorded = RECORDED_PREDICTIONS.get(header.metadata.get(key, ""))
        if recorded:
            return recorded, f"metadata {key}"
    if "v_pred" in header.tensors or "edm_vpred.sigma_max" in header.tensors:
        return "v", "a mark among the tensors"
    if unet is None:
        return None, ""
    rule = family_named(family).prediction
    if rule is not None:
        return rule, f"the family's rule for {family}"
    if isinstance(unet, UNetConfig) and unet.noise_levels:
        return "v", "the variant's rule"
    if unet.draft_channels or unet.pooled_width:
        return ("v", "the family's rule for SD 2.x unCLIP") if unet.pooled_width else ("eps", "the variant's rule")
    # Training steps of the two published files about which no reader disagrees.
    steps = {"875000": "eps", "110000": "v"}.get(header.metadata.get("global_step", ""))
    if steps:
        return ("v" if steps == "v" else "eps"), "the file's global_step"
    return None, "only the weights tell"
