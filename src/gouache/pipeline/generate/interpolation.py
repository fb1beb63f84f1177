"""The frames between two prompts, two seeds or two pictures; both ends are the originals, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from gouache.diffusion.rng import ImageSeed, slerp
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.generation import Event, Generation, Painted, Progress
from gouache.pipeline.inputs.images import References
from gouache.pipeline.inputs.start import StartState, prepare
from gouache.pipeline.prompts.encode import styled_prompt
from gouache.pipeline.prompts.syntax import branches
from gouache.pipeline.request import Interpolation, Request


def frames(request: Request, bundle: ModelBundle, references: References, notes: list[str]) -> Iterator[Event]:
    """Paint the frames of a resolved request with `interpolation`.

    Raises:
        InvalidInput: nothing to go to, or prompts with different numbers of parts joined by AND.
    """
    plan = request.interpolation
    if plan is None or (plan.prompt is None and plan.seed is None and plan.image is None):
        raise InvalidInput(
            "interpolation",
            given="nothing to go to",
            expected="another prompt, seed or picture",
            cure="Name what the last frame should be.",
        )
    parts = [len(branches(text, request.emphasis)) for text in (request.prompt, plan.prompt or request.prompt)]
    if parts[0] != parts[1]:
        raise InvalidInput(
            "interpolation.prompt",
            given=f"{parts[1]} parts joined by AND",
            expected=f"as many as the first prompt has: {parts[0]}",
            cure="Repeat a part, with weight :0 if it should fade out.",
        )
    return _frames(request, plan, bundle, references, notes)


def _frames(
    request: Request, plan: Interpolation, bundle: ModelBundle, references: References, notes: list[str]
) -> Iterator[Event]:
    wanted = range(plan.frames) if plan.frame is None else [plan.frame]
    for index, frame in enumerate(wanted):
        run = _frame(request, plan, frame, bundle, references, notes)
        for event in run:
            if isinstance(event, Progress):
                yield replace(event, picture=index, pictures=len(wanted), partial=None)
            else:
                yield _renamed(event, index, request, plan, frame)


def _frame(
    request: Request, plan: Interpolation, frame: int, bundle: ModelBundle, references: References, notes: list[str]
) -> Generation:
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
        return Generation(bundle, end, prepared.start_state, [*notes, *prepared.notes], references.digests())
    prepared = prepare(first, bundle, references)
    start_state = _mixed_start(prepared.start_state, prepare(last, bundle, references).start_state, share)
    run = Generation(bundle, first, start_state, [*notes, *prepared.notes], references.digests())
    if plan.prompt is not None:
        run.mix_prompt(styled_prompt(last), share)
    if plan.seed is not None:
        run.use_seeds([ImageSeed(first.seed or 0, last.seed or 0, share)])
    return run


def _mixed_start(first: StartState, last: StartState, share: float) -> StartState:
    if first.draft is not None and last.draft is not None and first.draft.shape == last.draft.shape:
        first = replace(first, draft=torch.lerp(first.draft, last.draft, share))
    if first.latents is None or last.latents is None:
        return first
    if first.latents.shape != last.latents.shape:
        raise InvalidInput(
            "interpolation.image",
            given="a picture of another size",
            expected="the first picture's size",
            cure="Give width and height, so that both are brought to one size.",
        )
    return replace(first, latents=slerp(first.latents, last.latents, share))


def _renamed(painted: Event, index: int, request: Request, plan: Interpolation, frame: int) -> Painted:
    """The frame under its own number, with a recipe that repeats this one frame."""
    if not isinstance(painted, Painted):
        raise InvalidInput("frame", given=type(painted).__name__, expected="a finished picture")
    own = request.replace({"count": 1, "interpolation": plan.model_copy(update={"frame": frame})})
    return replace(painted, picture=index, recipe=painted.recipe.model_copy(update={"request": own}))
