"""From A1111's fields to a request; what can't be done is refused by the field's name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from gouache.diffusion.samplers.names import (
    SAMPLER_INFOS,
    default_guidance,
    resolve,
    resolve_schedule,
)
from gouache.errors import InvalidInput, ModelNotFound, NotFound, PictureError, UnknownName
from gouache.models.family import SDXL
from gouache.pipeline.fields.values import OPAQUE
from gouache.pipeline.output.a1111_text import EMPHASIS, HIRES_UPSCALERS, request_of
from gouache.pipeline.output.infotext import parse_infotext
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.request import Control, Request, ResizeMode
from gouache.serve.api.a1111.fields import GenerationBody, Img2Img, Txt2Img, decoded
from gouache.serve.api.a1111.server_options import Options, known_settings, options_of
from gouache.serve.api.a1111.tolerance import NOTHING, PLACEHOLDER, SD_UPSCALE, settled
from gouache.serve.api.a1111.units import controls_of, image_prompts_of
from gouache.serve.http.replies import in_words_of
from gouache.serve.models.facts import facts_of
from gouache.serve.store.presets import merged
from gouache.serve.studio import Studio

TAKES_ETA = {
    name
    for name, info in SAMPLER_INFOS.items()
    if info.stochastic == "yes" and name not in ("ddpm", "restart", "lcm", "er_sde")
} | {"ddim", "ddim_cfg_pp", "dpm_fast", "dpm_adaptive"}
TAKES_CHURN = {"euler", "heun", "dpm_2", "heunpp2"}
LEGACY_SAMPLER = "Euler"
RESIZE_MODES: dict[int, ResizeMode] = {0: "stretch", 1: "crop", 2: "pad"}
FILLS = {0: "fill", 1: "original", 2: "noise", 3: "nothing"}
UPSCALERS = {**HIRES_UPSCALERS, "model": "model", "Nearest": "lanczos"}
STOOD_IN_FOR = ("nearest",)
LATENT_RESIZE, CUT_AT, MOST_SKIPPED = 3, 128, 12
_OLD_SCHEDULES = {"_ka": "Karras", "_exp": "Exponential"}
_OLD_NAME = re.compile(r"(k_\w+?)(_ka|_exp)")
"""Names before samplers and schedules were two things: k_dpmpp_2m_ka."""

# Our name of a field -> A1111's, for errors.
NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "count": "batch_size",
    "width * height": "width",
    "count * steps * pixels": "batch_size",
    "strength": "denoising_strength",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "image_guidance_scale": "image_cfg_scale",
    "init_image": "init_images",
    "hires.scale": "hr_scale",
    "hires.width": "hr_resize_x",
    "hires.height": "hr_resize_y",
    "hires": "enable_hr",
    "hires.num_inference_steps": "hr_second_pass_steps",
    "hires.strength": "denoising_strength",
    "mask.blur": "mask_blur",
    "mask.padding": "inpaint_full_res_padding",
    "refiner": "refiner_checkpoint",
    "churn.amount": "s_churn",
    "churn.noise": "s_noise",
    "churn.sigma_min": "s_tmin",
    "churn.sigma_max": "s_tmax",
    "churn": "s_churn",
}


@dataclass(frozen=True, slots=True)
class MappedRequest:
    """What a body asks for: the request, and how to send the pictures."""

    request: Request
    kind: ImageKind
    quality: int
    notes: tuple[str, ...] = ()
    """What was ignored of the body."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keeps the pictures that a user sends with a request.

    Attributes:
        studio: where they are kept.
        owner: the user.
        sizes: width and height of what was kept, by its name.
    """

    studio: Studio
    owner: str
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, where: str, text: str) -> str:
        """The name, for a request, of a picture that the field `where` gives in base64."""
        data = decoded(where, text)
        try:
            name, facts = self.studio.attach(self.owner, data, where)
        except PictureError as error:
            raise InvalidInput(where, given=error.given, expected=error.expected, cure=error.cure) from error
        self.sizes[name] = (facts["width"], facts["height"])
        return name

    def fitted(self, where: str, name: str, size: tuple[int, int], mode: ResizeMode) -> str:
        """The name of what was kept as `name`, brought to a size."""
        wanted = {"where": where, "width": size[0], "height": size[1], "mode": mode}
        wanted["max_pixels"] = self.studio.upload_pixels
        data = self.studio.attachments.read(self.owner, name)
        _, png = self.studio.decoding.run(self.owner, "fitted", data, wanted)
        name = self.studio.attachments.keep(self.owner, png)
        self.sizes[name] = size
        return name


def order_of(body: Txt2Img | Img2Img, studio: Studio, owner: str) -> MappedRequest:
    """Translate a body.

    Raises:
        InvalidInput: a field that can't be served; `where` is its name.
        NotFound: no such sampler, or no starting picture.
    """
    body, notes = settled(body)
    overrides, ignored = known_settings(body.override_settings or {})
    notes += [f"override_settings.{name[:80]}: ignored" for name in ignored]
    options = options_of(studio, owner).overridden(overrides, studio)
    values = _common(body, studio, owner, options, notes)
    keep = Keep(studio, owner)
    values |= _txt2img(body, notes) if isinstance(body, Txt2Img) else _img2img(body, keep, notes)
    if values.get("mask") and values.get("procedure") == "a1111":
        values["mask"] |= {"threshold": None}  # which rounds by itself
    if body.infotext is not None:
        values = _from_infotext(body, values, studio)
    start = (values["init_image"], values["resize_mode"]) if isinstance(body, Img2Img) else None
    values["control"] = _controls(body, keep, start)
    values["image_prompts"] = image_prompts_of(body.alwayson_scripts or {}, keep, start) or None
    given = {name: value for name, value in values.items() if value is not None}
    with in_words_of(NAMES):
        request = Request.from_dict(given, where="request")
        return MappedRequest(request, options.kind, options.jpeg_quality, tuple(notes))


def _common(body: GenerationBody, studio: Studio, owner: str, options: Options, notes: list[str]) -> dict[str, Any]:
    sampler, schedule = _sampler(body)
    noise = options.noise()
    prompt, negative = _styled(body, studio, owner, notes)
    strength = body.subseed_strength or 0.0
    return {
        "prompt": prompt,
        "negative_prompt": negative or None,  # as that tool, which gives SDXL zeros then
        "model": options.model,
        "vae": options.vae,
        **_refiner(body, studio),
        "seed": _seed(body.seed),
        "subseed": _seed(body.subseed) if strength else None,
        "subseed_strength": strength,
        "count": (body.batch_size or 1) * (body.n_iter or 1),
        "width": body.width or 512,
        "height": body.height or 512,
        "num_inference_steps": body.steps or 50,
        "guidance_scale": default_guidance(sampler, 7.0) if body.cfg_scale is None else body.cfg_scale,
        "sampler": sampler,
        "schedule": schedule,
        "seamless": "both" if body.tiling else None,
        "clip_skip": _clip_skip(body, options, notes),
        "emphasis": EMPHASIS[options.emphasis],
        "background": body.background or OPAQUE,
        "size_condition": _sdxl_sizes(body, studio, options),
        **noise,
        **_randomness(body, sampler, notes),
    }


def _refiner(body: GenerationBody, studio: Studio) -> dict[str, Any]:
    """The second model; A1111's share of 1 never comes, and where none is said its page's 0.8 holds."""
    name, share = body.refiner_checkpoint, body.refiner_switch_at
    if name is None or name in NOTHING or (share is not None and share >= 1):
        return {}
    try:
        studio.catalog.find(name)
    except ModelNotFound as error:
        where = "refiner_checkpoint"
        raise InvalidInput(where, given=error.given, expected=error.expected, cure=error.cure) from error
    return {"refiner": name, "refiner_switch_at": share}


def _sdxl_sizes(body: GenerationBody, studio: Studio, options: Options) -> dict[str, int | float] | None:
    """The settings that only SDXL's models read; as in that tool, others are told nothing."""
    if facts_of(studio.catalog.find(options.model)).family != SDXL.label:
        return None
    return options.sdxl_sizes(refined=bool(_refiner(body, studio))) or None


