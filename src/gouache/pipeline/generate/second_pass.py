"""From the first pass of a picture to the second: latents at a larger size, and where the second walk starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.a1111_procedure import follows, latent_sizes, middle_of
from gouache.pipeline.generate.enlarge import enlarge_picture, find_upscaler
from gouache.pipeline.inputs.start import StartState, encode
from gouache.pipeline.request import Hires, Request
from gouache.pipeline.resolve import factor_of

LATENT = {
    "latent": ("bilinear", False),
    "latent-antialiased": ("bilinear", True),
    "latent-bicubic": ("bicubic", False),
    "latent-bicubic-antialiased": ("bicubic", True),
    "latent-nearest": ("nearest", False),
    "latent-nearest-exact": ("nearest-exact", False),
}
"""Upscaler of latents -> PyTorch's mode of interpolation, and whether it is antialiased."""
PictureOf = Callable[[Tensor], tuple[Image.Image, list[str]]]
"""Decodes the latents of one picture [1,C,h,w]; gives notes on what had to be done beyond the plain way too."""


def enlarged_start(
    bundle: ModelBundle,
    requests: tuple[Request, Request],
    latents: Tensor,
    drafted: Tensor | None,
    grey: Tensor | None,
    picture_of: PictureOf,
    *,
    notes: list[list[str]] | None = None,
) -> StartState:
    """Where the second pass starts: at what the first one painted, enlarged, and cut where its shape is another.

    Args:
        bundle: the model.
        requests: the resolved ones of both passes.
        latents: what the first pass painted. [B,C,h,w]
        drafted: the drafts of a model with a prior. [B,Cd,h,w]
        grey: a mask that limits this pass too. [1,1,h,w]
        picture_of: decodes.
        notes: one list for each row, which gets what had to be done beyond the plain way.
    """
    second = requests[1]
    options = requests[0].hires or Hires()
    whole, size = latent_sizes(*requests, factor_of(bundle))
    tiled = second.vae_tiling
    larger = enlarge_latents(bundle, latents, whole, options.upscaler, picture_of, tiled=tiled, notes=notes)
    if drafted is not None:
        drafted = middle_of(F.interpolate(drafted, size=whole, mode="bilinear", align_corners=False), size)
    mask = None if grey is None else middle_of(F.interpolate(grey, size=whole, mode="nearest"), size)
    return StartState(latents=middle_of(larger, size), mask=mask, added=follows(second), draft=drafted)


def enlarge_latents(
    bundle: ModelBundle,
    latents: Tensor,
    size: tuple[int, int],
    upscaler: str,
    picture_of: PictureOf,
    *,
    tiled: bool = False,
    notes: list[list[str]] | None = None,
) -> Tensor:
    """Latents at another size: interpolated, or decoded, enlarged as a picture and encoded again.

    Args:
        bundle: the model.
        latents: [B,C,h,w].
        size: wanted height and width in latent pixels.
        upscaler: a key of `LATENT`, or as in `find_upscaler`.
        picture_of: decodes.
        tiled: encode in tiles.
        notes: one list for each row, which gets what had to be done beyond the plain way.
    """
    if upscaler in LATENT:
        mode, antialias = LATENT[upscaler]
        corners = None if mode.startswith("nearest") else False
        return F.interpolate(latents, size=size, mode=mode, align_corners=corners, antialias=antialias)
    factor, network = bundle.vae.config.downscale, find_upscaler(upscaler, bundle)
    rows = []
    for row, noted in zip(latents, notes or [[] for _ in latents], strict=True):
        picture, decoding_notes = picture_of(row[None])
        noted += [note for note in decoding_notes if note not in noted]
        larger = enlarge_picture(picture, size[1] * factor / picture.width, network)
        exact = larger.resize((size[1] * factor, size[0] * factor), Image.Resampling.LANCZOS)
        rows.append(encode(bundle, exact, tiled=tiled, notes=noted))
    return torch.cat(rows).to(latents)
