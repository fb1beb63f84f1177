"""Pictures of programs with a format of their own: InvokeAI, NovelAI, Fooocus, SwarmUI, Easy Diffusion, Draw Things.

Facts are from the programs' writers: InvokeAI 1 to 5, Fooocus 2.5 (`meta_parser`), SwarmUI's page on its metadata
format, Easy Diffusion 3, Draw Things' XMP, RuinedFooocus 1.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from gouache.diffusion.samplers.names import resolve_invokeai
from gouache.errors import UnknownName
from gouache.pipeline.output.metadata import PARAMETERS
from gouache.pipeline.request import guidance_of_diffusers

Tag = tuple[object, object, object]
"""Name of a LoRA and its weights, text encoders and U-Net."""
Reader = Callable[[Mapping[str, str], list[str]], dict[str, Any]]
"""Texts of a picture and a list for notes -> fields of a request; `prompt` is None where it isn't known."""


def _object(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise TypeError(f"{type(values).__name__} instead of a JSON object")
    return values


def invokeai(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """InvokeAI 3 and later: a flat JSON object."""
    values = _object(texts["invokeai_metadata"])
    model = values.get("model") or {}
    if isinstance(model, str):
        model = {"name": model}
    skipped = values.get("clip_skip")
    seamless = (bool(values.get("seamless_x")), bool(values.get("seamless_y")))
    # Version 3 may have joined prompt and style prompt behind the scenes; its files don't say so.
    old = str(values.get("app_version", "")).startswith("3.")
    left = ("controlnets", "ipAdapters", "t2iAdapters", "init_image", "vae", "hrf_enabled",
            "control_layers", "ref_images", "canvas_v2_metadata", "regions",
            *(("positive_style_prompt", "negative_style_prompt") if old else ()))  # fmt: skip
    _note_left_out(values, left, notes)
    return {
        "prompt": with_tags(values.get("positive_prompt"), _invokeai_loras(values)),
        "negative_prompt": values.get("negative_prompt") or None,  # it gives SDXL zeros then
        "width": values.get("width"),
        "height": values.get("height"),
        "seed": values.get("seed"),
        "num_inference_steps": values.get("steps"),
        "guidance_scale": _diffusers_guidance(values.get("cfg_scale")),
        "guidance_rescale": values.get("cfg_rescale_multiplier"),
        **_invokeai_sampler(values.get("scheduler")),
        "clip_skip": skipped + 1 if skipped else None,
        "model": model.get("name") or model.get("model_name"),
        **_invokeai_refiner(values),
        **({} if old else _invokeai_styles(values)),
        "seamless": {(True, True): "both", (True, False): "x", (False, True): "y"}.get(seamless),
        "emphasis": "none",
    }


def _invokeai_styles(values: Mapping[str, Any]) -> dict[str, Any]:
    """What SDXL's second encoder read; an empty style prompt means the prompt."""
    found = {}
    for name, ours in (("positive", "prompt_2"), ("negative", "negative_prompt_2")):
        style = values.get(f"{name}_style_prompt")
        if isinstance(style, str) and style.strip() and style != values.get(f"{name}_prompt"):
            found[ours] = style
    return found


def _invokeai_refiner(values: Mapping[str, Any]) -> dict[str, Any]:
    """Its `refiner_start` is diffusers' `denoising_start`, of training timesteps."""
    model = values.get("refiner_model") or {}
    name = model if isinstance(model, str) else model.get("name") or model.get("model_name")
    if not name:
        return {}
    scores = {
        "aesthetic_score": values.get("refiner_positive_aesthetic_score"),
        "negative_aesthetic_score": values.get("refiner_negative_aesthetic_score"),
    }
    scores = {key: value for key, value in scores.items() if value is not None}
    share = values.get("refiner_start")
    return {"refiner": name, "refiner_switch_at": share, "size_condition": scores or None}


def _diffusers_guidance(value: object) -> object:
    """A guidance scale of a program that runs diffusers."""
    return guidance_of_diffusers(value) if isinstance(value, int | float) else value


def _invokeai_loras(values: Mapping[str, Any]) -> list[Tag]:
    """Name and weight (text, U-Net) of every LoRA; older versions of 3 call the model `lora`."""
    found: list[Tag] = []
    for one in values.get("loras") or ():
        model = one.get("model") or one.get("lora") or {}
        found.append((model.get("name") or model.get("model_name"), one.get("weight", 1), one.get("weight", 1)))
    return found


def with_tags(prompt: object, loras: list[Tag]) -> object:
    """The prompt with a tag for each LoRA, so that none is lost without a word."""
    if not isinstance(prompt, str):
        return prompt
    return " ".join([prompt, *(f"<lora:{name}:{text}:{unet}>" for name, text, unet in loras if name)])


def invokeai_2(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """InvokeAI 2: nested JSON, the negative prompt in square brackets inside the prompt."""
    values = _object(texts["sd-metadata"])
    image = values["image"]
    prompts = image.get("prompt") or ""
    text = prompts if isinstance(prompts, str) else ", ".join(part["prompt"] for part in prompts)
    prompt, negative = _square_negative(text)
    _note_left_out(image, ("init_image_path", "mask_image_path", "variations", "postprocessing", "hires_fix"), notes)
    return {
        "prompt": prompt,
        "negative_prompt": negative or None,
        "width": image.get("width"),
        "height": image.get("height"),
        "seed": image.get("seed"),
        "num_inference_steps": image.get("steps"),
        "guidance_scale": _diffusers_guidance(image.get("cfg_scale")),
        **_named_sampler(image.get("sampler")),
        "seamless": "both" if image.get("seamless") else None,
        "model": values.get("model_weights"),
        "emphasis": "none",
    }


def _square_negative(text: str) -> tuple[str, str]:
    prompt, _, rest = text.partition("[")
    return prompt.strip(), rest.replace("]", " ").replace("[", " ").strip()


def dream(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """InvokeAI 1 and its forerunners: a command, `"a cat [bad]" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms`."""
    words = shlex.split(texts["Dream"])
    prompt, negative = _square_negative(words[0])
    flags = dict(pairwise(words[1:]))
    left = [flag for flag in ("-I", "-f", "-v", "-V", "-G", "-U", "--hires_fix", "-M") if flag in words[1:]]
    if left:
        notes.append(f"options of the command that aren't repeated: {' '.join(left)}")
    read: dict[str, tuple[str, type[int] | type[float]]] = {
        "num_inference_steps": ("-s", int), "seed": ("-S", int), "width": ("-W", int), "height": ("-H", int),
        "guidance_scale": ("-C", float),
    }  # fmt: skip
    fields = {name: kind(flags[flag]) if flag in flags else None for name, (flag, kind) in read.items()}
    seamless = "both" if "--seamless" in words else None
    return {
        "prompt": prompt,
        "negative_prompt": negative,
        **fields,
        **_named_sampler(flags.get("-A")),
        "seamless": seamless,
        "emphasis": "none",
    }


def novelai(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """NovelAI: settings in `Comment`, the prompt also in `Description`; version 4 keeps characters' prompts apart."""
    values = _object(texts["Comment"])
    schedule = values.get("noise_schedule")
    sampler = _named_sampler(values.get("sampler"))
    known = {"karras": "karras", "exponential": "exponential", "polyexponential": "polyexponential"}
    characters = ((values.get("v4_prompt") or {}).get("caption") or {}).get("char_captions") or []
    if characters:
        notes.append(f"prompts of {len(characters)} characters, each with its place, aren't repeated")
    if values.get("request_type") not in (None, "PromptGenerateRequest"):
        notes.append(f"it starts from a picture ({values['request_type']}), which the file doesn't hold")
    if texts.get("Source"):
        notes.append(f"painted by the model {texts['Source']!r}, which is on that service alone")
    return {
        "prompt": _braces(values.get("prompt") or texts.get("Description", "")),
        "negative_prompt": _braces(values.get("uc") or "") or None,
        "width": values.get("width"),
        "height": values.get("height"),
        "seed": values.get("seed"),
        "num_inference_steps": values.get("steps"),
        "guidance_scale": values.get("scale"),
        "guidance_rescale": values.get("cfg_rescale"),
        **sampler,
        "schedule": known.get(str(schedule)) or sampler.get("schedule"),
    }


def _braces(text: str) -> str:
    """NovelAI's emphasis in A1111's words: {x} is x1.05, [x] is /1.05, round brackets are text."""
    marks = {"(": r"\(", ")": r"\)", "{": "(", "}": ":1.05)", "[": "(", "]": f":{1 / 1.05:.4f})"}
    return "".join(marks.get(char, char) for char in text)


def _invokeai_sampler(name: object) -> dict[str, str]:
    """InvokeAI's samplers are diffusers' classes, with their lists; a name that is not known stays for the error."""
    if not isinstance(name, str):
        return {}
    try:
        sampler, schedule = resolve_invokeai(name)
    except UnknownName:
        return _named_sampler(name)
    return {"sampler": sampler} if schedule is None else {"sampler": sampler, "schedule": schedule}


def _named_sampler(name: object) -> dict[str, str]:
    """Names with `k_` before or `_k` (Karras) behind."""
    if not isinstance(name, str):
        return {}
    if name.endswith("_k"):
        return {"sampler": name.removesuffix("_k"), "schedule": "karras"}
    return {"sampler": name}


def _note_left_out(values: Mapping[str, Any], names: tuple[str, ...], notes: list[str]) -> None:
    found = {name: values[name] for name in names if values.get(name) not in (None, "", "None", [], {}, False, 0)}
    notes += [f"{name} isn't repeated: {json.dumps(one, ensure_ascii=False)[:120]}" for name, one in found.items()]


def _whole(value: object) -> int | None:
    return None if value in (None, "") else int(float(str(value)))


def _real(value: object) -> float | None:
    return None if value in (None, "") else float(str(value))


def _stem(name: object) -> str:
    return re.sub(r"\.(safetensors|ckpt|pt|gguf)$", "", PurePosixPath(str(name).replace("\\", "/")).name)


def _json_in_parameters(texts: Mapping[str, str], *keys: str) -> bool:
    text = texts.get(PARAMETERS, "").lstrip()
    return text.startswith("{") and any(f'"{key}"' in text for key in keys)


def fooocus(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """Fooocus' own scheme: JSON with a name for everything; styles add words, which `full_prompt` holds."""
    values = _object(texts.get(PARAMETERS) or texts.get("Comment", ""))
    size = re.findall(r"\d+", str(values.get("resolution", "")))
    loras = [str(values[key]).split(" : ") for key in sorted(values) if key.startswith("lora_combined_")]
    listed = [one for one in values.get("loras") or () if isinstance(one, list) and len(one) > 1]
    tags: list[Tag] = [(_stem(one[-2]), float(one[-1]), float(one[-1])) for one in loras if len(one) > 1]
    tags = tags or [(_stem(one[0]), one[1], one[1]) for one in listed]
    if values.get("styles") not in (None, "", "[]"):
        notes.append(f"styles add words to the prompt: {values['styles']}; the prompt is the one that was typed")
    left = ("sharpness", "adm_guidance", "performance", "freeu", "vae", "adaptive_cfg")
    _note_left_out({key: one for key, one in values.items() if one != "Default (model)"}, left, notes)
    return {
        "prompt": with_tags(values.get("prompt"), tags),
        "negative_prompt": values.get("negative_prompt"),
        "width": int(size[0]) if len(size) == 2 else None,
        "height": int(size[1]) if len(size) == 2 else None,
        "seed": _whole(values.get("seed")),
        "num_inference_steps": _whole(values.get("steps")),
        "guidance_scale": _real(values.get("guidance_scale", values.get("cfg"))),
        "sampler": values.get("sampler", values.get("sampler_name")),
        "schedule": values.get("scheduler"),
        "clip_skip": _whole(values.get("clip_skip")),
        "model": values.get("base_model"),
        **_fooocus_refiner(values),
        "emphasis": "comfy",
    }


def _fooocus_refiner(values: Mapping[str, Any]) -> dict[str, Any]:
    """Its `refiner_switch` is a share of the steps."""
    name = values.get("refiner_model")
    if name in (None, "", "None"):
        return {}
    return {"refiner": name, "refiner_switch_at": _real(values.get("refiner_switch")), "refiner_switch_by": "steps"}


def ruined_fooocus(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """RuinedFooocus: JSON with capital names for both prompts."""
    values = _object(texts[PARAMETERS])
    listed = (str(one[1]) for one in values.get("loras") or () if isinstance(one, list) and len(one) > 1)
    pairs = (one.partition(" - ") for one in listed)
    tags: list[Tag] = [(_stem(name), float(weight), float(weight)) for weight, dash, name in pairs if dash]
    _note_left_out(values, ("start_step", "denoise", "styles"), notes)
    return {
        "prompt": with_tags(values.get("Prompt"), tags),
        "negative_prompt": values.get("Negative"),
        "width": _whole(values.get("width")),
        "height": _whole(values.get("height")),
        "seed": _whole(values.get("seed")),
        "num_inference_steps": _whole(values.get("steps")),
        "guidance_scale": _real(values.get("cfg")),
        "sampler": values.get("sampler_name"),
        "schedule": values.get("scheduler"),
        "clip_skip": _whole(values.get("clip_skip")),
        "model": values.get("base_model_name"),
        "emphasis": "comfy",
    }


def swarmui(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """SwarmUI: `sui_image_params`, names in small letters without blanks; LoRAs and their weights in two lists."""
    values = _object(texts[PARAMETERS])["sui_image_params"]
    names, weights = (_listed(values.get(key)) for key in ("loras", "loraweights"))
    weights += ["1"] * (len(names) - len(weights))
    tags: list[Tag] = [(_stem(name), weight, weight) for name, weight in zip(names, weights, strict=False)]
    left = ("vae", "refinermodel", "refinercontrolpercentage", "refinerupscale", "initimage", "initimagecreativity",
            "variationseed", "controlnetmodel", "seamlesstileable", "freeublockone", "presets",
            "fluxguidancescale")  # fmt: skip
    _note_left_out(values, left, notes)
    prompt = values.get("prompt")
    if isinstance(prompt, str) and re.search(r"<(?!lora:)\w+[:>\[]", prompt):
        notes.append("the prompt holds SwarmUI's own tags, which are words here")
    skip = values.get("clipstopatlayer")
    return {
        "prompt": with_tags(prompt, tags),
        "negative_prompt": values.get("negativeprompt"),
        "width": _whole(values.get("width")),
        "height": _whole(values.get("height")),
        "seed": _whole(values.get("seed")),
        "num_inference_steps": _whole(values.get("steps")),
        "guidance_scale": _real(values.get("cfgscale")),
        "sampler": values.get("sampler", values.get("comfyuisampler", values.get("autowebuisampler"))),
        "schedule": values.get("scheduler", values.get("comfyuischeduler")),
        "clip_skip": abs(int(skip)) if skip else None,
        "model": _stem(values["model"]) if values.get("model") else None,
        "emphasis": "comfy",
    }


_EASY_NAMES = {
    "prompt": ("prompt", "Prompt"),
    "negative_prompt": ("negative_prompt", "Negative Prompt"),
    "seed": ("seed", "Seed"),
    "num_inference_steps": ("num_inference_steps", "Steps"),
    "guidance_scale": ("guidance_scale", "Guidance Scale"),
    "width": ("width", "Width"),
    "height": ("height", "Height"),
    "sampler": ("sampler_name", "Sampler"),
    "model": ("use_stable_diffusion_model", "Stable Diffusion model"),
}


def easy_diffusion(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """Easy Diffusion: a text each by name in PNG, one JSON object in JPEG and WebP; names for people or programs."""
    values: Mapping[str, Any] = _object(texts[PARAMETERS]) if _json_in_parameters(texts, *_EASY_MARKS) else texts
    found: dict[str, Any] = {}
    for field, keys in _EASY_NAMES.items():
        found[field] = next((values[key] for key in keys if values.get(key) not in (None, "", "None")), None)
    for field in ("seed", "num_inference_steps", "width", "height"):
        found[field] = _whole(found[field])
    found["guidance_scale"] = _real(found["guidance_scale"])
    skips = str(values.get("clip_skip", values.get("Clip Skip", ""))).lower() in ("true", "1", "yes")
    names = _listed(values.get("use_lora_model", values.get("LoRA model")))
    numbers = _listed(values.get("lora_alpha", values.get("LoRA Strength", values.get("LoRA strength"))))
    numbers += ["1"] * (len(names) - len(numbers))
    tags: list[Tag] = [(_stem(name), one, one) for name, one in zip(names, numbers, strict=False)]
    left = ("use_hypernetwork_model", "Hypernetwork model", "use_face_correction", "use_upscale",
            "use_controlnet_model", "prompt_strength", "Prompt Strength", "init_image", "use_vae_model",
            "VAE model")  # fmt: skip
    _note_left_out(values, left, notes)
    return {
        **found,
        "prompt": with_tags(found["prompt"], tags),
        "clip_skip": 2 if skips else None,
        "model": _stem(found["model"]) if found["model"] else None,
    }


_EASY_MARKS = ("use_stable_diffusion_model", "Stable Diffusion model", "num_inference_steps", "sampler_name")


def _listed(value: object) -> list[str]:
    """A list, or a text that holds one: `['a', 'b']` or `a, b`."""
    if isinstance(value, list):
        return [str(one) for one in value]
    return [
        one.strip(" '\"") for one in str(value or "").strip("[]").split(",") if one.strip(" '\"") not in ("", "None")
    ]


_DRAW_THINGS_SAMPLERS = {
    "dpm++ 2m karras": ("DPM++ 2M", "karras"), "euler a": ("Euler a", None), "ddim": ("DDIM", None),
    "plms": ("PLMS", None), "dpm++ sde karras": ("DPM++ SDE", "karras"), "unipc": ("UniPC", None), "lcm": ("LCM", None),
    "dpm++ 2m ays": ("DPM++ 2M", "align_your_steps"), "euler a ays": ("Euler a", "align_your_steps"),
    "dpm++ sde ays": ("DPM++ SDE", "align_your_steps"), "dpm++ 2m trailing": ("DPM++ 2M", "trailing"),
    "dpm++ sde trailing": ("DPM++ SDE", "trailing"), "euler a trailing": ("Euler a", "trailing"),
    "ddim trailing": ("DDIM", "trailing"), "dpm++ 2m substep": ("DPM++ 2M", None), "euler a substep": ("Euler a", None),
}  # fmt: skip


def draw_things(texts: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """Draw Things: JSON in XMP's user comment, `c` and `uc` for both prompts."""
    values = _object(texts[PARAMETERS])
    width, _, height = str(values.get("size", "")).partition("x")
    label = str(values.get("sampler") or "")
    sampler, schedule = _DRAW_THINGS_SAMPLERS.get(label.lower(), (label or None, None))
    loras = [one for one in values.get("lora") or () if isinstance(one, dict)]
    tags: list[Tag] = []
    for one in loras:
        name = re.sub(r"(_lora)?(_f16|_q8p|_q6p_q8p)?\.ckpt$", "", _named(one, "model", "file"))
        tags.append((name, one.get("weight", 1), one.get("weight", 1)))
    _note_left_out(values, ("strength", "mask_blur", "refiner", "control"), notes) if values.get(
        "strength", 1
    ) != 1 else None
    notes.append("Draw Things draws its noise in a way of its own: the same seed gives another picture")
    return {
        "prompt": with_tags(values.get("c"), tags),
        "negative_prompt": values.get("uc"),
        "width": int(width) if width.isdecimal() else None,
        "height": int(height) if height.isdecimal() else None,
        "seed": _whole(values.get("seed")),
        "num_inference_steps": _whole(values.get("steps")),
        "guidance_scale": _real(values.get("scale")),
        "sampler": sampler,
        "schedule": schedule,
        "model": values.get("model"),
    }


def _named(values: Mapping[str, Any], *names: str) -> str:
    return next((str(values[name]) for name in names if values.get(name)), "")


OTHERS: tuple[tuple[str, Callable[[Mapping[str, str]], bool], Reader], ...] = (
    ("invokeai", lambda texts: "invokeai_metadata" in texts, invokeai),
    ("invokeai", lambda texts: "sd-metadata" in texts, invokeai_2),
    ("invokeai", lambda texts: "Dream" in texts, dream),
    ("novelai", lambda texts: texts.get("Software") == "NovelAI" and "Comment" in texts, novelai),
    ("swarmui", lambda texts: _json_in_parameters(texts, "sui_image_params"), swarmui),
    ("draw-things", lambda texts: _json_in_parameters(texts, "c") and _json_in_parameters(texts, "uc"), draw_things),
    ("ruined-fooocus", lambda texts: _json_in_parameters(texts, "Prompt"), ruined_fooocus),
    ("fooocus", lambda texts: _json_in_parameters(texts, "metadata_scheme", "base_model", "adm_guidance"), fooocus),
    ("easy-diffusion", lambda texts: _json_in_parameters(texts, *_EASY_MARKS), easy_diffusion),
    (
        "easy-diffusion",
        lambda texts: any(mark in texts for mark in _EASY_MARKS) and ("prompt" in texts or "Prompt" in texts),
        easy_diffusion,
    ),
)
"""Name, whether a picture is by it, and how to read it; the first that fits."""
UNREAD: tuple[tuple[str, Callable[[Mapping[str, str]], bool], str], ...] = (
    (
        "Midjourney",
        lambda texts: "Job ID:" in texts.get("Description", ""),
        "a service without seeds or samplers to repeat",
    ),
    (
        "DALL-E or ChatGPT",
        lambda texts: "OpenAI" in texts.get("Software", ""),
        "a service without settings in its files",
    ),
    ("Adobe Firefly", lambda texts: "Adobe Firefly" in str(texts.values()), "a service without settings in its files"),
)
"""Programs whose pictures are known and hold nothing that could be painted again, and why."""