def _seed(value: int | None) -> int | None:
    return None if value in (None, -1) else value


def _clip_skip(body: GenerationBody, options: Options, notes: list[str]) -> int | None:
    """The setting's layer, else that of the field which some of A1111's relatives have."""
    asked = body.clip_skip or 1
    if options.clip_skip > 1 or "CLIP_stop_at_last_layers" in (body.override_settings or {}):
        return options.clip_skip if options.clip_skip > 1 else None
    if asked != int(asked) or not 1 <= asked <= MOST_SKIPPED:
        notes.append(f"clip_skip: ignored, {asked:g} is no layer from 1 to {MOST_SKIPPED}")
        return None
    return int(asked) if asked > 1 else None


def _sampler(body: GenerationBody) -> tuple[str, str | None]:
    named = (name for name in (body.sampler_name, body.sampler_index) if name and name not in NOTHING)
    name = next(named, LEGACY_SAMPLER)
    old = _OLD_NAME.fullmatch(name.strip().lower())
    name = f"{old[1]} {_OLD_SCHEDULES[old[2]]}" if old else name
    try:
        sampler, schedule = resolve(name)
    except UnknownName as error:
        raise NotFound("sampler_name", given=repr(name), expected=error.expected, cure="Sampler not found") from error
    if (body.scheduler or "").strip().casefold() in ("", "automatic", "none", "default", PLACEHOLDER):
        return sampler, schedule
    try:
        return sampler, resolve_schedule(body.scheduler or "")
    except UnknownName as error:
        raise InvalidInput("scheduler", given=error.given, expected=error.expected, cure=error.cure) from error


