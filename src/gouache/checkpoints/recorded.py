"""What single files say of how their network is used: its prediction, its distillation, the settings that it is painted
with, in metadata or by tensors that only mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gouache.checkpoints.formats.header import Header
from gouache.models.configs import GenerationDefaults, NetworkConfig, UNetConfig
from gouache.models.family import family_named
from gouache.models.few_steps import TOLD_CONSISTENCY, FewSteps, few_steps_of

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


def few_steps_in(header: Header, family: str, unet: NetworkConfig) -> FewSteps | None:
    """The distillation that a U-Net, its file's metadata or its file's name tell of."""
    if DEFAULTS_KEY in header.metadata:
        return few_steps_recorded(recorded_defaults(header))
    if isinstance(unet, UNetConfig) and unet.guidance_width:
        return TOLD_CONSISTENCY
    return few_steps_of({header.path.stem: "the file's name"}, header.metadata, family=family)


def recorded_defaults(header: Header) -> GenerationDefaults:
    """The settings that a single file of gouache's carries.

    Raises:
        ConfigError: they are none.
    """
    return GenerationDefaults.from_json(header.metadata[DEFAULTS_KEY], where=f"{header.path} metadata {DEFAULTS_KEY}")


def few_steps_recorded(defaults: GenerationDefaults) -> FewSteps:
    """The same in short."""
    return FewSteps(
        method="a few-step model",
        sampler=defaults.sampler,
        schedule=defaults.schedule,
        steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        source="metadata",
        told=f"its metadata ({DEFAULTS_KEY})",
    )


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
