"""Fills in what a request leaves open, from the model's own defaults, and refuses what the model can't do.

Sizes above the model's own are painted at its own size and enlarged by its up-sampling decoder.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from gouache.diffusion.samplers.names import (
    a1111_schedule,
    default_guidance,
    resolve,
    resolve_schedule,
    sampler_info,
)
from gouache.errors import InvalidInput, unknown_name
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults, MMDiTConfig
from gouache.models.scheduler_config import SCHEDULER_CLASSES
from gouache.pipeline.fields.values import MAX_FACTOR, MIN_SIDE, OPAQUE, SURROUNDINGS
from gouache.pipeline.generate.a1111_procedure import A1111, follows, second_size
from gouache.pipeline.generate.draft import start_level, with_defaults
from gouache.pipeline.generate.guided import levels_of
from gouache.pipeline.generate.refiner import check_refiner, refiner_notes
from gouache.pipeline.generate.sampler_settings import check_sampler, check_steepness, sampler_notes
from gouache.pipeline.generate.savings import check_saving_sampler, fast_notes, with_fast
from gouache.pipeline.generate.scheduler_levels import scheduler_of
from gouache.pipeline.generate.upscaler_files import LANCZOS, OWN
from gouache.pipeline.inputs.images import References, nearest_size
from gouache.pipeline.inputs.start import ENLARGE, INSTRUCT, input_kind
from gouache.pipeline.possible import check_possible
from gouache.pipeline.prompts.regions import region_notes
from gouache.pipeline.prompts.syntax import adapter_tags
from gouache.pipeline.request import Hires, Prior, Procedure, Request, Upscale
from gouache.pipeline.unused import unused_notes


def at_own_size(request: Request, bundle: ModelBundle) -> Request:
    """The request with the model's own size and an enlargement behind, where it asks for more than that size.

    Only for pictures from words by a model that has an upscaler; `tiled` and `hires` paint at full size. The longer
    side of what is painted is the model's own. Beyond its scale the upscaler runs twice.

    Raises:
        InvalidInput: the asked size is over `MAX_FACTOR` times the own, or the model has no upscaler and one is asked
            for.
    """
    upscale = request.upscale
    if bundle.upscaler is not None and _is_plain(request):
        own = (bundle.defaults.width, bundle.defaults.height)
        asked = (request.width or own[0], request.height or own[1])
        # What rounds to the own size needs no enlargement.
        rounded = nearest_size(*asked, factor_of(bundle))
        fit = max(rounded[0] / own[0], rounded[1] / own[1])
        if fit > 1:
            factor = fit * (upscale.factor if upscale else 1.0)
            _check(asked, upscale, factor, own)
            width, height = (max(MIN_SIDE, round(side / fit)) for side in rounded)
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


def _check(asked: tuple[int, int], upscale: Upscale | None, factor: float, own: tuple[int, int]) -> None:
    if factor <= MAX_FACTOR + 1e-9:
        return
    more = f", enlarged {upscale.factor:g} times" if upscale else ""
    raise InvalidInput(
        "size",
        given=f"{asked[0]}x{asked[1]}{more}",
        expected=f"at most {max(own) * MAX_FACTOR} pixels a side: {MAX_FACTOR} times the {max(own)} that the model "
        "paints",
        cure=f"Paint with --size {max(own) * MAX_FACTOR} and enlarge the file by `gouache upscale`, or add --tiled, "
        "which paints at full size.",
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
    check_possible(request, bundle)
    if request.style is not None and bundle.styles and request.style not in bundle.styles:
        raise unknown_name("style", request.style, bundle.styles)
    settled = {"procedure": _procedure(request), "strength": _strength(request, bundle)}
    request = at_own_size(request, bundle).replace(settled)
    defaults = bundle.defaults
    sampler, schedule = _sampler_and_schedule(request, bundle)
    check_sampler(sampler, bundle)
    check_saving_sampler(request, sampler)
    _check_tiles(request, bundle)
    _check_transformer(request, bundle)
    check_refiner(request.replace({"sampler": sampler}), bundle)
    width, height = _latent_sized(_size(request, bundle, start), request, bundle)
    _check_grid(width, height, request, bundle)
    vary = request.subseed_strength > 0
    negative = request.negative_prompt if bundle.traits.zero_negative else request.negative_prompt or ""
    guidance = request.guidance_scale
    if guidance is None:
        guidance = default_guidance(sampler, defaults.guidance_scale)
    found = request.replace(
        {
            "model": request.model or bundle.name or bundle.family,
            "seed": secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
            "subseed": secrets.randbelow(DRAWN_SEEDS) if request.subseed is None and vary else request.subseed,
            "width": width,
            "height": height,
            "negative_prompt": negative,
            "background": _background(request, bundle),
            "noise_level": _noise_level(request, bundle),
            "num_inference_steps": _steps(request, bundle),
            "guidance_scale": guidance,
            "sampler": sampler,
            "schedule": schedule,
            "hires": _hires(request, bundle, width, height),
            "prior": None if bundle.prior is None else _prior(request, bundle),
        }
    )
    return with_fast(found, bundle)


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
    if request.outpaint is not None and start is not None:
        kept = nearest_size(*start, factor_of(bundle)) == (resolved.width, resolved.height)
        sizes = [] if kept else [GROWN]
    else:
        sizes = size_notes(request, resolved, start)
    if request.schedule is None and request.sigmas is None and start is None and start_level(resolved, bundle) == 0:
        # Who names a schedule, as every recipe does, is told and not refused.
        check_steepness(resolved, lambda: levels_of(resolved, bundle).sigmas)
    told = (*defaults_notes(request, resolved, bundle), *sampler_notes(request, resolved), *guidance_notes(resolved))
    told += tuple(fast_notes(request, resolved, bundle))
    left = (*refiner_notes(resolved), *region_notes(resolved, bundle), *unused_notes(resolved, bundle))
    return Resolved(resolved, (*sizes, *told, *left))


SMALLEST_SHARE = 8
"""A tile's side is at least the model's own divided by this."""


def _check_tiles(request: Request, bundle: ModelBundle) -> None:
    """Tiles of a few pixels hold nothing that a network knows, and thousands of them take minutes a step."""
    tile = None if request.tiled is None else request.tiled.tile
    own = min(bundle.defaults.width, bundle.defaults.height)
    least = max(own // SMALLEST_SHARE, bundle.vae.config.downscale)
    if tile is not None and tile < least:
        raise InvalidInput(
            "tiled.tile",
            given=f"{tile} pixels",
            expected=f"at least {least}: an {SMALLEST_SHARE}th of the {own} that the model paints",
            cure="Leave it out: tiles then have the model's own size.",
        )


def _check_transformer(request: Request, bundle: ModelBundle) -> None:
    """Refuse what a transformer in place of a U-Net has no convolutions for, and what its ControlNets can't."""
    asked = {
        "seamless": request.seamless != "none",
        "control.guess": any(one.guess for one in request.control),
        "control.preprocessor inpaint": any(one.preprocessor == "inpaint" for one in request.control),
        "control.control_type": any(one.control_type for one in request.control),
        "image_prompts": bool(request.image_prompts),
    }
    given = next((name for name, there in asked.items() if there), None)
    if given is not None and isinstance(bundle.unet.config, MMDiTConfig):
        raise InvalidInput(
            given,
            given=f"a value for {bundle.name or bundle.family}",
            expected="a model with a U-Net",
            cure="Leave it out, or choose a model of Stable Diffusion 1.x, 2.x or XL.",
        )


