"""The frames between two prompts, two seeds or two pictures; both ends are the originals, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gouache.diffusion.rng import ImageSeed, slerp
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.canvas import Canvas
from gouache.pipeline.conditioning import Encoded, PromptPlan, PromptReader
from gouache.pipeline.events import Event, Painted, Progress
from gouache.pipeline.prepare import prepare
from gouache.pipeline.references import References
from gouache.pipeline.request import Interpolation, Request
from gouache.pipeline.run import Run, styled_prompt


def frames(request: Request, bundle: ModelBundle, references: References, notes: list[str]) -> Iterator[Event]:
    """Paint the frames of a resolved request with `interpolation`.

    Raises:
        InvalidInput: nothing to go to, or prompts with AND, editing or alternation, which can't be mixed.
    """
    plan = request.interpolation
    if plan is None or (plan.prompt is None and plan.seed is None and plan.image is None):
        raise InvalidInput(
            "interpolation", given="nothing to go to", expected="another prompt, seed or picture",
            cure="Name what the last frame should be.",
        )  # fmt: skip
    wanted = range(plan.frames) if plan.frame is None else [plan.frame]
    for index, frame in enumerate(wanted):
        run = _frame(request, plan, frame, bundle, references, notes)
        for event in run:
            if isinstance(event, Progress):
                yield replace(event, picture=index, pictures=len(wanted))
            else:
                yield _renamed(event, index, request, plan, frame)


def _frame(
    request: Request, plan: Interpolation, frame: int, bundle: ModelBundle, references: References, notes: list[str]
) -> Run:
    share = frame / (plan.frames - 1)
    first = request.replace({"interpolation": None, "count": 1})
    last = first.replace(
        {
            "prompt": first.prompt if plan.prompt is None else plan.prompt,
            "seed": first.seed if plan.seed is None else plan.seed,
            "init_image": first.init_image if plan.image is None else plan.image,
        }
    )
    if share in (0.0, 1.0):
        end = last if share else first
        prepared = prepare(end, bundle, references)
        return Run(bundle, end, prepared.canvas, [*notes, *prepared.notes], references.digests())
    prepared = prepare(first, bundle, references)
    canvas = _mixed_canvas(prepared.canvas, prepare(last, bundle, references).canvas, share)
    run = Run(bundle, first, canvas, [*notes, *prepared.notes], references.digests())
    if plan.prompt is not None:
        run.use_prompt(_mixed_prompt(first, last, bundle, share))
    if plan.seed is not None:
        run.use_seeds([ImageSeed(first.seed or 0, last.seed or 0, share)])
    return run


def _mixed_canvas(first: Canvas, last: Canvas, share: float) -> Canvas:
    if first.latents is None or last.latents is None:
        return first
    if first.latents.shape != last.latents.shape:
        raise InvalidInput(
            "interpolation.image", given="a picture of another size", expected="the first picture's size",
            cure="Give width and height, so that both are brought to one size.",
        )  # fmt: skip
    return replace(first, latents=slerp(first.latents, last.latents, share))


def _mixed_prompt(first: Request, last: Request, bundle: ModelBundle, share: float) -> PromptPlan:
    reader = PromptReader(bundle.text, first.emphasis, first.clip_skip)
    texts: list[Encoded] = []
    for request in (first, last):
        plan = reader.plan(styled_prompt(request), 1)
        if len(plan.branches) != 1 or len(plan.branches[0][1]) != 1:
            raise InvalidInput(
                "interpolation.prompt", given="a prompt with AND, editing or alternation", expected="plain prompts"
            )
        texts.append(plan.branches[0][1][0][1])
    return PromptPlan(((1.0, ((1, _mixed_text(texts[0], texts[1], share)),)),))


def _mixed_text(first: Encoded, last: Encoded, share: float) -> Encoded:
    length = max(first.context.shape[1], last.context.shape[1])
    contexts = [
        torch.nn.functional.pad(text.context, (0, 0, 0, length - text.context.shape[1])) for text in (first, last)
    ]
    masks = [
        None if text.mask is None else torch.nn.functional.pad(text.mask, (0, length - text.mask.shape[1]))
        for text in (first, last)
    ]
    pooled = None
    if first.pooled is not None and last.pooled is not None:
        pooled = torch.lerp(first.pooled, last.pooled, share)
    mask = None if masks[0] is None or masks[1] is None else masks[0] | masks[1]
    return Encoded(torch.lerp(contexts[0], contexts[1], share), pooled, mask)


def _renamed(painted: Event, index: int, request: Request, plan: Interpolation, frame: int) -> Painted:
    """The frame under its own number, with a recipe that repeats this one frame."""
    if not isinstance(painted, Painted):
        raise InvalidInput("frame", given=type(painted).__name__, expected="a finished picture")
    own = request.replace({"count": 1, "interpolation": plan.model_copy(update={"frame": frame})})
    return replace(painted, picture=index, recipe=painted.recipe.model_copy(update={"request": own}))
