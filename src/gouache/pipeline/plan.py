"""Fills in what a request leaves open, from the model's own defaults, and refuses what the model can't do."""

from __future__ import annotations

import secrets

from gouache.diffusion.sampler_table import resolve, resolve_schedule, sampler_info
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pixels import nearest_size
from gouache.pipeline.request import Request

DRAWN_SEEDS = 2**32
"""Seeds that nobody asked for are drawn below this, so that every other tool can take them."""


def resolve_request(request: Request, bundle: ModelBundle) -> Request:
    """The request without gaps: the recipe of what will be painted.

    Raises:
        UnknownName: no such sampler or schedule.
        InvalidInput: something this model can't do.
    """
    defaults = bundle.defaults
    sampler, schedule = _sampler_and_schedule(request, bundle)
    width, height = nearest_size(request.width or defaults.width, request.height or defaults.height, factor_of(bundle))
    vary = request.subseed_strength > 0
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    return request.replace(
        model=request.model or bundle.name or bundle.family,
        seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        subseed=secrets.randbelow(DRAWN_SEEDS) if request.subseed is None and vary else request.subseed,
        width=width,
        height=height,
        background=_background(request, bundle),
        num_inference_steps=request.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=guidance,
        sampler=sampler,
        schedule=schedule,
    )


def factor_of(bundle: ModelBundle) -> int:
    """What width and height in pixels are multiples of: the autoencoder's factor times the U-Net's."""
    levels = len(bundle.unet.config.channels)
    return bundle.vae.config.downscale * (1 << (levels - 1))


def _sampler_and_schedule(request: Request, bundle: ModelBundle) -> tuple[str, str]:
    name, schedule = resolve(request.sampler or bundle.defaults.sampler)
    if request.schedule is not None:
        return name, resolve_schedule(request.schedule)
    if schedule is not None:
        return name, schedule
    if request.sampler is None:
        return name, resolve_schedule(bundle.defaults.schedule)
    return name, sampler_info(name).default_schedule


def _background(request: Request, bundle: ModelBundle) -> str | None:
    if bundle.vae.config.image_channels == 4:
        return request.background or "transparent"
    if request.background is not None:
        raise InvalidInput(
            "background", given=request.background, expected=f"nothing: {bundle.family} paints no transparency",
            cure="Leave it out, or describe the background in the prompt.",
        )  # fmt: skip
    return None


def size_notes(asked: Request, resolved: Request) -> list[str]:
    """What to tell when the asked size could not be kept."""
    wanted = (asked.width or resolved.width, asked.height or resolved.height)
    if wanted == (resolved.width, resolved.height):
        return []
    return [f"size {wanted[0]}x{wanted[1]} was rounded to {resolved.width}x{resolved.height}"]