def _randomness(body: GenerationBody, sampler: str, notes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if body.eta is not None and sampler in TAKES_ETA:
        values["eta"] = body.eta
    elif body.eta not in (None, 0.0, 1.0):
        notes.append(f"eta: ignored, {sampler} takes none")
    churns = bool(body.s_churn) and sampler in TAKES_CHURN
    if churns:
        values["churn"] = {
            "amount": body.s_churn,
            "sigma_min": body.s_tmin or 0.0,
            "sigma_max": None if body.s_tmax in (None, 0, math.inf) else body.s_tmax,
            "noise": 1.0 if body.s_noise is None else body.s_noise,
        }
    elif body.s_churn:
        notes.append(f"s_churn: ignored, {sampler} takes no churn")
    if body.s_noise not in (None, 1.0) and not churns:
        notes.append("s_noise: ignored without s_churn")
    return values


def _styled(body: GenerationBody, studio: Studio, owner: str, notes: list[str]) -> tuple[str, str]:
    """A1111's rule: `{prompt}` in a style stands for the prompt, else the style is added after a comma; one that nobody
    wrote adds nothing."""
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    known = studio.presets.styles(owner) if body.styles else {}
    for style in body.styles or []:
        if style not in known:
            notes += [] if style.strip() in NOTHING else [f"styles: ignored, there is no style {style[:80]!r}"]
            continue
        prompt, negative = merged(known[style][0], prompt), merged(known[style][1], negative)
    return prompt, negative


def _txt2img(body: Txt2Img, notes: list[str]) -> dict[str, Any]:
    if not body.enable_hr:
        return {}
    size = _second_size(body)
    if size == (body.width or 512, body.height or 512):
        notes.append("enable_hr: ignored, the second pass would have the size of the first")
        return {}
    asked = (body.hr_upscaler or "Latent").strip()
    upscaler = {name.casefold(): ours for name, ours in UPSCALERS.items()}.get(asked.casefold())
    if upscaler is None:
        raise InvalidInput("hr_upscaler", given=repr(body.hr_upscaler), expected=f"one of {', '.join(UPSCALERS)}")
    if asked.casefold() in STOOD_IN_FOR:
        notes.append(f"hr_upscaler: {upscaler} stands in for {asked}")
    hires = {
        "scale": body.hr_scale if size is None else None,
        "width": size[0] if size else body.hr_resize_x or None,
        "height": size[1] if size else body.hr_resize_y or None,
        "upscaler": upscaler,
        "strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
        "num_inference_steps": body.hr_second_pass_steps or None,
    }
    return {"hires": {name: value for name, value in hires.items() if value is not None}}


def _second_size(body: Txt2Img) -> tuple[int, int] | None:
    """The second pass's size, where it isn't a scale above 1."""
    if body.hr_resize_x and body.hr_resize_y:
        return body.hr_resize_x, body.hr_resize_y
    scale = 2.0 if body.hr_scale is None else body.hr_scale
    if body.hr_resize_x or body.hr_resize_y or not 0 < scale <= 1:
        return None
    return int((body.width or 512) * scale), int((body.height or 512) * scale)


def _img2img(body: Img2Img, keep: Keep, notes: list[str]) -> dict[str, Any]:
    if not body.init_images:
        raise NotFound("init_images", given="none", expected="one picture", cure="Init image not found")
    if len(body.init_images) > 1:
        raise InvalidInput("init_images", given=f"{len(body.init_images)} pictures", expected="one")
    if body.resize_mode not in (None, *RESIZE_MODES, LATENT_RESIZE):
        raise InvalidInput("resize_mode", given=body.resize_mode, expected="0, 1, 2 or 3")
    if body.resize_mode == LATENT_RESIZE:
        notes.append("resize_mode: the picture is resized instead of its latents")
    values: dict[str, Any] = {
        "init_image": keep("init_images", body.init_images[0]),
        "resize_mode": RESIZE_MODES.get(body.resize_mode or 0, "stretch"),
        "strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
    }
    if body.image_cfg_scale not in (None, 0, 1.5):
        # 1.5 is what clients send unasked, and what instruct models take without being told.
        values["image_guidance_scale"] = body.image_cfg_scale
    if body.mask:
        values["mask"] = _mask(body, keep, notes)
        if not values["mask"]["only_masked"]:
            values["init_image"] = _at_asked_size(body, keep, "init_images", values["init_image"])
            values["mask"] |= {"image": _at_asked_size(body, keep, "mask", values["mask"]["image"])}
    if (body.script_name or "").strip().lower() == SD_UPSCALE:
        values |= _sd_upscale(body, keep.sizes[values["init_image"]], notes)
    return values


def _at_asked_size(body: Img2Img, keep: Keep, where: str, name: str) -> str:
    """A starting picture or its mask as large as was asked: pixels outside a mask stay, and so does their number."""
    size = (body.width or 512, body.height or 512)
    if keep.sizes[name] == size or size[0] * size[1] > keep.studio.settings.limits.pixels:
        return name  # What is too large, admission refuses.
    return keep.fitted(where, name, size, RESIZE_MODES.get(body.resize_mode or 0, "stretch"))


def _sd_upscale(body: Img2Img, size: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    """A1111's built-in script: the picture enlarged, then painted over in overlapping tiles of the asked size.

    Its arguments: a text for the page, pixels of overlap, an upscaler's number or name, the factor.
    """
    _, overlap, upscaler, factor = (*(body.script_args or []), *_SD_UPSCALE_DEFAULTS[len(body.script_args or []) :])[:4]
    numbers = (overlap, factor)
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in numbers) or not 0 < factor <= 8:
        raise InvalidInput(
            "script_args", given=repr(body.script_args)[:80], expected="[text, overlap, upscaler, factor]"
        )
    if str(upscaler).casefold() not in ("lanczos", "none", "0", "1"):
        notes.append(f"script_args: Lanczos stands in for {str(upscaler)[:40]}")
    width, height = size
    tile = max(body.width or 512, body.height or 512)
    return {
        "width": round(width * factor),
        "height": round(height * factor),
        "tiled": {"tile": tile, "overlap": min(max(overlap / tile, 0.0), 0.9)},
    }


_SD_UPSCALE_DEFAULTS: tuple[object, ...] = ("", 64, "None", 2.0)


def _mask(body: Img2Img, keep: Keep, notes: list[str]) -> dict[str, Any]:
    blur_x, blur_y = (
        (body.mask_blur, body.mask_blur)
        if body.mask_blur is not None
        else (4 if body.mask_blur_x is None else body.mask_blur_x, 4 if body.mask_blur_y is None else body.mask_blur_y)
    )
    if blur_x != blur_y:
        notes.append(f"mask_blur_x, mask_blur_y: both {round((blur_x + blur_y) / 2)}, their mean")
    if body.inpainting_fill not in (None, *FILLS):
        raise InvalidInput("inpainting_fill", given=body.inpainting_fill, expected="0 to 3")
    return {
        "image": keep("mask", body.mask or ""),
        "blur": blur_x if blur_x == blur_y else round((blur_x + blur_y) / 2),
        "fill": FILLS[body.inpainting_fill or 0],
        "invert": bool(body.inpainting_mask_invert),
        "only_masked": body.inpaint_full_res is None or bool(body.inpaint_full_res),
        "padding": body.inpaint_full_res_padding or 0,
        # Rounding is A1111's default; only who asks for it by name doesn't want the grey that was painted.
        "threshold": CUT_AT if body.mask_round and "mask_round" in body.model_fields_set else None,
    }


def _controls(body: GenerationBody, keep: Keep, start: tuple[str, ResizeMode] | None) -> list[Control] | None:
    scripts = body.alwayson_scripts or {}
    return controls_of(scripts, keep, start) or None


def _from_infotext(body: GenerationBody, values: dict[str, Any], studio: Studio) -> dict[str, Any]:
    """Fields that the body doesn't name come from the text."""
    read = request_of(parse_infotext(body.infotext or ""), "infotext")
    found = {name: getattr(read, name) for name in read.model_fields_set if name != "model"}
    if read.refiner is not None and not _is_known(read.refiner, studio):
        found = {name: value for name, value in found.items() if not name.startswith("refiner")}
    named = {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "subseed": "subseed",
        "subseed_strength": "subseed_strength",
        "width": "width",
        "height": "height",
        "guidance_scale": "cfg_scale",
        "num_inference_steps": "steps",
        "sampler": "sampler_name",
        "schedule": "scheduler",
        "seamless": "tiling",
        "eta": "eta",
        "hires": "enable_hr",
        "refiner": "refiner_checkpoint",
    }
    kept = {name: value for name, value in values.items() if named.get(name, name) in body.model_fields_set}
    own = ["init_image", "strength", "mask", "resize_mode"]
    if body.override_settings and {"randn_source", "eta_noise_seed_delta"} & set(body.override_settings):
        own += ["determinism", "procedure", "eta_noise_seed_delta"]
    always: dict[str, Any] = {name: values[name] for name in own if name in values}
    return {**values, **found, **kept, **always}


def _is_known(model: str, studio: Studio) -> bool:
    try:
        studio.catalog.find(model)
    except ModelNotFound:
        return False
    return True
