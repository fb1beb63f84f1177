"""The draft: the autoregressive prior decides a picture's structure before diffusion paints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.diffusion.rng import generator_for
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults
from gouache.models.prior import Draw
from gouache.models.quantizer import Quantizer
from gouache.pipeline.conditioning import Encoded
from gouache.pipeline.likelihood import prior_bits
from gouache.pipeline.request import Prior as PriorOptions
from gouache.pipeline.request import Request


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted structure.

    Attributes:
        latents: what the network takes beside the noisy latents. [1,C,h,w]
        tokens: the prior's tokens; None if nothing was drafted. [1,S]
        score: bits of these tokens under the prompt, fewer for likelier; None if there was nothing to choose from.
    """

    latents: Tensor
    tokens: Tensor | None
    score: float | None


@torch.no_grad()
def draft(
    request: Request,
    bundle: ModelBundle,
    text: Encoded,
    empty: Encoded,
    seed: int,
    size: tuple[int, int],
    start: Tensor | None = None,
) -> Draft:
    """Draft one picture; of `request.best_of` attempts the likeliest under the prompt.

    Tokens that don't belong together are what spoils a draft, and unlikely. The alignment with the prompt
    (`pipeline/likelihood.py`) ranks worse: guidance has pushed every attempt towards it (docs/log.md).

    Args:
        request: resolved.
        bundle: a model with a prior.
        text, empty: the prompt and the empty text, encoded.
        seed: the picture's own.
        size: height and width of the latents; another size than the quantizer's is interpolated to.
        start: latents of the starting picture, for a block of tokens to keep. [1,C,h,w]

    Raises:
        InvalidInput: the model has no prior, or the starting picture has another size than its tokens cover.
    """
    prior, quantizer = bundle.prior, bundle.quantizer
    if prior is None or quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    options = request.prior or PriorOptions()
    if not options.enabled:
        return Draft(torch.zeros(1, quantizer.config.latent_channels, *size, device=bundle.device), None, None)
    known = None if options.keep is None or start is None else kept_tokens(quantizer, start, options.keep)
    draw = draw_of(options, bundle.defaults)
    attempts = [draw_tokens(bundle, text, empty, draw, [seed], k, known) for k in range(request.best_of)]
    tokens, score = attempts[0], None
    if len(attempts) > 1:
        bits = prior_bits(bundle, torch.cat(attempts), text).sum(1)  # [best_of]
        best = int(bits.argmin())
        tokens, score = attempts[best], float(bits[best])
    return Draft(_resized(quantizer.decode(tokens), size), tokens, score)


@torch.no_grad()
def own_draft(bundle: ModelBundle, latents: Tensor, size: tuple[int, int]) -> Draft:
    """The draft that a picture itself would have had: what an inversion needs, up and down.

    Args:
        bundle: a model with a prior.
        latents: of the picture. [1,C,h,w]
        size: height and width of the latents to paint.
    """
    quantizer = bundle.quantizer
    if quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    side = quantizer.config.latent_size
    tokens = quantizer.encode(_resized(latents, (side, side)))
    return Draft(_resized(quantizer.decode(tokens), size), tokens, None)


def _resized(latents: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(latents.shape[-2:]) == size:
        return latents
    return F.interpolate(latents, size=size, mode="bilinear", align_corners=False)


def draw_tokens(
    bundle: ModelBundle,
    text: Encoded,
    empty: Encoded,
    draw: Draw,
    seeds: Sequence[int],
    attempt: int = 0,
    known: Tensor | None = None,
) -> Tensor:
    """Draw the tokens [B,S] of some pictures once, each from its own seed.

    Args:
        bundle: a model with a prior.
        text: the prompts, a row for each seed.
        empty: the empty text, one row.
        draw: how.
        seeds: the pictures' own.
        attempt: number of this draw among the pictures' draws.
        known: tokens to keep, -1 where one is to be drawn. [B,S]

    Raises:
        InvalidInput: the model has no prior, or its text encoder no pooled vector.
    """
    prior, quantizer = bundle.prior, bundle.quantizer
    if prior is None or quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    if text.pooled is None or empty.pooled is None:
        raise InvalidInput("prior", given="a text encoder without a pooled vector", expected="one with it")
    streams = [generator_for(seed, "prior", attempt) for seed in seeds]
    uniform = torch.cat([torch.rand((1, prior.config.length), generator=stream) for stream in streams])
    mask = None if empty.mask is None else empty.mask.expand(len(seeds), -1)
    without = (empty.context.expand(len(seeds), -1, -1), empty.pooled.expand(len(seeds), -1), mask)
    tokens = torch.empty(len(seeds), 0, dtype=torch.long)
    walk = prior.sample(
        quantizer, text.context, text.pooled, uniform.to(bundle.device), context_mask=text.mask, draw=draw,
        unconditional=without, known=known,
    )  # fmt: skip
    for tokens in walk:  # noqa: B007
        pass
    return tokens


def with_defaults(options: PriorOptions | None, defaults: GenerationDefaults) -> PriorOptions:
    """Options of the prior with what they leave open taken from the model's defaults."""
    options = options or PriorOptions()
    return PriorOptions(
        enabled=options.enabled,
        temperature=defaults.prior_temperature if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=defaults.prior_top_p if options.top_p is None else options.top_p,
        guidance_scale=defaults.prior_guidance_scale if options.guidance_scale is None else options.guidance_scale,
        keep=options.keep,
    )


def draw_of(options: PriorOptions | None, defaults: GenerationDefaults) -> Draw:
    """How to draw; a temperature of 0 takes the likeliest token."""
    given = with_defaults(options, defaults)
    return Draw(
        temperature=given.temperature or 1.0,
        top_k=1 if given.temperature == 0 else given.top_k or 0,
        top_p=given.top_p or 1.0,
        guidance_scale=1.0 if given.guidance_scale is None else given.guidance_scale,
    )


def kept_tokens(quantizer: Quantizer, latents: Tensor, block: tuple[float, float, float, float]) -> Tensor:
    """Tokens of a picture inside a block, -1 elsewhere; a token is kept if its whole cell lies inside. [1,S]

    Args:
        quantizer: the model's.
        latents: of the picture. [1,C,h,w]
        block: left, top, right, bottom as fractions.
    """
    side = quantizer.config.latent_size
    if tuple(latents.shape[-2:]) != (side, side):
        raise InvalidInput(
            "prior.keep", given=f"a picture of {tuple(latents.shape[-2:])} latent pixels", expected=f"{side}x{side}",
            cure="Leave width and height to the model.",
        )  # fmt: skip
    tokens = quantizer.encode(latents)  # [1,S]
    left, top, right, bottom = block
    inside: list[bool] = []
    for scale in quantizer.config.scales:
        for row in range(scale):
            for column in range(scale):
                across = left <= column / scale and (column + 1) / scale <= right
                inside.append(across and top <= row / scale and (row + 1) / scale <= bottom)
    return torch.where(torch.tensor(inside, device=tokens.device)[None], tokens, -1)
