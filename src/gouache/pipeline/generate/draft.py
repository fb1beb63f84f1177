"""The draft: the autoregressive prior decides a picture's structure before diffusion paints it.

A sentence of several things is drafted thing by thing, each laid where the sentence says (`prompts/layout.py`). A thing
that is said to have a colour is drafted without it and then turned to it: a small prior that is asked for a blue cat
attends to the blue and forgets the cat. A thing in a scenery ("in the snow") is drafted without it and laid on one that
is drawn by code (`gouache.scenery`). `pipeline/composition.py` lays them together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.diffusion.rng import ImageSeed, generator_for
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults
from gouache.models.prior import Draw
from gouache.models.quantizer import Quantizer
from gouache.pipeline.composition import Drawn, can_compose, compose, layout_of, posed
from gouache.pipeline.generate.a1111_procedure import follows
from gouache.pipeline.generate.guided import levels_of
from gouache.pipeline.generate.passes import Walk
from gouache.pipeline.inputs.start import DRAFT, StartState, input_kind
from gouache.pipeline.likelihood import prior_bits
from gouache.pipeline.poses import pose_of
from gouache.pipeline.prompts.encode import EncodedPrompt
from gouache.pipeline.prompts.layout import Layout
from gouache.pipeline.prompts.regions import PlannedRegions, in_order, laid_out
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

    def notes(self, request: Request) -> list[str]:
        """What the recipe says of it."""
        if self.score is None:
            return []
        return [f"draft: {self.score:.1f} bits under the prompt, best of {request.best_of}"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Tokens that a draft takes from another picture, with the residuals that go with them.

    Attributes:
        known: the tokens to take, -1 where one is to be drawn. [B,S]
        tokens: all of that picture. [B,S]
        residuals: of that picture; None in a model without. [B,h*w]
    """

    known: Tensor
    tokens: Tensor
    residuals: Tensor | None


@dataclass(frozen=True, slots=True)
class Parts:
    """The things that a prompt or its regions lay out, and what encodes their words.

    Attributes:
        layout: the things.
        encode: words -> their encoding.
        bare: share of each place that the prompt's own draft is seen in, around the things; None = nowhere. [H,W]
    """

    layout: Layout
    encode: Callable[[str], EncodedPrompt]
    bare: Tensor | None = None


def parts_of(
    request: Request,
    bundle: ModelBundle,
    prompt: str,
    encode: Callable[[str], EncodedPrompt] | None,
    areas: Tensor | None = None,
    regions: PlannedRegions | None = None,
) -> Parts | None:
    """What to draft one by one; None where the prompt is drafted as a whole.

    Args:
        request: resolved.
        bundle: the model.
        prompt: with its style.
        encode: encodes words of the prompt; None if it lays nothing out.
        areas: how much of each place lies in each region. [R,H,W]
        regions: their texts, each of which is drafted in its area, whatever the prompt lays out.
    """
    if request.prior is None or not request.prior.layout or not can_compose(bundle):
        return None
    if areas is not None and regions is not None:
        found, own = laid_out(request, areas, prompt), in_order(request, areas)[0]
        plans = {region.prompt: plan for region, plan in zip(own, regions.plans, strict=True)}
        return Parts(found.layout, lambda words: plans[words].at(1)[0][1], found.bare)
    layout = layout_of(request.prior, bundle, prompt)
    return None if layout is None or encode is None else Parts(layout, encode)


