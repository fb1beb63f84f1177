"""Things that the prior drafted one by one, laid together on one picture: the draft that diffusion paints from.

Every thing fills a draft of its own, which the prior does best. The drafts are decoded, turned to their colours, cut
out along their transparency, scaled down and laid where the sentence says, on a ground or a scenery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.colours import tinted
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.start import encode
from gouache.pipeline.inputs.tensors import to_image
from gouache.pipeline.poses import Pose
from gouache.pipeline.prompts.layout import Layout, Place, read_layout
from gouache.pipeline.request import Prior
from gouache.scenery.kinds import Scenery
from gouache.scenery.stage import drawn, settled, shaded

SEEN = 128
"""Alpha from which on a pixel belongs to the thing: what is fainter is the decoder's haze."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the prior drew for some texts.

    Attributes:
        tokens: [B,S]
        residuals: codes of what these tokens leave of a picture that they were taken from, 0 where they are the prior's
            own; None in a model without. [B,h*w]
        score: bits of the tokens of one picture under its words; None if there was nothing to choose from.
        pose: how the picture that they stand for is shown; None as it is.
    """

    tokens: Tensor
    residuals: Tensor | None = None
    score: float | None = None
    pose: Pose | None = None


def can_compose(bundle: ModelBundle) -> bool:
    """Whether a model drafts pictures that can be cut out: it has a prior and paints transparency."""
    return bundle.prior is not None and bundle.vae.config.image_channels == 4


def layout_of(prior: Prior | None, bundle: ModelBundle, prompt: str) -> Layout | None:
    """What a prompt lays out, with its style, as a request's options of the prior let it; None drafts it as a whole."""
    if prior is None or not (prior.enabled and prior.layout) or not can_compose(bundle):
        return None
    return read_layout(prompt, plain=prior.plain, scenery=prior.scenery or "draw")


@torch.no_grad()
def posed(bundle: ModelBundle, drawn: Drawn) -> Tensor:
    """Normalised latents [1,C,h,w] of one drawn picture in its pose."""
    assert bundle.quantizer is not None, "a model with a prior has a quantizer"
    if drawn.pose is None:
        return bundle.quantizer.decode(drawn.tokens, drawn.residuals)
    return encode(bundle, _picture(bundle, drawn))


@torch.no_grad()
def compose(
    bundle: ModelBundle,
    layout: Layout,
    draw: Callable[[str | None, str], Drawn],
    bare: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, float | None]:
    """Draft every thing of a layout and lay the drafts together.

    Args:
        bundle: a model that `can_compose`.
        layout: what to draft, and where it goes.
        draw: draws the tokens of one text; None stands for the whole prompt. The second argument names the stream of
            random numbers, so that things differ.
        bare: share of each place that the whole prompt's draft is seen in, under the things. [H,W]
        seed: the picture's own, for the scenery.

    Returns:
        Normalised latents [1,C,h,w] of the quantizer's size, and the bits of all things together.
    """
    drafts = [draw(thing.words, f"prior/{number}") for number, thing in enumerate(layout.things)]
    things = [_of_colour(_picture(bundle, one), thing.colour) for one, thing in zip(drafts, layout.things, strict=True)]
    alone = bare is None and not layout.ground and (things or layout.scenery is not None)
    whole = None if alone else _picture(bundle, draw(None, "prior"))
    assert bundle.quantizer is not None, "a model with a prior has a quantizer"
    side = bundle.quantizer.config.latent_size * bundle.vae.config.downscale
    ground = (0, 0, 0, 0) if whole is None or not layout.ground else _ground(whole)
    canvas = Image.new("RGBA", (side, side), ground) if layout.scenery is None else drawn(layout.scenery, side, seed)
    if whole is not None and bare is not None:
        canvas.alpha_composite(_seen_in(whole, bare))
    for thing, picture in zip(layout.things, things, strict=True):
        if not thing.places:
            canvas.alpha_composite(picture)
            continue
        cut = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a >= SEEN)).getbbox())
        for place in thing.places:
            _lay(canvas, cut, place, layout.scenery)
    scores = [one.score for one in drafts if one.score is not None]
    return encode(bundle, canvas), sum(scores) if scores else None


def _of_colour(picture: Image.Image, colour: str | None) -> Image.Image:
    return picture if colour is None else Image.fromarray(tinted(np.asarray(picture), colour))


def _seen_in(picture: Image.Image, bare: Tensor) -> Image.Image:
    """The picture with the rest of it made transparent."""
    share = F.interpolate(bare[None, None], size=picture.size[::-1], mode="area")[0, 0].cpu().numpy()
    alpha = np.asarray(picture.getchannel("A")) * share
    picture = picture.copy()
    picture.putalpha(Image.fromarray(np.rint(alpha).astype(np.uint8)))
    return picture


def _picture(bundle: ModelBundle, drawn: Drawn) -> Image.Image:
    quantizer = bundle.quantizer
    assert quantizer is not None, "a model with a prior has a quantizer"
    latents = quantizer.decode(drawn.tokens, drawn.residuals).to(next(bundle.vae.parameters()).dtype)
    picture = to_image(bundle.vae.decode(latents)[0].float()).convert("RGBA")
    return picture if drawn.pose is None else drawn.pose.of(picture)


def _ground(picture: Image.Image) -> tuple[int, int, int, int]:
    """The colour of a picture's rim, per channel the median; transparent where most of the rim is."""
    pixels = np.asarray(picture)
    rim = np.concatenate([pixels[:2].reshape(-1, 4), pixels[-2:].reshape(-1, 4), pixels[:, 0], pixels[:, -1]])
    red, green, blue, alpha = (int(value) for value in np.median(rim, axis=0))
    return red, green, blue, 255 if alpha >= SEEN else 0


def _lay(canvas: Image.Image, picture: Image.Image, place: Place, scenery: Scenery | None = None) -> None:
    """Lay a cut-out over the canvas, in a scenery with its shadow; where it would stand out, it is moved in."""
    width, height = canvas.size
    scale = place.side * max(width, height) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # "RGBa" is multiplied by alpha, so that no fringe of the transparent colour bleeds in.
    small = picture.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    left = min(max(round(place.x * width - size[0] / 2), 0), width - size[0])
    above = size[1] if place.stands else size[1] / 2
    top = min(max(round(place.y * height - above), 0), height - size[1])
    box = (left / width, top / height, (left + size[0]) / width, (top + size[1]) / height)
    if scenery is not None and place.stands:
        shaded(canvas, scenery, box)
    canvas.alpha_composite(small, (left, top))
    if scenery is not None and place.stands:
        settled(canvas, scenery, box)
