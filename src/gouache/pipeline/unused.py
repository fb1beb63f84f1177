"""What of a request has no effect on its picture, in words for the recipe: nothing is dropped without one.

Options that a model can't do are refused where that was always so (`resolve`). Those that earlier versions took and
left unused are noted instead of refused, so that recipes which hold them still replay.
"""

from __future__ import annotations

from collections.abc import Iterator

from gouache.models.bundle import ModelBundle
from gouache.pipeline.composition import layout_of
from gouache.pipeline.generate.draft import with_defaults
from gouache.pipeline.generate.savings import NAMES as SAVINGS
from gouache.pipeline.generate.savings import merging_of, walked_steps
from gouache.pipeline.inputs.start import DEPTH, DRAFT, ENLARGE, INSTRUCT, input_kind
from gouache.pipeline.prompts.encode import styled_prompt
from gouache.pipeline.request import Mask, Prior, Request


def unused_notes(request: Request, bundle: ModelBundle) -> list[str]:
    """One note for each option of a resolved request that this model, or another option, leaves without effect."""
    kind = input_kind(bundle)
    told = bundle.unet.config.guidance_width > 0
    found = [
        *(_of_told_scale(request) if told else _without_guidance(request, kind)),
        *_without_picture(request),
        *_of_seeds(request),
        *_of_guiders(request, bundle),
        *_of_savings(request, bundle),
        *_of_image_prompts(request),
    ]
    found += [*_of_masks(request, kind), *_of_the_model(request, kind), *_of_the_prior(request, bundle, kind)]
    return [f"{name} was not used: {reason}" for name, reason in found]


Unused = Iterator[tuple[str, str]]
"""Name of an option, and why it has no effect."""


def _of_told_scale(request: Request) -> Unused:
    given = {
        "negative_prompt": bool(request.negative_prompt) and " AND " not in request.prompt,
        "guidance_rescale": request.guidance_rescale > 0,
        "guidance_interval": request.guidance_interval is not None,
        "apg": request.apg is not None,
        "cfg_cache": request.cfg_cache is not None,
    }
    for name in (name for name, there in given.items() if there):
        yield name, "this network is told the guidance scale and not guided"


def _without_guidance(request: Request, kind: str | None) -> Unused:
    image_scale = 1.5 if request.image_guidance_scale is None else request.image_guidance_scale
    if request.guidance_scale != 1 or (kind == INSTRUCT and image_scale != 1):
        return
    # Parts joined by AND are summed around the negative prompt, guided or not.
    if request.negative_prompt and " AND " not in request.prompt:
        yield "negative_prompt", "guidance is off (guidance_scale 1)"
    given = {
        "mimic": request.mimic is not None,
        "perp_neg": request.perp_neg is not None and " AND " not in request.prompt,
        "negative_prompt_2": bool(request.negative_prompt_2) and " AND " not in request.prompt,
        "negative_prompt_3": bool(request.negative_prompt_3) and " AND " not in request.prompt,
        "guidance_rescale": request.guidance_rescale > 0,
        "guidance_interval": request.guidance_interval is not None,
        "apg": request.apg is not None and kind != INSTRUCT,
        "cfg_cache": request.cfg_cache is not None,
    }
    for name in (name for name, there in given.items() if there):
        yield name, "guidance is off (guidance_scale 1)"


def _of_image_prompts(request: Request) -> Unused:
    steps = walked_steps(request)
    for number, one in enumerate(request.image_prompts):
        if one.weight == 0:
            yield f"image_prompts[{number}]", "its weight is 0"
        elif not any(one.is_on(step, steps) for step in range(1, steps + 1)):
            reason = f"none of {steps} steps lies between its start {one.start:g} and end {one.end:g}"
            yield f"image_prompts[{number}]", reason
        if one.adapter is not None and one.noise_level:
            yield (
                f"image_prompts[{number}].noise_level",
                "only a model that reads pictures by itself has it",
            )


def _of_guiders(request: Request, bundle: ModelBundle) -> Unused:
    empty = not (request.negative_prompt or request.negative_prompt_2 or request.negative_prompt_3)
    zeros = request.negative_prompt is None and bundle.traits.zero_negative
    if request.perp_neg is not None and request.guidance_scale != 1 and empty and not zeros:
        yield "perp_neg", "there is no negative prompt"
    steps = walked_steps(request)
    for name in ("pag", "sag", "slg", "freeu"):
        group = getattr(request, name)
        if group is not None and not any(group.is_on(step, steps) for step in range(1, steps + 1)):
            yield name, f"none of {steps} steps lies between its start {group.start:g} and end {group.end:g}"


