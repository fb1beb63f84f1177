"""From A1111's fields to a request; what can't be done is refused by the field's name."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from gouache.diffusion.samplers.names import SAMPLER_INFOS, resolve, resolve_schedule
from gouache.errors import InvalidInput, NotFound, PictureError, UnknownName
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.output.a1111_text import parse_infotext, request_of
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.request import Control, Request, ResizeMode
from gouache.serve.api.a1111.fields import GenerationBody, Img2Img, Txt2Img
from gouache.serve.api.a1111.server_options import Options, options_of
from gouache.serve.api.a1111.units import TITLE, controls_of
from gouache.serve.http.replies import in_words_of
from gouache.serve.studio import Studio

TAKES_ETA = {
    name for name, info in SAMPLER_INFOS.items() if info.stochastic == "yes" and name not in ("ddpm", "restart", "lcm")
} | {"ddim"}
TAKES_CHURN = {"euler", "heun", "dpm_2"}
LEGACY_SAMPLER = "Euler"
RESIZE_MODES: dict[int, ResizeMode] = {0: "stretch", 1: "crop", 2: "pad"}
FILLS = {0: "fill", 1: "original", 2: "noise", 3: "nothing"}
HIRES_UPSCALERS = {
    "Latent": "latent",
    "Latent (antialiased)": "latent-antialiased",
    "Latent (bicubic)": "latent-bicubic",
    "Latent (bicubic antialiased)": "latent-bicubic-antialiased",
    "Latent (nearest)": "latent-nearest",
    "Latent (nearest-exact)": "latent-nearest-exact",
    "Lanczos": "lanczos",
    "model": "model",
}

# Fields without a counterpart, and the values that ask for nothing. Null always asks for nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "restore_faces": (False,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "s_min_uncond": (0,),
    "refiner_checkpoint": ("", "None"),
    "refiner_switch_at": (0, 1),
    "disable_extra_networks": (False,),
    "comments": ({},),
    "firstpass_image": ("",),
    "distilled_cfg_scale": (3.5,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "hr_cfg": (1,),
    "hr_distilled_cfg": (3.5,),
    "hr_additional_modules": ([], ["Use same choices"]),
    "mask_round": (True,),
    "initial_noise_multiplier": (1,),
    "latent_mask": ("",),
}

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


def order_of(body: Txt2Img | Img2Img, studio: Studio, owner: str) -> MappedRequest:
    """Translate a body.

    Raises:
        InvalidInput: a field that can't be served; `where` is its name.
        NotFound: no such sampler, or no starting picture.
    """
    _refuse_unserved(body)
    options = options_of(studio, owner).overridden(body.override_settings or {}, studio)
    values = _common(body, studio, owner, options)
    values |= _txt2img(body) if isinstance(body, Txt2Img) else _img2img(body, studio)
    if body.infotext is not None:
        values = _from_infotext(body, values)
    start = (values["init_image"], values["resize_mode"]) if isinstance(body, Img2Img) else None
    values["control"] = _controls(body, studio, start)
    given = {name: value for name, value in values.items() if value is not None}
    with in_words_of(NAMES):
        return MappedRequest(Request.from_dict(given, where="request"), options.kind, options.jpeg_quality)


def _refuse_unserved(body: GenerationBody) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise _unserved(name, value)
    if body.script_name not in (None, "", "None"):
        raise InvalidInput(
            "script_name",
            given=repr(body.script_name),
            expected="nothing",
            cure=f"Script {body.script_name!r} not found",
        )
    for name, script in (body.alwayson_scripts or {}).items():
        if name.lower() != TITLE and _is_on(script):
            raise InvalidInput(
                f"alwayson_scripts.{name}", given="a script", expected="none", cure=f"always on script {name} not found"
            )


def _is_on(script: object) -> bool:
    """Whether an always-on script asks for anything: `args` that are empty, false or not enabled do not."""
    args = script.get("args", []) if isinstance(script, dict) else script
    units = args if isinstance(args, list) else [args]
    return any(unit.get("enabled", True) if isinstance(unit, dict) else unit for unit in units)


def _unserved(name: str, value: object) -> InvalidInput:
    return InvalidInput(
        name, given=repr(value)[:80], expected="nothing: this server can't do it", cure="Leave the field out."
    )


def _common(body: GenerationBody, studio: Studio, owner: str, options: Options) -> dict[str, Any]:
    sampler, schedule = _sampler(body)
    prompt, negative = _styled(body, studio, owner)
    strength = body.subseed_strength or 0.0
    return {
        "prompt": prompt,
        "negative_prompt": negative,
        "model": options.model,
        "seed": _seed(body.seed),
        "subseed": _seed(body.subseed) if strength else None,
        "subseed_strength": strength,
        "count": (body.batch_size or 1) * (body.n_iter or 1),
        "width": body.width or 512,
        "height": body.height or 512,
        "num_inference_steps": body.steps or 50,
        "guidance_scale": 7.0 if body.cfg_scale is None else body.cfg_scale,
        "sampler": sampler,
        "schedule": schedule,
        "seamless": "both" if body.tiling else None,
        "clip_skip": options.clip_skip if options.clip_skip > 1 else None,
        **options.noise(),
        **_randomness(body, sampler),
    }


def _seed(value: int | None) -> int | None:
    return None if value in (None, -1) else value


def _sampler(body: GenerationBody) -> tuple[str, str | None]:
    name = body.sampler_name or body.sampler_index or LEGACY_SAMPLER
    try:
        sampler, schedule = resolve(name)
    except UnknownName as error:
        raise NotFound("sampler_name", given=repr(name), expected=error.expected, cure="Sampler not found") from error
    if body.scheduler in (None, "", "automatic", "Automatic"):
        return sampler, schedule
    try:
        return sampler, resolve_schedule(body.scheduler or "")
    except UnknownName as error:
        raise InvalidInput("scheduler", given=error.given, expected=error.expected, cure=error.cure) from error


def _randomness(body: GenerationBody, sampler: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if body.eta is not None and sampler in TAKES_ETA:
        values["eta"] = body.eta
    elif body.eta not in (None, 0.0, 1.0):
        raise InvalidInput("eta", given=body.eta, expected=f"nothing: {sampler} takes no eta")
    if body.s_churn:
        if sampler not in TAKES_CHURN:
            raise InvalidInput("s_churn", given=body.s_churn, expected=f"nothing: {sampler} takes no churn")
        values["churn"] = {
            "amount": body.s_churn,
            "sigma_min": body.s_tmin or 0.0,
            "sigma_max": body.s_tmax or None,
            "noise": 1.0 if body.s_noise is None else body.s_noise,
        }
    elif body.s_noise not in (None, 1.0):
        raise InvalidInput("s_noise", given=body.s_noise, expected="1, or s_churn above 0")
    return values


def _styled(body: GenerationBody, studio: Studio, owner: str) -> tuple[str, str]:
    """A1111's rule: `{prompt}` in a style stands for the prompt, else the style is added after a comma."""
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    known = studio.presets(owner) if body.styles else {}
    for style in body.styles or []:
        if style not in known:
            raise InvalidInput("styles", given=repr(style), expected=f"one of {', '.join(known) or '(no styles yet)'}")
        prompt, negative = _merged(known[style][0], prompt), _merged(known[style][1], negative)
    return prompt, negative


