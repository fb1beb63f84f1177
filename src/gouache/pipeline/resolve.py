"""Fills in what a request leaves open, from the model's own defaults, and refuses what the model can't do.

Sizes above the model's own are painted at its own size and enlarged by its up-sampling decoder.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from gouache.diffusion.samplers.names import resolve, resolve_schedule, sampler_info
from gouache.errors import InvalidInput, unknown_name
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.a1111_procedure import A1111, follows, second_size
from gouache.pipeline.generate.draft import with_defaults
from gouache.pipeline.generate.upscaler_files import LANCZOS, OWN
from gouache.pipeline.inputs.images import References, nearest_size
from gouache.pipeline.prompts.syntax import adapter_tags, refuse_tags
from gouache.pipeline.request import Hires, Procedure, Request, Upscale


def at_own_size(request: Request, bundle: ModelBundle) -> Request:
    """The request with the model's own size and an enlargement behind, where it asks for more than that size.

    Only for pictures from words by a model that has an upscaler; `tiled` and `hires` paint at full size. The longer
    side of what is painted is the model's own.

    Raises:
        InvalidInput: the asked size is more than the upscaler gives, or the model has no upscaler and one is asked for.
    """
    upscale = request.upscale
    if bundle.upscaler is not None and _is_plain(request):
        own = (bundle.defaults.width, bundle.defaults.height)
        asked = (request.width or own[0], request.height or own[1])
        # What rounds to the own size needs no enlargement.
        rounded = nearest_size(*asked, bundle.vae.config.downscale)
        fit = max(rounded[0] / own[0], rounded[1] / own[1])
        if fit > 1:
            factor = fit * (upscale.factor if upscale else 1.0)
            _check(asked, upscale, factor, bundle.upscaler.config.scale, own)
            width, height = (max(1, round(side / fit)) for side in rounded)
            request = request.replace({"width": width, "height": height})
            upscale = Upscale(factor=factor, upscaler=OWN)
    if upscale is None:
        return request
    if upscale.upscaler is None:
        upscale = upscale.model_copy(update={"upscaler": LANCZOS if bundle.upscaler is None else OWN})
    if upscale.upscaler == OWN and bundle.upscaler is None:
        raise InvalidInput(
            "upscale.upscaler",
            given=repr(OWN),
            expected=f"lanczos or a file: {bundle.family} brings no upscaler",
            cure="Leave it out, or use lanczos.",
        )
    return request.replace({"upscale": upscale})


def _is_plain(request: Request) -> bool:
    """Whether a picture is painted from words alone in one pass, to be enlarged by the model's own means if at all."""
    other = request.init_image or request.tiled or request.hires or request.outpaint
    return not other and (request.upscale is None or request.upscale.upscaler in (None, OWN))


def _check(asked: tuple[int, int], upscale: Upscale | None, factor: float, scale: int, own: tuple[int, int]) -> None:
    if factor <= scale + 1e-9:
        return
    more = f", enlarged {upscale.factor:g} times" if upscale else ""
    raise InvalidInput(
        "size",
        given=f"{asked[0]}x{asked[1]}{more}",
        expected=f"at most {max(own) * scale} pixels a side: {scale} times the {max(own)} that the model paints",
        cure=f"Paint with --size {max(own) * scale} and enlarge the file by `gouache upscale`, or add --tiled, which "
        "paints at full size.",
    )


def enlargement(asked: Request, resolved: Request) -> float:
    """How many times larger than painted the picture becomes because of the asked size; 1 if that was painted."""
    before = asked.upscale.factor if asked.upscale else 1.0
    return resolved.upscale.factor / before if resolved.upscale else 1.0


DRAWN_SEEDS = 2**32
"""Seeds that nobody asked for are drawn below this, so that every other tool can take them."""