@torch.no_grad()
def draft(
    request: Request,
    bundle: ModelBundle,
    text: EncodedPrompt,
    empty: EncodedPrompt,
    seed: ImageSeed,
    size: tuple[int, int],
    start: Tensor | None = None,
    parts: Parts | None = None,
) -> Draft:
    """Draft one picture; of `request.best_of` attempts the likeliest under the prompt.

    Tokens that don't belong together are what spoils a draft, and unlikely. The alignment with the prompt
    (`pipeline/likelihood.py`) ranks worse: guidance has pushed every attempt towards it (docs/log.md).

    Args:
        request: resolved.
        bundle: a model with a prior.
        text, empty: the prompt and the empty text, encoded.
        seed: the picture's own, with its subseed.
        size: height and width of the latents; another size than the quantizer's is interpolated to.
        start: latents of the starting picture, for a block of tokens to keep. [1,C,h,w]
        parts: the things that the prompt lays out, to be drafted one by one; None drafts it as a whole.

    Raises:
        InvalidInput: the model has no prior, or the starting picture has another size than its tokens cover.
    """
    prior, quantizer = bundle.prior, bundle.quantizer
    if prior is None or quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    options = request.prior or PriorOptions()
    if not options.enabled:
        return Draft(torch.zeros(1, quantizer.config.latent_channels, *size, device=bundle.device), None, None)
    kept = None if options.keep is None or start is None else kept_tokens(quantizer, start, options.keep)
    draw = draw_of(options, bundle.defaults)
    freely = without_recall(draw, bundle.defaults)
    variation = request.subseed_strength if options.variation is None else options.variation

    def varied(drawn: Drawn, own: EncodedPrompt, stream: str) -> Drawn:
        # Fewer where they were another picture's, which the network alone can do less well.
        same = tokens_to_keep(drawn.tokens, variation**2 if draw.recall else variation, seed.subseed, stream)
        if kept is not None:
            same = torch.where(kept.known >= 0, kept.known, same)
        if bool((same >= 0).all()):
            return drawn
        # Mixed from what is remembered, since following the same picture would draw the same tokens again.
        how = draw if variation == 1 else freely
        source = Kept(same, drawn.tokens, drawn.residuals)
        return draw_tokens(bundle, own, empty, how, [seed.subseed], 0, source, stream=stream)

    def likeliest(words: str | None, stream: str) -> Drawn:
        drawn = best_of(words, stream)
        if not (draw.recall and options.pose and kept is None and can_compose(bundle)):
            return drawn
        by = stream if parts is not None and len(parts.layout.things) > 1 else "prior"  # a cat as a blue cat
        return replace(drawn, pose=pose_of(words or request.prompt, by, seed.subseed, variation))

    def best_of(words: str | None, stream: str) -> Drawn:
        own = text if words is None or parts is None else parts.encode(words)
        # Of the whole prompt beside its things only the ground is looked at, and most that is remembered has none.
        how = draw if words is not None or parts is None else freely
        attempts = [
            draw_tokens(bundle, own, empty, how, [seed.seed], k, kept, stream=stream) for k in range(request.best_of)
        ]
        if len(attempts) == 1:
            return varied(attempts[0], own, stream)
        bits = prior_bits(bundle, torch.cat([one.tokens for one in attempts]), own).sum(1)  # [best_of]
        best = varied(attempts[int(bits.argmin())], own, stream)
        return replace(best, score=float(prior_bits(bundle, best.tokens, own).sum() if variation else bits.min()))

    if parts is not None and kept is None:
        latents, score = compose(bundle, parts.layout, likeliest, parts.bare, seed.seed)
        return Draft(_resized(latents, size), quantizer.encode(latents), score)
    whole = likeliest(None, "prior")
    latents = posed(bundle, whole)
    tokens = whole.tokens if whole.pose is None else quantizer.encode(latents)
    return Draft(_resized(latents, size), tokens, whole.score)


@torch.no_grad()
def own_draft(bundle: ModelBundle, latents: Tensor, size: tuple[int, int]) -> Tensor:
    """The draft that a picture itself would have had: what an inversion needs, up and down.

    Args:
        bundle: a model with a prior.
        latents: of the picture. [1,C,h,w]
        size: height and width of the latents to paint, and of the draft.
    """
    quantizer = bundle.quantizer
    if quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    side = quantizer.config.latent_size
    return _resized(quantizer.draft_of(_resized(latents, (side, side))), size)


