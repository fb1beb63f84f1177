"""Paints many prompts together, one network call a step for all: what an evaluation needs to be quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gouache.diffusion.rng import ImageNoise, ImageSeed
from gouache.errors import ConfigError
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.draft import draft, draw_of, draw_tokens, list_on_draft, parts_of
from gouache.pipeline.generate.guided import NetworkInputs, PromptedDenoiser, levels_of, run_sampler
from gouache.pipeline.generate.guiders import guidance_of
from gouache.pipeline.generate.passes import Walk
from gouache.pipeline.inputs.start import StartState
from gouache.pipeline.inputs.tensors import to_image
from gouache.pipeline.likelihood import encode_captions, prior_bits
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import EncodedPrompt, PromptPlan
from gouache.pipeline.remembered import as_drafted
from gouache.pipeline.request import Request
from gouache.training.stage import batched

PaintedPictures = NDArray[np.uint8]
BATCH = 32
"""Pictures in one network call."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the sampler to compare."""

    steps: int
    draft: bool
    best_of: int = 1


Paint = Callable[[Sequence[str], Sequence[int], Setting], PaintedPictures]
"""(prompts, seeds, setting) -> uint8 [N,S,S,4], straight alpha."""


def painter(pipeline: Pipeline, *, bf16: bool = False) -> Paint:
    """Paint with a pipeline, on a transparent ground.

    Picture k is what `gouache paint --determinism portable` makes of prompt k and seed k, up to rounding. A prompt that
    is longer than one chunk is cut.

    Args:
        pipeline: the model.
        bf16: compute in bfloat16, which on CPUs that know it is quicker, and less exact.
    """
    device = pipeline.bundle.device.type

    @torch.no_grad()
    def paint(prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> PaintedPictures:
        painted = []
        for part in batched(len(prompts), BATCH):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                latents = _latents(pipeline, [prompts[i] for i in part], [seeds[i] for i in part], setting)
                decoded = pipeline.bundle.vae.decode(latents.to(pipeline.bundle.dtype))
            painted += [np.array(to_image(picture.float()).convert("RGBA")) for picture in decoded]
        return np.stack(painted)

    return paint


def _latents(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> Tensor:
    """The latents of some pictures, painted together. [B,C,h,w]"""
    bundle = pipeline.bundle
    request = pipeline.resolve(Request(seed=0, num_inference_steps=setting.steps))
    factor = bundle.vae.config.downscale
    size = ((request.height or 0) // factor, (request.width or 0) // factor)
    text, empty = encode_captions(bundle, prompts), encode_captions(bundle, [""])
    noise = ImageNoise([ImageSeed(seed) for seed in seeds])
    on_draft = list_on_draft(request, bundle, StartState()) if setting.draft else None
    walk = on_draft or Walk(0)
    sigmas = walk.of(levels_of(request, bundle, walk.total).sigmas)
    x = noise.initial((bundle.vae.config.latent_channels, *size)).to(bundle.device) * float(sigmas[0])
    drafts = _drafts(bundle, text, empty, seeds, setting, size)
    if drafts is not None and setting.draft:
        drafts = _laid_out(bundle, request.replace({"best_of": setting.best_of}), prompts, empty, seeds, size, drafts)
    if on_draft is not None and drafts is not None:
        x = x + drafts
    beside = NetworkInputs(drafts)
    positive, negative = (PromptPlan(((1.0, ((setting.steps, one),)),)) for one in (text, empty))
    denoise = PromptedDenoiser(bundle, bundle.denoiser, positive, negative, guidance_of(request), beside)
    for step in run_sampler(request, bundle, denoise, x, sigmas, noise):
        x = step.x
    return x


def _laid_out(
    bundle: ModelBundle,
    request: Request,
    prompts: Sequence[str],
    empty: EncodedPrompt,
    seeds: Sequence[int],
    size: tuple[int, int],
    drafts: Tensor,
) -> Tensor:
    """The drafts, those of prompts that are read otherwise, or lay several things out, drawn as `paint` does."""

    def encode(words: str) -> EncodedPrompt:
        return encode_captions(bundle, [words])

    rows = []
    for row, prompt, seed in zip(drafts, prompts, seeds, strict=True):
        given = encode(prompt)
        drafted = as_drafted(request.replace({"prompt": prompt}), bundle, seed, given, encode)
        parts = parts_of(request, bundle, drafted.prompt, drafted.encode)
        if drafted.text is given and parts is None:
            rows.append(row)
        else:
            rows.append(draft(request, bundle, drafted.text, empty, ImageSeed(seed), size, None, parts).latents[0])
    return torch.stack(rows)


def _drafts(
    bundle: ModelBundle,
    text: EncodedPrompt,
    empty: EncodedPrompt,
    seeds: Sequence[int],
    setting: Setting,
    size: tuple[int, int],
) -> Tensor | None:
    """The prior's drafts [B,Cd,h,w]; of several candidates the likeliest under its prompt."""
    channels = bundle.unet.config.draft_channels
    if not channels:
        return None
    if not setting.draft:
        return torch.zeros(len(seeds), channels, *size, device=bundle.device)
    if bundle.quantizer is None:
        raise ConfigError(f"model {bundle.name!r}", given="no prior", expected="a model with a prior")
    draw = draw_of(None, bundle.defaults)
    candidates = [draw_tokens(bundle, text, empty, draw, seeds, k) for k in range(setting.best_of)]
    latents = torch.stack([bundle.quantizer.decode(one.tokens, one.residuals) for one in candidates])
    if setting.best_of == 1:
        return latents[0]
    bits = torch.stack([prior_bits(bundle, one.tokens, text).sum(1) for one in candidates])  # [best_of,B]
    return latents[bits.argmin(0).to(latents.device), torch.arange(len(seeds))]
