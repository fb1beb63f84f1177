"""What a model can't do, and is refused before anything is worked out."""

from __future__ import annotations

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.guiders import check_guiders
from gouache.pipeline.generate.savings import check_savings
from gouache.pipeline.inputs.start import ENLARGE, input_kind
from gouache.pipeline.prompts.regions import check_regions
from gouache.pipeline.prompts.syntax import adapter_tags, refuse_tags, without_tags
from gouache.pipeline.request import Request


def check_possible(request: Request, bundle: ModelBundle) -> None:
    """See that a request asks for nothing that the model can't do.

    Raises:
        UnknownName: an adapter's tag that can't be read.
        InvalidInput: something this model can't do.
    """
    _check_tags(request)
    _check_prior(request, bundle)
    _check_control(request, bundle)
    _check_enlarging(request, bundle)
    _check_image_prompts(request, bundle)
    _check_sdxl(request, bundle)
    check_guiders(request, bundle)
    check_savings(request, bundle)
    check_regions(request, bundle)


def _check_tags(request: Request) -> None:
    """Tags stand in the prompt; anywhere else the picture would silently lack what they name."""
    tags = adapter_tags(request.prompt)
    refuse_tags(request.negative_prompt or "", "negative_prompt")
    refuse_tags(request.prompt_2 or "", "prompt_2")
    refuse_tags(request.negative_prompt_2 or "", "negative_prompt_2")
    refuse_tags(request.prompt_3 or "", "prompt_3")
    refuse_tags(request.negative_prompt_3 or "", "negative_prompt_3")
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


def _check_sdxl(request: Request, bundle: ModelBundle) -> None:
    """Refuse what only SDXL and SD 3 models read, by another model."""
    sizes = request.size_condition
    scores = sizes is not None and (sizes.aesthetic_score, sizes.negative_aesthetic_score) != (None, None)
    models = [bundle] if bundle.refiner is None else [bundle, bundle.refiner]
    two, numbers = len(bundle.text.encoders) == 2, max(one.size_numbers for one in models)
    second, third = "models with two CLIP text encoders (SDXL, SD 3)", "SD 3 models that have their T5"
    t5 = bundle.text.t5 is not None
    wanted = (
        ("prompt_2", request.prompt_2 is not None, two, second),
        ("negative_prompt_2", request.negative_prompt_2 is not None, two, second),
        ("prompt_3", request.prompt_3 is not None, t5, third),
        ("negative_prompt_3", request.negative_prompt_3 is not None, t5, third),
        ("max_sequence_length", request.max_sequence_length is not None, bundle.text.joint is not None, "SD 3 models"),
        ("size_condition", sizes is not None, numbers > 0, "SDXL models"),
        ("size_condition.aesthetic_score", scores, any(one.takes_aesthetic_score for one in models), "SDXL's refiner"),
    )
    for name, given, can, whose in wanted:
        if given and not can:
            raise InvalidInput(
                name,
                given=f"a value for {bundle.name or bundle.family}",
                expected=f"nothing: it belongs to {whose}",
                cure="Leave it out.",
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


def _check_enlarging(request: Request, bundle: ModelBundle) -> None:
    """A model that enlarges a picture does nothing else."""
    if input_kind(bundle) != ENLARGE:
        return
    if request.noise_level is not None and request.noise_level >= bundle.noise_levels:
        levels = bundle.noise_levels
        raise InvalidInput("noise_level", given=request.noise_level, expected=f"below {levels}, as this model knows")
    groups = ("mask", "outpaint", "inversion", "interpolation", "hires")
    clash = next((name for name in groups if getattr(request, name) is not None), None)
    if clash:
        raise InvalidInput(
            clash,
            given="a model that enlarges pictures",
            expected="no more than init_image, which it enlarges whole",
            cure="Leave it out, or use a model that paints.",
        )


def _check_image_prompts(request: Request, bundle: ModelBundle) -> None:
    """Refuse image prompts where nothing reads them, and a model that paints variations without one."""
    own = [one for one in request.image_prompts if one.adapter is None]
    alone = not bundle.reads_texts
    if alone:
        _check_no_words(request)
    if (bundle.picture_width or alone) and not own:
        raise InvalidInput(
            "image_prompts",
            given="no picture",
            expected=f"one: this {'' if alone else 'unCLIP '}model paints variations of a picture",
            cure="Name it: --image-prompt FILE.",
        )
    if not request.image_prompts:
        return
    clashes = {
        "outpaint": request.outpaint is not None,
        "inversion": (bundle.picture_width > 0 or alone) and request.inversion is not None,
        "an instruct model": bundle.prior is None
        and bundle.unet.config.draft_channels == bundle.vae.config.latent_channels,
    }
    clash = next((name for name, there in clashes.items() if there), None)
    if clash:
        raise InvalidInput(
            "image_prompts",
            given=f"a picture and {clash}",
            expected="one or the other",
            cure="Extend the picture yourself, and paint the new part with --mask."
            if clash == "outpaint"
            else "Leave one out.",
        )
    _check_own_pictures(request, bundle)


def _check_no_words(request: Request) -> None:
    """Refuse words where no text encoder reads them; tags of adapters are no words."""
    words = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "style", "regions")}
    if request.interpolation is not None:
        words["interpolation.prompt"] = request.interpolation.prompt
    for name, given in words.items():
        if without_tags(given).strip() if isinstance(given, str) else given:
            raise InvalidInput(
                name,
                given="words",
                expected="none: this model has no text encoder, and paints variations of a picture",
                cure="Leave it empty, or use a model that paints from words.",
            )


def _check_own_pictures(request: Request, bundle: ModelBundle) -> None:
    """Refuse pictures without an adapter that the model can't read by itself."""
    own = [one for one in request.image_prompts if one.adapter is None]
    if own and not bundle.takes_pictures:
        raise InvalidInput(
            f"image_prompts[{request.image_prompts.index(own[0])}].adapter",
            given="none",
            expected=f"the name of an IP-Adapter: {bundle.name or bundle.family} reads no pictures by itself",
            cure="gouache models lists those that are there.",
        )
    masked = any(one.mask is not None for one in own)
    if len(own) > 1 or masked or any(len(one.images) > 1 for one in own):
        raise InvalidInput(
            "image_prompts",
            given="a mask" if masked else "several pictures without an adapter",
            expected="one picture as a whole: a model without an adapter reads one vector",
            cure="Use an IP-Adapter for more.",
        )
