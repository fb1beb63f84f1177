"""Making pictures and latents larger: interpolation, Lanczos, and ESRGAN weights from a file."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.decoding import decode
from gouache.pipeline.prepare import encode
from gouache.pipeline.request import MAX_PIXELS

LATENT = {"latent": "bilinear", "latent-bicubic": "bicubic", "latent-nearest": "nearest"}
LANCZOS = "lanczos"


def enlarge_latents(
    bundle: ModelBundle, latents: Tensor, size: tuple[int, int], upscaler: str, *, tiled: bool = False
) -> Tensor:
    """Latents at another size: interpolated, or decoded, enlarged as a picture and encoded again.

    Args:
        bundle: the model.
        latents: [B,C,h,w].
        size: wanted height and width in latent pixels.
        upscaler: latent, latent-bicubic, latent-nearest, lanczos, or the path of an ESRGAN file.
        tiled: decode and encode in tiles.
    """
    if upscaler in LATENT:
        mode = LATENT[upscaler]
        corners = None if mode == "nearest" else False
        return F.interpolate(latents, size=size, mode=mode, align_corners=corners)
    factor = bundle.vae.config.downscale
    rows = []
    for row in latents:
        picture, _ = decode(bundle, row[None], tiled=tiled)
        larger = _upscaled(picture, size[1] * factor / picture.width, upscaler)
        exact = larger.resize((size[1] * factor, size[0] * factor), Image.Resampling.LANCZOS)
        rows.append(encode(bundle, exact, tiled=tiled))
    return torch.cat(rows).to(latents)


def enlarge_picture(picture: Image.Image, factor: float, upscaler: str = LANCZOS) -> Image.Image:
    """A picture `factor` times as large on each side.

    Args:
        picture: mode RGB or RGBA; alpha is always enlarged by Lanczos.
        factor: above 0.
        upscaler: lanczos, or the path of an ESRGAN file.

    Raises:
        InvalidInput: the result would have too many pixels, or the upscaler is no file.
    """
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if size[0] * size[1] > MAX_PIXELS:
        raise InvalidInput(
            "upscale", given=f"{size[0]}x{size[1]} pixels", expected=f"at most {MAX_PIXELS} pixels",
            cure="Choose a smaller factor.",
        )  # fmt: skip
    larger = _upscaled(picture, factor, upscaler)
    return larger if larger.size == size else larger.resize(size, Image.Resampling.LANCZOS)


def _upscaled(picture: Image.Image, factor: float, upscaler: str) -> Image.Image:
    """At least `factor` times as large, by a network as often as it takes; Lanczos comes at the end by the caller."""
    if upscaler == LANCZOS:
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    from gouache.pipeline.upscalers import load_upscaler

    network = load_upscaler(Path(upscaler))
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    larger, wanted = picture.convert("RGB"), picture.width * factor
    while larger.width < wanted:
        larger = network(larger)
    if alpha is not None:
        larger.putalpha(alpha.resize(larger.size, Image.Resampling.LANCZOS))
    return larger