def _check_grid(width: int, height: int, request: Request, bundle: ModelBundle) -> None:
    """Refuse pictures beyond the places that a transformer knows."""
    config = bundle.unet.config
    if not isinstance(config, MMDiTConfig) or request.tiled is not None:
        return
    most = config.grid * config.patch_size * bundle.vae.config.downscale
    sizes = [(width, height), *([request.hires.size_for(width, height)] if request.hires else [])]
    over = next((size for size in sizes if max(size) > most), None)
    if over is not None:
        raise InvalidInput(
            "size",
            given=f"{over[0]}x{over[1]}",
            expected=f"at most {most} pixels a side: the places that {bundle.name or bundle.family} knows",
            cure="Take a smaller picture, add --tiled, or enlarge it by `gouache upscale`.",
        )


NOISE_LEVEL = 20
"""Noise on a small picture where a request leaves it open."""


def _noise_level(request: Request, bundle: ModelBundle) -> int | None:
    """The default for a model that enlarges a picture; whatever was asked for another, which isn't told it."""
    return NOISE_LEVEL if request.noise_level is None and input_kind(bundle) == ENLARGE else request.noise_level


def _size(request: Request, bundle: ModelBundle, start: tuple[int, int] | None) -> tuple[int, int]:
    """The asked size; else the starting picture's, unless only a masked part of it is worked on; else the model's."""
    own = (bundle.defaults.width, bundle.defaults.height)
    if start is not None and input_kind(bundle) == ENLARGE:
        start = (start[0] * bundle.vae.config.downscale, start[1] * bundle.vae.config.downscale)
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


