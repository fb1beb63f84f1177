"""What a model's files tell of a distillation to few steps (`models.few_steps`): a scheduler's file, the U-Net,
metadata, names. Headers only, and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gouache.checkpoints.diffusers.scheduler import Scheduler
from gouache.checkpoints.formats.header import Header
from gouache.models.configs import GenerationDefaults, NetworkConfig, UNetConfig
from gouache.models.family import family_named
from gouache.models.few_steps import TOLD_CONSISTENCY, TOLD_SCALE, FewSteps, few_steps_of

DEFAULTS_KEY = "gouache.defaults"
"""Single files that gouache wrote of few-step models carry the settings that such a model is painted with."""


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