def resolve_request(request: Request, bundle: ModelBundle, start: tuple[int, int] | None = None) -> Request:
    """The request without gaps: the recipe of what will be painted.

    Args:
        request: as it was asked.
        bundle: the model.
        start: width and height of the starting picture, if there is one.

    Raises:
        UnknownName: no such sampler, schedule or style.
        InvalidInput: something this model can't do.
    """
    _check_tags(request)
    _check_prior(request, bundle)
    _check_control(request, bundle)
    if request.style is not None and bundle.styles and request.style not in bundle.styles:
        raise unknown_name("style", request.style, bundle.styles)
    request = at_own_size(request, bundle)
    defaults = bundle.defaults
    sampler, schedule = _sampler_and_schedule(request, bundle)
    request = request.replace({"procedure": _procedure(request)})
    width, height = _latent_sized(_size(request, bundle, start), request, bundle)
    vary = request.subseed_strength > 0
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    return request.replace(
        {
            "model": request.model or bundle.name or bundle.family,
            "seed": secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
            "subseed": secrets.randbelow(DRAWN_SEEDS) if request.subseed is None and vary else request.subseed,
            "width": width,
            "height": height,
            "background": _background(request, bundle),
            "strength": _strength(request),
            "num_inference_steps": request.num_inference_steps or defaults.num_inference_steps,
            "guidance_scale": guidance,
            "sampler": sampler,
            "schedule": schedule,
            "hires": _hires(request, width, height),
            "prior": None if bundle.prior is None else with_defaults(request.prior, defaults),
        }
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request without gaps, as `Pipeline.run` takes it.

    Attributes:
        request: the recipe of what will be painted.
        notes: what could not be kept of what was asked.
    """

    request: Request
    notes: tuple[str, ...]


def resolve_with_pictures(request: Request, bundle: ModelBundle, references: References) -> Resolved:
    """As `resolve_request`, for the starting picture that the request names.

    Raises:
        PictureError: it is not there, or no picture.
        UnknownName, InvalidInput: as `resolve_request`.
    """
    start = None if request.init_image is None else references.picture(request.init_image).size
    resolved = resolve_request(request, bundle, start)
    return Resolved(resolved, tuple(size_notes(request, resolved, start)))


def _check_tags(request: Request) -> None:
    """Tags stand in the prompt; anywhere else the picture would silently lack what they name."""
    tags = adapter_tags(request.prompt)
    refuse_tags(request.negative_prompt, "negative_prompt")
    if request.inversion is not None:
        refuse_tags(request.inversion.source_prompt, "inversion.source_prompt")
    last = None if request.interpolation is None else request.interpolation.prompt
    if last is not None and adapter_tags(last, "interpolation.prompt") != tags:
        raise InvalidInput(
            "interpolation.prompt",
            given="other adapters than in the first prompt",
            expected="the same tags in both",
            cure="Copy the tags of the first prompt.",
        )


def _check_prior(request: Request, bundle: ModelBundle) -> None:
    wanted = {"prior": request.prior is not None and request.prior.enabled, "best_of": request.best_of > 1}
    asked = [name for name, given in wanted.items() if given]
    if asked and bundle.prior is None:
        raise InvalidInput(
            asked[0],
            given=f"a value for {bundle.name or bundle.family}",
            expected="nothing: this model has no prior",
            cure="Leave it out, or choose a model that drafts its pictures.",
        )


def _check_control(request: Request, bundle: ModelBundle) -> None:
    """Where there is no telling what a control picture would mean, it is refused."""
    latent, extra = bundle.vae.config.latent_channels, bundle.unet.config.draft_channels
    clashes = {
        "outpaint": request.outpaint is not None,
        "inversion": request.inversion is not None,
        "an instruct model": bundle.prior is None and extra == latent,
    }
    clash = next((name for name, there in clashes.items() if there), None)
    if request.control and clash:
        raise InvalidInput(
            "control",
            given=f"a control picture and {clash}",
            expected="one or the other",
            cure="Extend picture and control picture yourself, and paint the new part with --mask."
            if clash == "outpaint"
            else "Leave one out.",
        )


def _size(request: Request, bundle: ModelBundle, start: tuple[int, int] | None) -> tuple[int, int]:
    """The asked size; else the starting picture's, unless only a masked part of it is worked on; else the model's."""
    own = (bundle.defaults.width, bundle.defaults.height)
    only_part = request.mask is not None and request.mask.only_masked
    width, height = own if start is None or only_part else start
    return request.width or width, request.height or height


def second_pass(request: Request, bundle: ModelBundle) -> Request:
    """The request of the larger second pass of a resolved request with `hires`."""
    hires = request.hires or Hires()
    if follows(request):
        width, height = second_size(hires, request.width or 0, request.height or 0, factor_of(bundle)).painted
    else:
        size = hires.size_for(request.width or 1, request.height or 1)
        width, height = nearest_size(*size, factor_of(bundle))
    return request.replace(
        {
            "width": width,
            "height": height,
            "num_inference_steps": hires.num_inference_steps or request.num_inference_steps,
            "strength": hires.strength,
        }
    )


def _procedure(request: Request) -> Procedure | None:
    """A1111's with its noise, so that a recipe names it; nothing else changes what a request leaves open."""
    return request.procedure or (A1111 if request.determinism == A1111 else None)


def _latent_sized(size: tuple[int, int], request: Request, bundle: ModelBundle) -> tuple[int, int]:
    """Whole latents: the nearest number of them, or as A1111 does, those that fit."""
    factor = factor_of(bundle)
    if not follows(request):
        return nearest_size(*size, factor)
    return max(size[0] // factor, 1) * factor, max(size[1] // factor, 1) * factor


def _hires(request: Request, width: int, height: int) -> Hires | None:
    """The second pass with both sides where one was given; A1111's keeps one side, whose other is cut differently."""
    hires = request.hires
    if hires is None or follows(request) or (hires.width is None) == (hires.height is None):
        return hires
    sides = hires.size_for(width, height)
    return hires.model_copy(update={"width": sides[0], "height": sides[1]})


def factor_of(bundle: ModelBundle) -> int:
    """What width and height in pixels are multiples of: the pixels of one latent, 8 for Stable Diffusion."""
    return bundle.vae.config.downscale


def _strength(request: Request) -> float | None:
    if request.init_image is None or request.strength is not None:
        return request.strength
    return 1.0 if request.outpaint is not None or request.inversion is not None else 0.75


def _sampler_and_schedule(request: Request, bundle: ModelBundle) -> tuple[str, str]:
    # Only samplers of ddim's family walk down the steps that an inversion walked up.
    default = bundle.defaults.sampler if request.inversion is None else "ddim"
    name, schedule = resolve(request.sampler or default)
    if request.schedule is not None:
        return name, resolve_schedule(request.schedule)
    if schedule is not None:
        return name, schedule
    if request.sampler is None:
        return name, resolve_schedule(bundle.defaults.schedule)
    return name, sampler_info(name).default_schedule


def _background(request: Request, bundle: ModelBundle) -> str | None:
    if bundle.vae.config.image_channels == 4:
        return request.background or "transparent"
    if request.background is not None:
        raise InvalidInput(
            "background",
            given=request.background,
            expected=f"nothing: {bundle.family} paints no transparency",
            cure="Leave it out, or describe the background in the prompt.",
        )
    return None


def size_notes(asked: Request, resolved: Request, start: tuple[int, int] | None) -> list[str]:
    """What to tell when the asked size, or the starting picture's, could not be kept."""
    factor = enlargement(asked, resolved)
    own = (round((resolved.width or 0) * factor), round((resolved.height or 0) * factor))
    if resolved.mask is not None and resolved.mask.only_masked:
        start = None
    wanted = (asked.width or (start or own)[0], asked.height or (start or own)[1])
    notes = []
    if factor > 1:
        notes.append(f"painted at {resolved.width}x{resolved.height} and enlarged {factor:g} times by the model")
    if wanted != own:
        notes.append(f"size {wanted[0]}x{wanted[1]} was rounded to {own[0]}x{own[1]}")
    return notes
