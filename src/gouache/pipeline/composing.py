"""Drafts a sentence of several things: each by its own words, laid where the sentence says (`pipeline/layout.py`).

Every thing fills a draft of its own, which the prior does best. The drafts are decoded, cut out along their
transparency, scaled down and laid on one picture; its latents are the draft that diffusion paints from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gouache.models.bundle import ModelBundle
from gouache.pipeline.layout import Layout, Place
from gouache.pipeline.pixels import to_image, to_tensor

__all__ = ["DrawnThing", "can_compose", "compose"]

SEEN = 128
"""Alpha from which on a pixel belongs to the thing: what is fainter is the decoder's haze."""


@dataclass(frozen=True, slots=True)
class DrawnThing:
    """What the prior drew for one text.

    Attributes:
        tokens: [1,S]
        score: bits of these tokens under their words; None if there was nothing to choose from.
    """

    tokens: Tensor
    score: float | None


def can_compose(bundle: ModelBundle) -> bool:
    """Whether a model drafts pictures that can be cut out: it has a prior and paints transparency."""
    return bundle.prior is not None and bundle.vae.config.image_channels == 4


@torch.no_grad()
def compose(
    bundle: ModelBundle, layout: Layout, draw: Callable[[str | None, str], DrawnThing]
) -> tuple[Tensor, float | None]:
    """Draft every thing of a layout and lay the drafts together.

    Args:
        bundle: a model that `can_compose`.
        layout: what to draft, and where it goes.
        draw: draws the tokens of one text; None stands for the whole prompt. The second argument names the stream of
            random numbers, so that things differ.

    Returns:
        Normalised latents [1,C,h,w] of the quantizer's size, and the bits of all things together.
    """
    drawn = [draw(thing.words, f"prior/{number}") for number, thing in enumerate(layout.things)]
    things = [_picture(bundle, one.tokens) for one in drawn]
    whole = _picture(bundle, draw(None, "prior").tokens) if layout.ground else None
    canvas = Image.new("RGBA", things[0].size, (0, 0, 0, 0) if whole is None else _ground(whole))
    for thing, picture in zip(layout.things, things, strict=True):
        cut = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a >= SEEN)).getbbox())
        for place in thing.places:
            _lay(canvas, cut, place)
    weight = next(bundle.vae.parameters())
    image = to_tensor(canvas, bundle.vae.config.image_channels)[None].to(weight.device, weight.dtype)
    scores = [one.score for one in drawn if one.score is not None]
    return bundle.vae.normalise(bundle.vae.encode(image).mode()).float(), sum(scores) if scores else None


def _picture(bundle: ModelBundle, tokens: Tensor) -> Image.Image:
    quantizer = bundle.quantizer
    assert quantizer is not None, "a model with a prior has a quantizer"
    latents = quantizer.decode(tokens).to(next(bundle.vae.parameters()).dtype)
    return to_image(bundle.vae.decode(latents)[0].float()).convert("RGBA")


def _ground(picture: Image.Image) -> tuple[int, int, int, int]:
    """The colour of a picture's rim, per channel the median; transparent where most of the rim is."""
    pixels = np.asarray(picture)
    rim = np.concatenate([pixels[:2].reshape(-1, 4), pixels[-2:].reshape(-1, 4), pixels[:, 0], pixels[:, -1]])
    red, green, blue, alpha = (int(value) for value in np.median(rim, axis=0))
    return red, green, blue, 255 if alpha >= SEEN else 0


def _lay(canvas: Image.Image, picture: Image.Image, place: Place) -> None:
    """Lay a cut-out over the canvas; where it would stand out, it is moved in."""
    width, height = canvas.size
    scale = place.side * max(width, height) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # "RGBa" is multiplied by alpha, so that no fringe of the transparent colour bleeds in.
    small = picture.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    left = min(max(round(place.x * width - size[0] / 2), 0), width - size[0])
    top = min(max(round(place.y * height - size[1] / 2), 0), height - size[1])
    canvas.alpha_composite(small, (left, top))
