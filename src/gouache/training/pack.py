"""Put the results of all stages together as one model folder that the pipeline loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, UNetConfig, UpscalerConfig
from gouache.models.prior import Prior, PriorConfig
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.training.build import (
    fill,
    load_quantizer,
    load_vae,
    result_of,
    run_text,
    stage_config,
    stage_run,
)
from gouache.training.config import TrainConfig
from gouache.training.state import tracked_average

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def pack(
    config: TrainConfig,
    run: Path,
    out: Path,
    *,
    dtype: str = "fp16",
    int8: tuple[str, ...] = (),
    name: str = "pocket",
    styles: tuple[str, ...] = (),
    licence: str = "",
    ema: float | None = None,
) -> Path:
    """Write the model that a training has come to.

    The prior and the quantizer go along if both stages have results and the U-Net takes a draft; the up-sampling
    decoder if its stage has a result. A config that only refines a model's decoder gives that model with its new one.

    Args:
        config: the training's; its table [defaults] goes along. A fine-tuned model keeps those it started with.
        run: its folder.
        out: the model's folder; must not be there yet.
        dtype: "fp16", "bf16" or "fp32".
        int8: parts whose matrices are stored in int8 with a scale a row, for example ("text_encoder", "prior").
        name: the model's name.
        styles: that requests may name.
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
        stage_config(config, "denoiser")
        bundle.unet.load_state_dict(tracked_average(stage_run(run, "denoiser"), ema))
    for part in bundle.networks().values():
        part.to(DTYPES[dtype])
    model = replace(bundle_to_write(bundle), int8=int8, styles=styles, licence=licence)
    return write_model(model, out, "gouache")


def assemble_bundle(config: TrainConfig, run: Path, name: str, defaults: GenerationDefaults) -> ModelBundle:
    """The model in memory, in fp32; errors as in `pack`."""
    if config.denoiser is None and config.vae is not None and config.vae.start is not None:
        refined = load_vae(result_of(run, "vae"))
        return replace(load_bundle(config.vae.start), vae=refined, name=name, sha256="")
    stage_config(config, "denoiser")
    unet, denoiser = _load_unet(result_of(run, "denoiser"))
    if config.denoiser is not None and config.denoiser.start is not None:
        return replace(load_bundle(config.denoiser.start), unet=unet, name=name, sha256="")
    text, _ = run_text(config.text, run)
    drafts = unet.config.draft_channels > 0 and (stage_run(run, "prior") / "last.safetensors").exists()
    return ModelBundle(
        family="pocket",
        unet=unet,
        vae=load_vae(result_of(run, "vae")),
        text=text,
        denoiser_config=denoiser,
        defaults=defaults,
        prior=_load_prior(best_prior(run)) if drafts else None,
        quantizer=load_quantizer(result_of(run, "tokens")) if drafts else None,
        upscaler=_load_upscaler(run),
        name=name,
    )


def best_prior(run: Path) -> Path:
    """The prior with the best held-out likelihood, which is not the last one: it goes on to memorise."""
    best = stage_run(run, "prior") / "best.safetensors"
    return best if best.exists() else result_of(run, "prior")


def _defaults(config: TrainConfig) -> GenerationDefaults:
    return config.defaults.model_copy(update={"width": config.data.size, "height": config.data.size})


def _load_unet(path: Path) -> tuple[UNet, DenoiserConfig]:
    metadata = read_header(path).metadata
    unet = fill(UNet(UNetConfig.from_json(metadata["config"], where=str(path))), path)
    return unet, DenoiserConfig.from_json(metadata["denoiser"], where=str(path))


def _load_upscaler(run: Path) -> Upscaler | None:
    path = stage_run(run, "upscaler") / "last.safetensors"
    if not path.exists():
        return None
    return fill(Upscaler(UpscalerConfig.from_json(read_header(path).metadata["config"], where=str(path))), path)


def _load_prior(path: Path) -> Prior:
    return fill(Prior(PriorConfig.from_json(read_header(path).metadata["config"], where=str(path))), path)