def _hires(request: Request, bundle: ModelBundle, width: int, height: int) -> Hires | None:
    """The second pass with both sides where one was given; A1111's keeps one side, whose other is cut differently.

    It begins on the first pass and so takes as many steps as edits do, where those differ from the first pass's.
    """
    hires, steps = request.hires, bundle.defaults.num_inference_steps
    if hires is None:
        return None
    if hires.num_inference_steps is None and request.num_inference_steps is None and _steps(request, bundle) != steps:
        hires = hires.model_copy(update={"num_inference_steps": steps})
    if follows(request) or (hires.width is None) == (hires.height is None):
        return hires
    sides = hires.size_for(width, height)
    return hires.model_copy(update={"width": sides[0], "height": sides[1]})


def factor_of(bundle: ModelBundle) -> int:
    """What width and height in pixels are multiples of: the pixels of one latent, 8 for Stable Diffusion, or of one
    patch, 16 for Stable Diffusion 3."""
    return bundle.vae.config.downscale * bundle.unet.config.multiple


def _steps(request: Request, bundle: ModelBundle) -> int:
    """As many as a request with its strength asks for, or the model's: a number of their own for pictures that begin on
    their drafts."""
    defaults = bundle.defaults
    on_draft = defaults.prior_num_inference_steps if start_level(request, bundle) else None
    return request.num_inference_steps or on_draft or defaults.num_inference_steps


def _strength(request: Request, bundle: ModelBundle) -> float | None:
    if request.init_image is None or request.strength is not None or input_kind(bundle) in (INSTRUCT, ENLARGE):
        return request.strength
    return 1.0 if request.outpaint is not None or request.inversion is not None else 0.75


def _sampler_and_schedule(request: Request, bundle: ModelBundle) -> tuple[str, str]:
    name, schedule = _named(request, bundle)
    # A1111's own list for its name; those lists stand for themselves.
    if follows(request) and request.inversion is None:
        schedule = a1111_schedule(name, schedule)
    return name, schedule


def _named(request: Request, bundle: ModelBundle) -> tuple[str, str]:
    # Only samplers of ddim's family walk down the steps that an inversion walked up.
    default = bundle.defaults.sampler if request.inversion is None else "ddim"
    name, schedule = resolve(request.sampler or default)
    if request.schedule is not None:
        schedule = resolve_schedule(request.schedule)
    elif schedule is None and request.sampler is None:
        schedule = resolve_schedule(bundle.defaults.schedule)
        if schedule == "model" and request.inversion is not None:
            schedule = "uniform"
    elif schedule is None and bundle.schedule.path == "flow" and bundle.defaults.scheduler is not None:
        # A flow begins at noise alone, at an infinite sigma, where samplers' own lists would spend most of their steps.
        schedule = "model"
    elif schedule is None:
        schedule = sampler_info(name).default_schedule
    return name, _existing(schedule, name, bundle, request.schedule)