def _resized(latents: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(latents.shape[-2:]) == size:
        return latents
    return F.interpolate(latents, size=size, mode="bilinear", align_corners=False)


def draw_tokens(
    bundle: ModelBundle,
    text: EncodedPrompt,
    empty: EncodedPrompt,
    draw: Draw,
    seeds: Sequence[int],
    attempt: int = 0,
    kept: Kept | None = None,
    *,
    stream: str = "prior",
) -> Drawn:
    """Draw the tokens of some pictures once, each from its own seed; their residuals are those of what they follow.

    Args:
        bundle: a model with a prior.
        text: the prompts, a row for each seed.
        empty: the empty text, one row.
        draw: how.
        seeds: the pictures' own.
        attempt: number of this draw among the pictures' draws.
        kept: what is not drawn.
        stream: name of the random numbers.

    Raises:
        InvalidInput: the model has no prior, or its text encoder no pooled vector.
    """
    prior, quantizer = bundle.prior, bundle.quantizer
    if prior is None or quantizer is None:
        raise InvalidInput("prior", given=f"a model of family {bundle.family}", expected="a model with a prior")
    if text.pooled is None or empty.pooled is None:
        raise InvalidInput("prior", given="a text encoder without a pooled vector", expected="one with it")
    generators = [generator_for(seed, stream, attempt) for seed in seeds]
    uniform = torch.cat([torch.rand((1, prior.config.length), generator=one) for one in generators])
    sources = [] if kept is None else [kept]
    followed = None
    if draw.recall and prior.recall is not None:
        chosen = [torch.rand(1, generator=generator_for(seed, f"{stream}/recall", attempt)) for seed in seeds]
        rows = prior.recall.followed(text.pooled, torch.cat(chosen).to(bundle.device))
        followed = prior.recall.tokens[rows].long()
        residuals = prior.recall.residuals[rows] if prior.config.residuals else None
        sources.append(Kept(followed, followed, residuals))
    mask = None if empty.mask is None else empty.mask.expand(len(seeds), -1)
    without = (empty.context.expand(len(seeds), -1, -1), empty.pooled.expand(len(seeds), -1), mask)
    tokens = torch.empty(len(seeds), 0, dtype=torch.long)
    walk = prior.sample(
        quantizer,
        text.context,
        text.pooled,
        uniform.to(bundle.device),
        context_mask=text.mask,
        draw=draw,
        followed=followed,
        unconditional=without,
        known=None if kept is None else kept.known,
    )
    for tokens in walk:  # noqa: B007
        pass
    return Drawn(tokens, _residuals(quantizer, tokens, sources))


def _residuals(quantizer: Quantizer, tokens: Tensor, sources: Sequence[Kept]) -> Tensor | None:
    """Residuals of drawn tokens [B,S], of the first of some sources whose tokens they are. [B,h*w]"""
    if quantizer.residual is None:
        return None
    places = quantizer.config.latent_size**2
    found = torch.zeros(len(tokens), places, dtype=torch.uint8, device=tokens.device)
    for source in sources:
        if source.residuals is not None:
            shared = quantizer.shared_residuals(source.residuals, source.tokens, tokens)
            found = torch.where(found > 0, found, shared)
    return found


def tokens_to_keep(tokens: Tensor, variation: float, subseed: int, stream: str) -> Tensor:
    """The tokens that a variation of a draft keeps, -1 where one is to be drawn anew. [1,S]

    The share that is drawn anew is the root of the variation: the tokens around hold each of them nearly where it was.

    Args:
        tokens: of the draft. [1,S]
        variation: 0 keeps all, 1 none. What a smaller one draws anew, a larger one does too.
        subseed: of the variation.
        stream: name of the draft's random numbers.
    """
    share = torch.rand(tokens.shape, generator=generator_for(subseed, f"{stream}/variation")).to(tokens.device)
    if variation < 1:
        share[:, 0] = 1.0  # the whole picture's: its colour
    return torch.where(share < variation**0.5, -1, tokens)


def with_defaults(options: PriorOptions | None, defaults: GenerationDefaults) -> PriorOptions:
    """Options of the prior with what they leave open taken from the model's defaults.

    Guidance is for what the prior draws itself: a remembered picture that a draft follows is of the prompt already.
    """
    options = options or PriorOptions()
    recall = defaults.prior_recall if options.recall is None else options.recall
    guidance_scale = 1.0 if recall else defaults.prior_guidance_scale
    return PriorOptions(
        enabled=options.enabled,
        temperature=defaults.prior_temperature if options.temperature is None else options.temperature,
        top_k=options.top_k or 0,
        top_p=defaults.prior_top_p if options.top_p is None else options.top_p,
        guidance_scale=guidance_scale if options.guidance_scale is None else options.guidance_scale,
        start_sigma=defaults.prior_start_sigma if options.start_sigma is None else options.start_sigma,
        recall=recall,
        variation=options.variation,
        keep=options.keep,
        layout=options.layout,
        synonyms=options.synonyms,
        pose=options.pose,
        plain=options.plain,
        scenery=options.scenery or "draw",
    )


LONGEST_LIST = 999
"""Steps that a list may have of which the end is walked: what a schedule of 1000 timesteps can give."""


def start_level(request: Request, bundle: ModelBundle) -> float:
    """The noise level at which a request with its strength lets a picture begin on its draft; 0 = it begins otherwise.

    What has another ground begins on that: a picture that shows through, a mask, an inversion, levels of its own,
    another tool's procedure.
    """
    options = with_defaults(request.prior, bundle.defaults)
    shows_through = request.init_image is not None and (request.strength or 0.0) < 1
    grounded = shows_through or any(part is not None for part in (request.mask, request.outpaint, request.inversion))
    if input_kind(bundle) != DRAFT or grounded or not options.enabled:
        return 0.0
    return 0.0 if request.sigmas is not None or follows(request) else options.start_sigma or 0.0


def list_on_draft(request: Request, bundle: ModelBundle, given: StartState) -> Walk | None:
    """Where a picture begins that begins on its draft; None begins on something else.

    So many steps are walked as the request asks for: the first from the start's own level, the others from levels of
    the schedule below it.
    """
    level, steps = start_level(request, bundle), request.num_inference_steps or 1
    if level == 0 or given.skipped > 0 or given.added or given.mask is not None:
        return None

    def within(total: int) -> int:
        levels = levels_of(request, bundle, total).sigmas
        return int(((levels < level) & (levels > 0)).sum())

    total = steps + bisect_left(range(steps, max(steps, LONGEST_LIST)), steps - 1, key=within)
    return Walk(total - steps, total, level)


def level_unused(request: Request, bundle: ModelBundle, on_draft: Walk | None) -> list[str]:
    """A note if the picture does not begin on its draft, though the request says at which level it should.

    A resolved request also holds the model's own level, which nobody asked for.
    """
    prior = request.prior
    asked = prior is not None and prior.enabled and prior.start_sigma not in (0, bundle.defaults.prior_start_sigma)
    return ["prior.start_sigma was not used: the picture begins on something else"] if asked and not on_draft else []


def draw_of(options: PriorOptions | None, defaults: GenerationDefaults) -> Draw:
    """How to draw; a temperature of 0 takes the likeliest token."""
    given = with_defaults(options, defaults)
    return Draw(
        temperature=given.temperature or 1.0,
        top_k=1 if given.temperature == 0 else given.top_k or 0,
        top_p=given.top_p or 1.0,
        guidance_scale=1.0 if given.guidance_scale is None else given.guidance_scale,
        recall=given.recall or 0.0,
    )


def without_recall(draw: Draw, defaults: GenerationDefaults) -> Draw:
    """The same for what follows no remembered picture, and so needs the model's guidance."""
    if not draw.recall:
        return draw
    return replace(draw, recall=0.0, guidance_scale=max(draw.guidance_scale, defaults.prior_guidance_scale))


def kept_tokens(quantizer: Quantizer, latents: Tensor, block: tuple[float, float, float, float]) -> Kept:
    """What to keep of a picture inside a block: a token is kept if its whole cell lies inside.

    Args:
        quantizer: the model's.
        latents: of the picture. [1,C,h,w]
        block: left, top, right, bottom as fractions.
    """
    side = quantizer.config.latent_size
    if tuple(latents.shape[-2:]) != (side, side):
        raise InvalidInput(
            "prior.keep",
            given=f"a picture of {tuple(latents.shape[-2:])} latent pixels",
            expected=f"{side}x{side}",
            cure="Leave width and height to the model.",
        )
    tokens = quantizer.encode(latents)  # [1,S]
    left, top, right, bottom = block
    inside: list[bool] = []
    for scale in quantizer.config.scales:
        for row in range(scale):
            for column in range(scale):
                across = left <= column / scale and (column + 1) / scale <= right
                inside.append(across and top <= row / scale and (row + 1) / scale <= bottom)
    known = torch.where(torch.tensor(inside, device=tokens.device)[None], tokens, -1)
    return Kept(known, tokens, quantizer.residuals(latents, tokens))
