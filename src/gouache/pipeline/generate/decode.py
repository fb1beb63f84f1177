"""From latents to a picture, with a second try in float32, and quick looks on the way."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.turns import awake
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.composition import layout_of
from gouache.pipeline.inputs.tensors import to_image
from gouache.pipeline.prompts.encode import styled_prompt
from gouache.pipeline.request import Request, Seamless

RETRIED = "the decoder overflowed in half precision and was run again in float32"


@torch.no_grad()
def decode(
    bundle: ModelBundle,
    latents: Tensor,
    *,
    tiled: bool = False,
    seamless: Seamless = "none",
    cut: bool = False,
    around: tuple[Tensor, Tensor] | None = None,
) -> tuple[Image.Image, list[str]]:
    """Decode one picture.

    Args:
        bundle: the model.
        latents: normalised. [1,C,h,w]
        tiled: decode in tiles, for less memory.
        seamless: which edges meet.
        cut: as in `tensors.to_image`.
        around: picture and mask, as `AutoencoderKL.decode` takes them; not in tiles, nor at another size.

    Returns:
        The picture, and notes on what had to be done beyond the plain way.

    Raises:
        InvalidInput: the latents hold NaN or infinity.
    """
    if not bool(torch.isfinite(latents).all()):
        raise InvalidInput(
            "latents",
            given="NaN or infinity",
            expected="finite numbers",
            cure="The network overflowed: load the model with dtype float32, or lower the guidance scale.",
        )
    if seamless == "none":
        tensor = _decoded(bundle.vae, latents, tiled=tiled, around=around)
    else:
        from gouache.pipeline.generate.tiling import circular

        with circular(bundle.vae.decoder, seamless):
            tensor = _decoded(bundle.vae, latents, tiled=tiled, around=around)
    if bool(torch.isfinite(tensor).all()):
        return to_image(tensor[0], cut=cut), []
    dtype = next(bundle.vae.parameters()).dtype
    try:
        tensor = _decoded(bundle.vae.float(), latents, tiled=tiled, around=around)
    finally:
        bundle.vae.to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInput(
            "decoder",
            given="NaN or infinity even in float32",
            expected="finite pixels",
            cure="The autoencoder's weights are damaged; compare their sha256.",
        )
    return to_image(tensor[0], cut=cut), [RETRIED]


def _decoded(
    vae: AutoencoderKL, latents: Tensor, *, tiled: bool, around: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    weight = next(awake(vae).parameters())
    given = latents.to(weight.device, weight.dtype)
    if tiled:
        return vae.decode_in_tiles(given)
    sizes = [side * vae.config.downscale for side in given.shape[2:]]
    if around is None or list(around[0].shape[2:]) != sizes:
        return vae.decode(given)
    picture, mask = (one.to(weight.device, weight.dtype).expand(len(given), -1, -1, -1) for one in around)
    return vae.decode(given, around=(picture, mask))


@torch.no_grad()
def preview(bundle: ModelBundle, denoised: Tensor) -> Image.Image:
    """A quick look at an estimate of the latents [1,C,h,w]: small, or decoded where the decoder is small."""
    colours_of_channels = bundle.traits.preview
    if colours_of_channels is None or denoised.shape[1] != len(colours_of_channels):
        return to_image(_decoded(bundle.vae, denoised, tiled=False)[0].nan_to_num())
    matrix = torch.tensor(colours_of_channels, dtype=torch.float32)  # [4,3]
    colours = torch.einsum("chw,cr->rhw", denoised[0].float().cpu(), matrix)  # [3,h,w]
    return to_image(colours.nan_to_num())


def ground_of(request: Request, bundle: ModelBundle, *, mixed: bool = False) -> str:
    """What a finished picture is laid on: the background, and white under a scenery that was drawn.

    A scenery is opaque, and the decoder not everywhere sure of that.

    Args:
        request: resolved.
        bundle: the model.
        mixed: whether it was painted between two prompts, which draws no scenery.
    """
    ground = request.background or "white"
    if ground != "transparent" or mixed or request.init_image is not None or request.regions:
        return ground
    layout = layout_of(request.prior, bundle, styled_prompt(request))
    return ground if layout is None or layout.scenery is None else "white"