def _existing(schedule: str, sampler: str, bundle: ModelBundle, asked: str | None) -> str:
    """The schedule, where the model or the sampler has to bring it; `asked` is None if only the sampler's name says
    it."""
    if schedule.startswith("align_your_steps") and not bundle.traits.align_your_steps:
        raise InvalidInput(
            "schedule",
            given=f"{schedule!r} for {bundle.name or bundle.family}",
            expected="a model of Stable Diffusion 1.x, 2.x or XL, for which such levels were published",
            cure="Leave it out: the model's own levels are taken.",
        )
    if schedule not in ("model", "diffusers") or scheduler_of(sampler, schedule, bundle) is not None:
        return schedule
    listed = any(alias in SCHEDULER_CLASSES for alias in sampler_info(sampler).aliases)
    if schedule == "diffusers" and asked is None and not listed:
        return sampler_info(sampler).default_schedule
    if schedule == "model":
        own = resolve_schedule(bundle.defaults.schedule)
        return sampler_info(sampler).default_schedule if own == "model" else own
    raise InvalidInput(
        "schedule",
        given=f"'diffusers' for {sampler}",
        expected="a sampler that diffusers has a scheduler of, for this model's noise levels",
        cure="Choose another schedule; `gouache samplers` lists them.",
    )


def defaults_notes(asked: Request, resolved: Request, bundle: ModelBundle) -> list[str]:
    """What a request took from the model's scheduler file or another mark of few steps, and what of that gouache does
    otherwise; where only a name tells of few steps, that nothing was taken."""
    config, few_steps = bundle.defaults.scheduler, bundle.few_steps
    if few_steps is not None and few_steps.source == "name":
        settings = resolved.sampler or "", resolved.num_inference_steps or 1, resolved.guidance_scale or 0.0
        advice = few_steps.advice("the model") + "; a name changes nothing, set them in the request"
        named = [] if few_steps.fits(*settings) else [advice]
    else:
        named = []
    if config is None and (few_steps is None or not few_steps.sets_defaults):
        return named
    taken = _taken(asked, resolved, bundle)
    if not taken:
        return named
    source = f"the model's {config.class_name}" if config is not None else few_steps.told if few_steps else ""
    return [f"from {source}: {', '.join(taken)}", *bundle.notes, *named]


def _taken(asked: Request, resolved: Request, bundle: ModelBundle) -> list[str]:
    """Sampler, schedule, steps and guidance, as far as the request left them to the model."""
    defaults, taken = bundle.defaults, []
    if asked.sampler is None and asked.inversion is None:
        taken.append(f"sampler {resolved.sampler}")
    if resolved.schedule == "model" or (asked.sampler is None and asked.schedule is None and asked.inversion is None):
        taken.append(f"schedule {resolved.schedule}")
    own = bundle.traits.steps is not None  # of the family, whatever its scheduler
    if (
        not own
        and asked.num_inference_steps is None
        and defaults.num_inference_steps != GenerationDefaults().num_inference_steps
    ):
        taken.append(f"{resolved.num_inference_steps} step{'s' * (resolved.num_inference_steps != 1)}")
    if not own and asked.guidance_scale is None and defaults.guidance_scale != bundle.traits.guidance_scale:
        taken.append(f"guidance {resolved.guidance_scale:g}")
    return taken


def _prior(request: Request, bundle: ModelBundle) -> Prior:
    """Its options without gaps.

    A scenery gives way to a background that is asked for, and to a picture around; what is remembered to a LoRA, which
    may have taught the prior to draft otherwise.
    """
    own = bundle.defaults.of_a_tuned_prior() if adapter_tags(request.prompt) else bundle.defaults
    found = with_defaults(request.prior, own)
    free = request.background in (None, OPAQUE) and request.mask is None and request.outpaint is None
    if free or (request.prior is not None and request.prior.scenery is not None):
        return found
    return found.model_copy(update={"scenery": "drop"})


def _background(request: Request, bundle: ModelBundle) -> str | None:
    if bundle.vae.config.image_channels == 4:
        default = "transparent" if request.mask is None and request.outpaint is None else SURROUNDINGS
        return "white" if request.background == OPAQUE else request.background or default
    if request.background not in (None, OPAQUE, SURROUNDINGS):
        raise InvalidInput(
            "background",
            given=request.background,
            expected=f"nothing: {bundle.family} paints no transparency",
            cure="Leave it out, or describe the background in the prompt.",
        )
    return None


GROWN = "width and height were not used: outpainting grows the starting picture by its borders"
NO_PROMPT = "guidance_scale 0 paints the negative prompt alone; 1 leaves guidance off and keeps the prompt"


def guidance_notes(resolved: Request) -> list[str]:
    """What to tell of a guidance scale that is easily mistaken: diffusers' 0.0 means "off"."""
    return [NO_PROMPT] if resolved.guidance_scale == 0 else []


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
