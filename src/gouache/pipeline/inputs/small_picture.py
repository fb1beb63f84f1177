"""The small picture that Stable Diffusion's x4 upscaler enlarges: it stands beside the latents, with noise on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.rng import ImageSeed, generator_for
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.images import fit
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.request import Request


def small_picture(picture: Image.Image, request: Request, bundle: ModelBundle) -> Tensor:
    """A picture at the latents' size, which is a quarter of the request's. [1,3,h,w] in [-1, 1]"""
    factor = bundle.vae.config.downscale
    size = ((request.width or 0) // factor, (request.height or 0) // factor)
    return to_tensor(fit(picture, *size, request.resize_mode), bundle.vae.config.image_channels)[None]


def with_noise(
    draft: Tensor | None, request: Request, bundle: ModelBundle, seeds: Sequence[ImageSeed]
) -> Tensor | None:
    """The channels beside the latents, with noise on a small picture (Ho et al. 2022, arXiv:2106.15282, section 4.2).

    Args:
        draft: as in the start state. [1,Cd,h,w]
        request: with the level, which is a timestep of the model's own schedule.
        bundle: the model.
        seeds: of the pictures.

    Returns:
        of a model that enlarges alpha x + std noise, with noise of each picture's own, [B,3,h,w]; else the same.
    """
    if draft is None or not bundle.noise_levels:
        return draft
    level = float(request.noise_level or 0)
    alpha, std = float(bundle.schedule.alpha(level)), float(bundle.schedule.std(level))
    noise = [torch.randn(draft.shape, generator=generator_for(seed.seed, "small picture")) for seed in seeds]
    return alpha * draft + std * torch.cat(noise).to(draft)