def _of_savings(request: Request, bundle: ModelBundle) -> Unused:
    steps = walked_steps(request)
    for name in SAVINGS:
        group = getattr(request, name)
        # The first step keeps, whatever its share says: nothing was kept before it.
        if group is not None and not any(group.is_on(step, steps) for step in range(2, steps + 1)):
            reason = f"none of {steps} steps behind the first lies between its start {group.start:g} and end "
            yield name, f"{reason}{group.end:g}"
    if request.token_merging > 0 and merging_of(request, bundle) == 0:
        yield "token_merging", "A1111 merges at the latents' own size only, where this model has no attention"
    if request.cfg_cache is not None and request.guidance_scale != 1 and " AND " in request.prompt:
        yield "cfg_cache", "parts joined by AND are guided each by itself"


def _without_picture(request: Request) -> Unused:
    if request.init_image is not None:
        return
    masked = any(one.mask is not None for one in request.image_prompts)
    if request.strength is not None:
        yield "strength", "there is no init_image"
    if request.resize_mode != "crop" and request.depth_image is None and not (request.control or masked):
        yield "resize_mode", "there is no picture to fit"
    if request.interpolation is not None and request.interpolation.image is not None:
        yield "interpolation.image", "there is no init_image to come from; the last frame alone starts from it"


def _of_seeds(request: Request) -> Unused:
    if request.subseed is not None and request.subseed_strength == 0:
        yield "subseed", "subseed_strength is 0"
    plan = request.interpolation
    if request.subseed_strength > 0 and request.inversion is not None:
        yield "subseed_strength", "inversion finds the noise that gives the picture"
    elif request.subseed_strength > 0 and plan is not None and plan.seed is not None:
        yield "subseed_strength", "between its ends, interpolation.seed mixes the noise of two seeds"
    if plan is not None and request.count > 1:
        yield "count", "an interpolation makes as many pictures as it has frames"


def _of_masks(request: Request, kind: str | None) -> Unused:
    mask = request.mask
    if request.outpaint is not None:
        if mask is not None:
            plain = Mask()
            for name in ("image", "text", "invert", "padding", "only_masked"):
                if getattr(mask, name) != getattr(plain, name):
                    yield f"mask.{name}", "outpainting masks its own border"
        return
    if mask is None:
        return
    if mask.padding != Mask().padding and not mask.only_masked:
        yield "mask.padding", "it belongs to mask.only_masked"
    if mask.fill != "original" and kind == INSTRUCT:
        yield "mask.fill", "an instruct model starts from noise"


def _of_the_model(request: Request, kind: str | None) -> Unused:
    if kind == INSTRUCT:
        if request.strength is not None and request.strength < 1:
            yield "strength", "an instruct model starts from noise; image_guidance_scale says how much is kept"
        if request.apg is not None:
            yield "apg", "an instruct model has two guidance scales"
        if request.inversion is not None:
            yield "inversion", "an instruct model starts from noise"
    if kind != ENLARGE and request.noise_level is not None:
        yield "noise_level", "this model enlarges no picture"
    if kind == ENLARGE and request.strength is not None and request.strength < 1:
        yield "strength", "a model that enlarges starts from noise; noise_level says how much it may change"
    if kind != INSTRUCT and request.image_guidance_scale is not None:
        yield "image_guidance_scale", "it belongs to instruct models"
    if request.depth_image is not None and kind != DEPTH:
        yield "depth_image", "this model takes no depth map"


def _of_the_prior(request: Request, bundle: ModelBundle, kind: str | None) -> Unused:
    if kind != DRAFT or request.prior is None:
        return
    layout = layout_of(request.prior, bundle, styled_prompt(request))
    if layout is not None and layout.dropped:
        asked = request.prior.scenery == "drop"
        reason = "another background is asked for, or prior.scenery is drop" if asked else "it names a background"
        yield "the scenery of the prompt", reason
    why = "inversion takes the draft of the picture itself" if request.inversion is not None else "the prior is off"
    unused = request.inversion is not None or not request.prior.enabled
    if unused and request.best_of > 1:
        yield "best_of", why
    if request.inversion is not None and request.prior != with_defaults(
        Prior(variation=request.prior.variation, recall=request.prior.recall, scenery=request.prior.scenery),
        bundle.defaults,
    ):
        yield "prior", why