def _merged(style: str, text: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", text)
    return ", ".join(part.strip() for part in (text, style) if part.strip())


def _txt2img(body: Txt2Img) -> dict[str, Any]:
    if not body.enable_hr:
        return {}
    upscaler = HIRES_UPSCALERS.get(body.hr_upscaler or "Latent")
    if upscaler is None:
        raise InvalidInput("hr_upscaler", given=repr(body.hr_upscaler), expected=f"one of {', '.join(HIRES_UPSCALERS)}")
    hires = {
        "scale": body.hr_scale,
        "width": body.hr_resize_x or None,
        "height": body.hr_resize_y or None,
        "upscaler": upscaler,
        "strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
        "num_inference_steps": body.hr_second_pass_steps or None,
    }
    return {"hires": {name: value for name, value in hires.items() if value is not None}}


def _img2img(body: Img2Img, studio: Studio) -> dict[str, Any]:
    if not body.init_images:
        raise NotFound("init_images", given="none", expected="one picture", cure="Init image not found")
    if len(body.init_images) > 1:
        raise InvalidInput("init_images", given=f"{len(body.init_images)} pictures", expected="one")
    if body.resize_mode not in (None, *RESIZE_MODES):
        raise InvalidInput("resize_mode", given=body.resize_mode, expected="0, 1 or 2")
    values: dict[str, Any] = {
        "init_image": attach(studio, "init_images", body.init_images[0]),
        "resize_mode": RESIZE_MODES[body.resize_mode or 0],
        "strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
    }
    if body.image_cfg_scale not in (None, 1.5):
        # 1.5 is what clients send unasked, and what instruct models take without being told.
        values["image_guidance_scale"] = body.image_cfg_scale
    if body.mask:
        values["mask"] = _mask(body, studio)
    return values


def _mask(body: Img2Img, studio: Studio) -> dict[str, Any]:
    blur_x, blur_y = (
        (body.mask_blur, body.mask_blur)
        if body.mask_blur is not None
        else (4 if body.mask_blur_x is None else body.mask_blur_x, 4 if body.mask_blur_y is None else body.mask_blur_y)
    )
    if blur_x != blur_y:
        raise InvalidInput("mask_blur_y", given=blur_y, expected=f"mask_blur_x, which is {blur_x}")
    if body.inpainting_fill not in (None, *FILLS):
        raise InvalidInput("inpainting_fill", given=body.inpainting_fill, expected="0 to 3")
    return {
        "image": attach(studio, "mask", body.mask or ""),
        "blur": blur_x,
        "fill": FILLS[body.inpainting_fill or 0],
        "invert": bool(body.inpainting_mask_invert),
        "only_masked": body.inpaint_full_res is None or bool(body.inpaint_full_res),
        "padding": body.inpaint_full_res_padding or 0,
    }


def _controls(body: GenerationBody, studio: Studio, start: tuple[str, ResizeMode] | None) -> list[Control] | None:
    scripts = body.alwayson_scripts or {}
    return controls_of(scripts, lambda field, text: attach(studio, field, text), start) or None


def attach(studio: Studio, field: str, text: str) -> str:
    """Keep a picture that came in base64; gives its name for a request."""
    data = decoded(field, text)
    try:
        read_picture(data, where=field, max_pixels=4 * studio.settings.limits.pixels)
    except PictureError as error:
        raise InvalidInput(field, given=error.given, expected=error.expected, cure=error.cure) from error
    return studio.file_store.attach(data)


def decoded(field: str, text: str) -> bytes:
    """Bytes from base64, with or without a `data:` head.

    Raises:
        InvalidInput: no base64; an address is never fetched.
    """
    if text[:8].lower().startswith(("http://", "https://", "file:", "ftp:")):
        raise InvalidInput(field, given="an address", expected="a picture in base64", cure="Requests not allowed")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, given=str(error), expected="a picture in base64") from error


def _from_infotext(body: GenerationBody, values: dict[str, Any]) -> dict[str, Any]:
    """Fields that the body doesn't name come from the text."""
    read = request_of(parse_infotext(body.infotext or ""), "infotext")
    found = {name: getattr(read, name) for name in read.model_fields_set if name != "model"}
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
    }
    kept = {name: value for name, value in values.items() if named.get(name, name) in body.model_fields_set}
    own = ["init_image", "strength", "mask", "resize_mode"]
    if body.override_settings and {"randn_source", "eta_noise_seed_delta"} & set(body.override_settings):
        own += ["determinism", "procedure", "eta_noise_seed_delta"]
    always: dict[str, Any] = {name: values[name] for name in own if name in values}
    return {**values, **found, **kept, **always}
