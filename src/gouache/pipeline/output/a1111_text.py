"""What the `parameters` text that A1111 writes into pictures says of a request, both ways.

The complete request travels beside it as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gouache.diffusion.samplers.names import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import ConfigError, RecipeError
from gouache.pipeline.output.guider_texts import guiders_of_text, texts_of_guiders
from gouache.pipeline.output.infotext import Infotext
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import MAX_SEED, Emphasis, Request, guidance_of_diffusers

OWN_NOISE = "gouache"
"""What RNG says of noise that is none of A1111's."""
_BY_A1111 = re.compile(r"(f[\d.]+(v\d-)?)?v[01]\.\d|1\.|f[012]\.|neo|classic")
"""Versions of A1111 (v1.10.1) and of Forge and its kin (f2.0.1v1.10.1)."""

EMPHASIS: dict[str, Emphasis] = {"None": "none", "Ignore": "ignore", "Original": "a1111", "No norm": "no_norm"}
"""A1111's words for its emphasis rules. Its Original is ours of its name: kept where there is a mean to keep."""
_EMPHASIS = {"comfy": "Comfy", "none": "None", "ignore": "Ignore", "no_norm": "No norm"}
_RNG = {"a1111": None, "cpu": "CPU", "exact": OWN_NOISE, "portable": OWN_NOISE}
"""Level -> source of noise in A1111's words, whose usual one, the GPU's, is not written."""
_FILLS = {"original": None, "fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}
_UPSCALERS = {
    "latent": "Latent",
    "latent-antialiased": "Latent (antialiased)",
    "latent-bicubic": "Latent (bicubic)",
    "latent-bicubic-antialiased": "Latent (bicubic antialiased)",
    "latent-nearest": "Latent (nearest)",
    "latent-nearest-exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
}
HIRES_UPSCALERS = {
    **{label: name for name, label in _UPSCALERS.items()},
    "None": "lanczos",
}
"""A1111's label -> our name. Its `None` resizes with Lanczos."""

_A1111_LISTS = {
    "align_your_steps_11": "Align Your Steps",
    "kl_optimal_to_min": "KL Optimal",
    "leading_to_first": "DDIM",
    "uniform_to_min": None,
}
"""What A1111 calls lists that are its own; its UniPC names none."""


def infotext_of(recipe: Recipe) -> Infotext:
    """The recipe in A1111's words and order; what that tool has no word for stands in the JSON only."""
    request = recipe.request
    info = SAMPLER_INFOS.get(request.sampler or "")
    schedule = SCHEDULE_INFOS.get(request.schedule or "")
    listed = schedule.label if schedule else request.schedule
    if request.procedure == "a1111":
        listed = _A1111_LISTS.get(request.schedule or "", listed)
    values: dict[str, object | None] = {
        "Steps": request.num_inference_steps,
        "Sampler": info.label if info else request.sampler,
        "Schedule type": listed,
        "CFG scale": request.guidance_scale,
        "Image CFG scale": request.image_guidance_scale,
        "Seed": request.seed,
        "Size": "{}x{}".format(*_first_size(request)),
        "Model hash": recipe.model.sha256[:10] if recipe.model.sha256 else None,
        "Model": recipe.model.name or None,
        **_refiner_values(recipe),
        "Variation seed": request.subseed if request.subseed_strength else None,
        "Variation seed strength": request.subseed_strength or None,
        "Denoising strength": _denoised(request),
        "Clip skip": request.clip_skip if (request.clip_skip or 1) > 1 else None,
        "Prompt 2": request.prompt_2,
        "Negative prompt 2": request.negative_prompt_2,
        "Size condition": _sizes(request),
        "ENSD": request.eta_noise_seed_delta or None,
        "RNG": _RNG[request.determinism],
        "Determinism": request.determinism if request.determinism == "cpu" else None,
        "Procedure": request.procedure if request.determinism != request.procedure else None,
        "Tiling": "True" if request.seamless == "both" else None,
        **_hires_values(request),
        **_mask_values(request),
        **_control_values(recipe),
        "Eta": request.eta,
        "Lora hashes": _hashes(recipe, "lora"),
        "TI hashes": _hashes(recipe, "textual-inversion"),
        "Token merging ratio": request.token_merging or None,
        "Emphasis": _EMPHASIS.get(request.emphasis),
        **texts_of_guiders(request),
        "Version": f"gouache {recipe.versions.get('gouache', '')}".strip(),
    }
    return Infotext(request.prompt, request.negative_prompt or "", _texts(values))


def _sizes(request: Request) -> str | None:
    """What SDXL is told of sizes and beauty, as JSON; A1111 has settings for some of it and writes none."""
    sizes = request.size_condition
    return None if sizes is None else json.dumps(sizes.model_dump(mode="json", exclude_defaults=True))


def _hashes(recipe: Recipe, kind: str) -> str | None:
    found = [f"{one.name}: {one.short_hash}" for one in recipe.adapters if one.kind == kind]
    return ", ".join(found) or None


def _refiner_values(recipe: Recipe) -> dict[str, object | None]:
    request = recipe.request
    if request.refiner is None or recipe.refiner is None:
        return {}
    digest = recipe.refiner.sha256
    return {
        "Refiner": f"{recipe.refiner.name} [{digest[:10]}]" if digest else recipe.refiner.name,
        "Refiner switch at": request.refiner_switch_at,
        "Refiner switch by sampling steps": "True" if request.refiner_switch_by == "steps" else None,
    }


def _denoised(request: Request) -> float | None:
    """A picture that was only enlarged had a second pass that painted nothing."""
    if request.init_image:
        return request.strength
    return request.hires.strength if request.hires else 0.0 if request.upscale else None


def _first_size(request: Request) -> tuple[int, int]:
    """The file's size; with a second pass that of the first one, from which A1111 reckons the file's."""
    width, height = request.width or 0, request.height or 0
    if request.upscale is None or request.hires is not None:
        return width, height
    return round(width * request.upscale.factor), round(height * request.upscale.factor)


def _hires_values(request: Request) -> dict[str, object | None]:
    """The second pass, or what enlarged the picture without one; behind another pass A1111's extras are meant."""
    hires, upscale = request.hires, request.upscale
    more: dict[str, object | None] = {}
    if upscale is not None:
        label = _UPSCALERS.get(upscale.upscaler or "", upscale.upscaler)
        if hires is None and request.init_image is None:
            size = "{}x{}".format(*_first_size(request))
            return {"Hires upscale": upscale.factor, "Hires resize": size, "Hires upscaler": label}
        more = {"Postprocess upscale by": upscale.factor, "Postprocess upscaler": label}
    if hires is None:
        return more
    sized = hires.width is not None or hires.height is not None
    return {
        "Hires upscale": None if sized else hires.scale,
        "Hires resize": f"{hires.width or 0}x{hires.height or 0}" if sized else None,
        "Hires steps": hires.num_inference_steps,
        "Hires upscaler": _UPSCALERS.get(hires.upscaler, hires.upscaler),
        **more,
    }


def _mask_values(request: Request) -> dict[str, object | None]:
    mask = request.mask
    if mask is None:
        return {}
    return {
        "Mask blur": mask.blur,
        "Mask mode": "Inpaint not masked" if mask.invert else None,
        "Masked content": _FILLS[mask.fill],
        "Inpaint area": "Only masked" if mask.only_masked else None,
        "Masked area padding": mask.padding if mask.only_masked else None,
    }


_RESIZES = {"stretch": "Just Resize", "crop": "Crop and Resize", "pad": "Resize and Fill"}


def _control_values(recipe: Recipe) -> dict[str, object | None]:
    """In the words of A1111's extension for ControlNets."""
    hashes = {one.name: one.short_hash[:8] for one in recipe.adapters if one.kind == "controlnet"}
    found: dict[str, object | None] = {}
    for number, one in enumerate(recipe.request.control):
        values = {
            "Module": one.preprocessor,
            "Model": f"{one.model} [{hashes[one.model]}]" if one.model in hashes else one.model,
            "Weight": one.weight,
            "Resize Mode": _RESIZES[one.resize_mode or recipe.request.resize_mode],
            **({"Threshold A": one.canny_low, "Threshold B": one.canny_high} if one.preprocessor == "canny" else {}),
            "Guidance Start": one.start,
            "Guidance End": one.end,
            "Control Mode": "ControlNet is more important" if one.guess else "Balanced",
        }
        found[f"ControlNet {number}"] = ", ".join(f"{key}: {_plain(value)}" for key, value in values.items())
    return {**found, **_image_prompt_values(recipe, len(found))}


def _image_prompt_values(recipe: Recipe, first: int) -> dict[str, object | None]:
    """Image prompts are units of the same extension, behind the ControlNets."""
    hashes = {one.name: one.short_hash[:8] for one in recipe.adapters if one.kind == "ip-adapter"}
    found: dict[str, object | None] = {}
    for number, one in enumerate(recipe.request.image_prompts, first):
        values = {
            "Module": "ip-adapter-auto",
            "Model": f"{one.adapter} [{hashes[one.adapter]}]" if one.adapter in hashes else one.adapter,
            "Weight": one.weight,
            "Guidance Start": one.start,
            "Guidance End": one.end,
        }
        found[f"ControlNet {number}"] = ", ".join(f"{key}: {_plain(value)}" for key, value in values.items())
    return found


def _texts(values: Mapping[str, object | None]) -> dict[str, str]:
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: object) -> str:
    """Whole floats lose their point, as in A1111's `CFG scale: 7`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def request_of(info: Infotext, where: str) -> Request:
    """The request behind an A1111 text (or sd.cpp's, which uses the same grammar).

    The starting picture and the mask are not in such a text, so strength and mask settings are left out.

    Raises:
        RecipeError: a value that can't be read.
    """
    values = info.values
    width, height, upscale = _before_enlargement(values)
    sampler, schedule = _sampler(values)
    fields: dict[str, Any] = {
        "prompt": info.prompt,
        "negative_prompt": info.negative_prompt or None,  # A1111 gives SDXL zeros for an empty one
        "seed": _seed(values, "Seed"),
        "num_inference_steps": _number(values, "Steps", int),
        "guidance_scale": _guidance(values),
        "image_guidance_scale": _number(values, "Image CFG scale", float),
        "width": width,
        "height": height,
        "sampler": sampler,
        "schedule": schedule,
        "clip_skip": _clip_skip(values),
        "prompt_2": values.get("Prompt 2"),
        "negative_prompt_2": values.get("Negative prompt 2"),
        "size_condition": _size_condition(values, where),
        "subseed": _seed(values, "Variation seed"),
        "subseed_strength": _number(values, _first(values, "Variation seed strength", "Variation strength"), float),
        "guidance_rescale": _number(values, "CFG rescale", float),
        "eta": _number(values, "Eta", float),
        "token_merging": _number(values, "Token merging ratio", float),
        "model": values.get("Model"),
        "seamless": "both" if values.get("Tiling") == "True" else None,
        "emphasis": {**EMPHASIS, "Comfy": "comfy"}.get(values.get("Emphasis", "")),
        **_noise(values),
        **_refiner(values),
        "hires": _hires(values),
        "upscale": upscale,
        **guiders_of_text(values)[0],
    }
    try:
        return Request.from_dict({key: value for key, value in fields.items() if value is not None}, where=where)
    except ConfigError as error:
        raise RecipeError(where, given=f"{error.where}: {error.given}", expected=error.expected) from error


def _size_condition(values: Mapping[str, str], where: str) -> object:
    text = values.get("Size condition")
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(where, given=f"Size condition: {text!r}"[:200], expected="an object of JSON") from error


def _guidance(values: Mapping[str, str]) -> float | None:
    """The guidance scale; 0 is a value. SD.Next, which runs diffusers, means "off" by 1 and below."""
    given = _number(values, "Guidance" if "CFG scale" not in values else "CFG scale", float)
    by_diffusers = values.get("Backend") == "Diffusers" or values.get("App") == "SD.Next"
    return guidance_of_diffusers(given) if given is not None and by_diffusers else given


def _noise(values: Mapping[str, str]) -> dict[str, Any]:
    """The noise and the procedure behind it. A1111 and Forge draw on the GPU unless the text says CPU; sd.cpp has both
    generators and a procedure of its own; gouache names its own noise (before it did, it wrote CPU for it)."""
    version, source = values.get("Version"), values.get("RNG")
    if version is not None and "stable-diffusion.cpp" in version:
        return {"determinism": {"cuda": "a1111", "cpu": "cpu"}.get(source or ""), "procedure": "gouache"}
    if version is not None and version.startswith("gouache"):
        level = "a1111" if source is None else "cpu" if values.get("Determinism") == "cpu" else None
        delta = _number(values, "ENSD", int) if level else None
        return {"determinism": level, "procedure": values.get("Procedure"), "eta_noise_seed_delta": delta}
    if version is not None and not _BY_A1111.match(version):
        return {}
    level = "cpu" if source == "CPU" else "a1111" if source in (None, "GPU", "NV") else None
    delta = _number(values, "ENSD", int) if level else None
    return {"determinism": level, "procedure": "a1111" if level else None, "eta_noise_seed_delta": delta}


_HASHED = re.compile(r"\s*\[[0-9a-fA-F]{4,64}\]$")


def _refiner(values: Mapping[str, str]) -> dict[str, Any]:
    """The second model of A1111 and Forge; a share of 1, at which it never came, leaves it out."""
    name = _HASHED.sub("", values.get("Refiner", ""))
    share = _number(values, "Refiner switch at", float)
    if name in ("", "None") or share == 1:
        return {}
    by_steps = values.get("Refiner switch by sampling steps") == "True"
    return {"refiner": name, "refiner_switch_at": share, "refiner_switch_by": "steps" if by_steps else None}


def _first(values: Mapping[str, str], *keys: str) -> str:
    return next((key for key in keys if key in values), keys[0])


def _seed(values: Mapping[str, str], key: str) -> int | None:
    """A seed; -1 stands for any, and those beyond ours are folded."""
    seed = _number(values, key, int)
    return None if seed is None or seed == -1 else int(seed) % (MAX_SEED + 1) if seed > MAX_SEED else int(seed)


def _clip_skip(values: Mapping[str, str]) -> float | None:
    """Counted from 1 by A1111; 0 is its none, and ComfyUI's savers count from -1."""
    skip = _number(values, "Clip skip", int)
    return None if skip is None else max(abs(skip), 1)


def _only_enlarged(values: Mapping[str, str]) -> bool:
    """Whether the text names an enlargement as `_hires_values` does: both keys, and a second pass without strength."""
    named = "Hires upscale" in values and values.get("Hires resize") == values.get("Size")
    return named and _number(values, "Denoising strength", float) == 0


def _before_enlargement(values: Mapping[str, str]) -> tuple[int | None, int | None, dict[str, Any] | None]:
    """Width and height that were painted, and the enlargement behind them."""
    width, height = _size(values.get("Size"))
    factor = _number(values, "Hires upscale", float) if _only_enlarged(values) else None
    if not factor or not width or not height:
        return width, height, None
    label = values.get("Hires upscaler", "Lanczos")
    upscale = {"factor": factor, "upscaler": HIRES_UPSCALERS.get(label, label)}
    return round(width / factor), round(height / factor), upscale


def _hires(values: Mapping[str, str]) -> dict[str, Any] | None:
    """The second pass; at its scale of 1 it has the first one's size. One side of `Hires resize` may be 0: the other
    decides it."""
    if _only_enlarged(values):
        return None
    width, height = (side or None for side in _size(values.get("Hires resize", values.get("Hires size"))))
    scale = _number(values, _first(values, "Hires upscale", "Hires scale"), float) or None
    if scale is None and width is None and height is None:
        return None
    first = _size(values.get("Size"))
    if scale is not None and scale <= 1.0 and width is None and height is None and first[0] and first[1]:
        width, height = (round(side * scale) for side in first if side)
    label = values.get("Hires upscaler", "Latent")
    fields = {
        "scale": scale if scale is None or scale > 1.0 else None,
        "width": width,
        "height": height,
        "num_inference_steps": _number(values, "Hires steps", int) or None,
        "upscaler": HIRES_UPSCALERS.get(label, label),
        "strength": _number(values, "Denoising strength", float),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _sampler(values: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Names; `Default` and `Automatic` leave the choice to the program."""
    schedule = values.get("Schedule type", values.get("Scheduler"))
    sampler = values.get("Sampler")
    if values.get("App") == "SD.Next" and schedule is None:
        schedule = values.get("Sampler sigma")
    unsaid = (None, "", "Automatic", "automatic", "Default", "default", "Undefined", "None")
    return None if sampler in unsaid else sampler, None if schedule in unsaid else schedule


def _size(text: str | None) -> tuple[int | None, int | None]:
    width, cross, height = (part.strip() for part in (text or "").partition("x"))
    return (int(width), int(height)) if cross and width.isdecimal() and height.isdecimal() else (None, None)


def _number(values: Mapping[str, str], key: str, kind: type[int] | type[float]) -> float | None:
    if key not in values:
        return None
    try:
        text = values[key]
        # A number with a point is whole to some writers.
        return kind(float(text)) if kind is int and re.fullmatch(r"\d+\.0+", text) else kind(text)
    except ValueError as error:
        raise RecipeError(key, given=repr(values[key]), expected="a number") from error


_READ = frozenset(
    (
        "Steps", "Sampler", "Schedule type", "Scheduler", "CFG scale", "Guidance", "Image CFG scale",
        "CFG rescale", "Seed", "Size", "Model", "Model hash", "Clip skip", "Variation seed",
        "Variation seed strength", "Variation strength", "Eta", "Tiling", "Emphasis", "RNG", "Hires upscale",
        "Hires scale", "Hires resize", "Hires size", "Hires steps", "Hires upscaler", "Lora hashes", "TI hashes",
        "Hashes", "Version", "App", "User", "Created Date", "Civitai resources", "Civitai metadata", "Operations",
        "Pipeline", "Backend", "Parser", "Second pass", "Batch size", "Batch pos", "Index", "Batch", "Prompt",
        "Negative prompt", "Raw prompt", "Raw negative prompt", "Metadata scheme", "Performance", "Styles",
        "Lora weights", "Template", "Negative Template", "Wildcard prompt", "Wildcard negative prompt",
        "Time taken", "Date", "Cache FP16 weight for LoRA", "FP8 weight", "Diffusion in Low Bits", "Model hash 1",
        "Module", "Grid", "Comment", "Hires force", "HiRes resize mode", "ADetailer version",
        "ENSD", "Determinism", "Procedure", "Refiner", "Refiner switch at", "Refiner switch by sampling steps",
        "Prompt 2", "Negative prompt 2", "Size condition", "Token merging ratio",
    )
)  # fmt: skip
"""Keys that are read, or change nothing of a picture."""


def left_out(info: Infotext) -> list[str]:
    """What a text says that a request of ours doesn't repeat, a sentence each."""
    values, notes = info.values, []
    second_pass = _hires(values) is not None or _only_enlarged(values)
    if "Denoising strength" in values and not second_pass:
        strength = values["Denoising strength"]
        notes.append(f"it starts from a picture, at denoising strength {strength}, which the file doesn't hold")
    guiders, said = guiders_of_text(values)
    if "sag" in guiders and second_pass and not values.get("Version", "").startswith("gouache"):
        notes.append("self-attention guidance left the second pass alone there; here it acts in both")
    known = _READ | said | {"Denoising strength"}
    rest = {key: value for key, value in values.items() if key not in known and not key.startswith(("Lora", "Module "))}
    default = {"VAE": ("Automatic", "None"), "Face restoration": ("None",), "NGMS": ("0",)}
    rest = {key: value for key, value in rest.items() if value not in default.get(key, ())}
    if rest:
        listed = ", ".join(f"{key}: {value[:60]}" for key, value in rest.items())
        notes.append(f"settings that aren't repeated: {listed[:600]}")
    for key in ("Seed", "Variation seed"):
        seed = _number(values, key, int)
        if seed is not None and (seed > MAX_SEED or seed == -1):
            notes.append(f"{key} {values[key]} is none of ours; it became {_seed(values, key) or 'a random one'}")
    return notes
