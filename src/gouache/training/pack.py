"""Combine the results of all stages into one model folder that the pipeline loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.data.captions import synonyms_of
from gouache.data.stickers import Stickers
from gouache.errors import ConfigError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults
from gouache.models.family import POCKET
from gouache.training.config import TrainConfig, stage_config
from gouache.training.inputs import RunInputs, last_result, stage_run
from gouache.training.stages.registry import STAGES
from gouache.training.state import tracked_average

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def pack(
    config: TrainConfig,
    run: Path,
    out: Path,
    *,
    dtype: str = "fp16",
    int8: tuple[str, ...] = (),
    name: str = POCKET.name,
    styles: tuple[str, ...] = (),
    synonyms: Path | None = None,
    licence: str = "",
    ema: float | None = None,
) -> Path:
    """Write the model that a training has produced.

    The prior and the quantizer are included if both stages have results and the U-Net takes a draft; the up-sampling
    decoder if its stage has a result. A config that only refines a model's decoder gives that model with the new one.

    Args:
        config: the training's; its table [defaults] is written too. A fine-tuned model keeps those it started with.
        run: its folder.
        out: the model's folder; must not be there yet.
        dtype: "fp16", "bf16" or "fp32".
        int8: parts whose matrices are stored in int8 with a scale a row, for example ("text_encoder", "prior").
        name: the model's name.
        styles: that requests may name.
        synonyms: folder of the data set, a built recipe, whose keywords say what else the things are called.
        licence: of the weights, as an SPDX identifier.
        ema: relative width of the denoiser's average, one of those tracked; none takes the config's.

    Raises:
        TrainingError: the config has no denoiser, or a stage has no result.
        InvalidInput: an unknown dtype, part or width, or `out` is there already.
    """
    if dtype not in DTYPES:
        raise InvalidInput("dtype", given=repr(dtype), expected=f"one of {', '.join(DTYPES)}")
    bundle = assemble_bundle(config, run, name, _defaults(config))
    if ema is not None:
        for stage in [stage for stage in STAGES.values() if stage.chooses_average]:
            stage_config(config, stage.name)
            bundle.networks()[stage.part].load_state_dict(tracked_average(stage_run(run, stage.name), ema))
    for part in bundle.networks().values():
        part.to(DTYPES[dtype])
    names = {} if synonyms is None else synonyms_of(Stickers.open(synonyms))
    model = replace(bundle_to_write(bundle), int8=int8, styles=styles, synonyms=names, licence=licence)
    return write_model(model, out, "gouache")


def assemble_bundle(config: TrainConfig, run: Path, name: str, defaults: GenerationDefaults) -> ModelBundle:
    """The model in memory, in fp32; errors as in `pack`."""
    inputs = RunInputs(config, Path(), run)
    tuned = {stage: base for stage in STAGES.values() if (base := stage.base_model(config)) is not None}
    parts: dict[str, Any] = {}
    if tuned:
        if len({base.resolve() for base in tuned.values()}) > 1:
            given = " and ".join(map(str, tuned.values()))
            raise ConfigError("start", given=given, expected="one model, which all stages train further")
        done = [stage for stage in tuned if last_result(run, stage.name).exists()]
        for stage in done or tuned:  # of a stage that has not begun, the start's part stays
            parts |= stage.model_parts(inputs, parts)
        start = load_bundle(next(iter(tuned.values())))
        return replace(start.with_tuned(parts), name=name, sha256="")
    # From the last stage back: what comes after says which earlier parts are used.
    for stage in reversed(STAGES.values()):
        parts |= stage.model_parts(inputs, parts)
    text, _ = inputs.text()
    return ModelBundle(family=POCKET.name, text=text, defaults=defaults, name=name, **parts)


def _defaults(config: TrainConfig) -> GenerationDefaults:
    return config.defaults.model_copy(update={"width": config.data.size, "height": config.data.size})
