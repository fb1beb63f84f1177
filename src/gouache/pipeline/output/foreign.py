"""Reads the recipe of a picture, whoever painted it: gouache, A1111, sd.cpp, InvokeAI, ComfyUI, NovelAI."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gouache.diffusion.samplers.names import COMFYUI_SCHEDULES, resolve_invokeai
from gouache.errors import ConfigError, RecipeError, UnknownName
from gouache.pipeline.output.a1111_text import parse_infotext, request_of, require_values
from gouache.pipeline.output.metadata import PARAMETERS, own_json, read_texts
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import MAX_SEED, Request


@dataclass(frozen=True, slots=True)
class ForeignText:
    """What a picture says of its making.

    Attributes:
        tool: gouache, a1111, sd.cpp, invokeai, comfyui or novelai.
        request: what to paint; for other tools as near as our words come.
        recipe: ours, complete; None for other tools' pictures.
        texts: every text in the file, as it stands.
    """

    tool: str
    request: Request
    recipe: Recipe | None
    texts: Mapping[str, str]


def read_recipe(source: Path | bytes, *, where: str = "picture") -> ForeignText:
    """Read a picture's recipe.

    Raises:
        PictureError: no picture.
        RecipeError: no recipe that is known, or a damaged one.
    """
    where = str(source) if isinstance(source, Path) else where
    texts = read_texts(source, where=where)
    own = own_json(texts, where)
    try:
        if own is not None:
            recipe = Recipe.from_dict(own, where=where)
            return ForeignText("gouache", recipe.request, recipe, texts)
        for tool, is_here, read in READERS:
            if is_here(texts):
                return ForeignText(tool, _request(read(texts, where), where), None, texts)
        if PARAMETERS in texts:
            info = require_values(parse_infotext(texts[PARAMETERS]), where)
            tool = "sd.cpp" if "stable-diffusion.cpp" in info.values.get("Version", "") else "a1111"
            return ForeignText(tool, request_of(info, where), None, texts)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(where, given=str(error), expected="a recipe that can be read") from error
    raise RecipeError(
        where,
        given=f"texts {sorted(texts)}" if texts else "no text",
        expected="a recipe inside the picture",
        cure="Only files saved with their metadata can be repeated; screenshots and re-encoded copies lose it.",
    )


def _request(fields: Mapping[str, Any], where: str) -> Request:
    given = {key: value for key, value in fields.items() if value is not None}
    if isinstance(given.get("seed"), int):
        given["seed"] %= MAX_SEED + 1
    return Request.from_dict(given, where=where)


def _invokeai(texts: Mapping[str, str], where: str) -> dict[str, Any]:  # noqa: ARG001
    """InvokeAI 3 and later: a flat JSON object."""
    values = json.loads(texts["invokeai_metadata"])
    model = values.get("model") or {}
    skipped = values.get("clip_skip")
    seamless = (bool(values.get("seamless_x")), bool(values.get("seamless_y")))
    return {
        "prompt": _with_tags(values.get("positive_prompt"), _invokeai_loras(values)),
        "negative_prompt": values.get("negative_prompt"),
        "width": values.get("width"),
        "height": values.get("height"),
        "seed": values.get("seed"),
        "num_inference_steps": values.get("steps"),
        "guidance_scale": values.get("cfg_scale"),
        "guidance_rescale": values.get("cfg_rescale_multiplier"),
        **_invokeai_sampler(values.get("scheduler")),
        "clip_skip": skipped + 1 if skipped else None,
        "model": model.get("name") or model.get("model_name"),
        "seamless": {(True, True): "both", (True, False): "x", (False, True): "y"}.get(seamless),
        "emphasis": "none",
    }


def _invokeai_loras(values: Mapping[str, Any]) -> list[tuple[object, object, object]]:
    """Name and weight (text, U-Net) of every LoRA; older versions of 3 call the model `lora`."""
    found: list[tuple[object, object, object]] = []
    for one in values.get("loras") or ():
        model = one.get("model") or one.get("lora") or {}
        found.append((model.get("name") or model.get("model_name"), one.get("weight", 1), one.get("weight", 1)))
    return found


def _with_tags(prompt: object, loras: list[tuple[object, object, object]]) -> object:
    """The prompt with a tag for each LoRA, so that none is lost without a word."""
    if not isinstance(prompt, str):
        return prompt
    return " ".join([prompt, *(f"<lora:{name}:{text}:{unet}>" for name, text, unet in loras if name)])


def _invokeai_2(texts: Mapping[str, str], where: str) -> dict[str, Any]:  # noqa: ARG001
    """InvokeAI 2: nested JSON, the negative prompt in square brackets inside the prompt."""
    values = json.loads(texts["sd-metadata"])
    image = values["image"]
    prompts = image.get("prompt") or ""
    text = prompts if isinstance(prompts, str) else ", ".join(part["prompt"] for part in prompts)
    prompt, _, rest = text.partition("[")
    return {
        "prompt": prompt.strip(),
        "negative_prompt": rest.replace("]", " ").replace("[", " ").strip(),
        "width": image.get("width"),
        "height": image.get("height"),
        "seed": image.get("seed"),
        "num_inference_steps": image.get("steps"),
        "guidance_scale": image.get("cfg_scale"),
        **_named_sampler(image.get("sampler")),
        "model": values.get("model_weights"),
        "emphasis": "none",
    }


def _novelai(texts: Mapping[str, str], where: str) -> dict[str, Any]:  # noqa: ARG001
    values = json.loads(texts["Comment"])
    schedule = values.get("noise_schedule")
    sampler = _named_sampler(values.get("sampler"))
    known = {"karras": "karras", "exponential": "exponential", "polyexponential": "polyexponential"}
    return {
        "prompt": _braces(values.get("prompt") or texts.get("Description", "")),
        "negative_prompt": _braces(values.get("uc") or ""),
        "width": values.get("width"),
        "height": values.get("height"),
        "seed": values.get("seed"),
        "num_inference_steps": values.get("steps"),
        "guidance_scale": values.get("scale"),
        "guidance_rescale": values.get("cfg_rescale"),
        **sampler,
        "schedule": known.get(schedule) or sampler.get("schedule"),
    }


def _braces(text: str) -> str:
    """NovelAI's emphasis in A1111's words: {x} is x1.05, [x] is /1.05, round brackets are text."""
    marks = {"(": r"\(", ")": r"\)", "{": "(", "}": ":1.05)", "[": "(", "]": f":{1 / 1.05:.4f})"}
    return "".join(marks.get(char, char) for char in text)


def _comfyui(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    """A graph: take its last sampler and follow the wires to prompts, size and model."""
    graph = {str(key): node for key, node in json.loads(texts["prompt"]).items() if isinstance(node, dict)}
    samplers = [node for node in graph.values() if {"sampler_name", "steps", "cfg"} <= set(node.get("inputs", {}))]
    if not samplers:
        raise RecipeError(
            where,
            given=f"a graph of {len(graph)} nodes without a KSampler",
            expected="a KSampler node",
            cure="Type the settings by hand; the graph itself can be seen with --json.",
        )
    inputs = samplers[-1]["inputs"]
    latent = _upstream(graph, inputs.get("latent_image"), "width")
    model = _upstream(graph, inputs.get("model"), "ckpt_name")
    seed = _plain(graph, inputs.get("seed", inputs.get("noise_seed")))
    return {
        "prompt": _with_tags(_prompt(graph, inputs.get("positive")), _comfyui_loras(graph, inputs.get("model"))),
        "negative_prompt": _prompt(graph, inputs.get("negative")),
        "width": latent.get("width"),
        "height": latent.get("height"),
        "seed": seed if isinstance(seed, int) else None,
        "num_inference_steps": _plain(graph, inputs["steps"]),
        "guidance_scale": _plain(graph, inputs["cfg"]),
        "sampler": _plain(graph, inputs["sampler_name"]),
        "schedule": _comfyui_schedule(_plain(graph, inputs.get("scheduler"))),
        "model": model.get("ckpt_name"),
        "emphasis": "comfy",
    }


def _comfyui_schedule(name: object) -> object:
    return COMFYUI_SCHEDULES.get(name, name) if isinstance(name, str) else name


def _comfyui_loras(graph: Mapping[str, Any], wire: object) -> list[tuple[object, object, object]]:
    """Name and strengths (text, U-Net) of every LoRA loader between the model and the sampler."""
    found: list[tuple[object, object, object]] = []
    seen = set[str]()
    while isinstance(wire, list) and wire and str(wire[0]) not in seen:
        seen.add(str(wire[0]))
        inputs: Mapping[str, Any] = graph.get(str(wire[0]), {}).get("inputs", {})
        if isinstance(inputs.get("lora_name"), str):
            name = PurePosixPath(inputs["lora_name"].replace("\\", "/")).stem
            text, unet = (_plain(graph, inputs.get(f"strength_{part}", 0)) for part in ("clip", "model"))
            found.append((name, text, unet))
        wire = inputs.get("model")
    return found


def _plain(graph: Mapping[str, Any], value: object) -> object:
    """A value, or the single plain value of the node that a wire comes from."""
    if not isinstance(value, list):
        return value
    inputs = graph.get(str(value[0]), {}).get("inputs", {})
    plain = [item for item in inputs.values() if isinstance(item, str | int | float)]
    return plain[0] if len(plain) == 1 else None


def _upstream(graph: Mapping[str, Any], wire: object, key: str) -> Mapping[str, Any]:
    """Inputs of the first node up the wires that has `key`; empty if there is none."""
    waiting, seen = [wire], set[str]()
    while waiting:
        wire = waiting.pop(0)
        if not isinstance(wire, list) or not wire or str(wire[0]) in seen:
            continue
        seen.add(str(wire[0]))
        inputs: Mapping[str, Any] = graph.get(str(wire[0]), {}).get("inputs", {})
        if isinstance(inputs.get(key), str | int | float):
            return inputs
        waiting += [item for name, item in inputs.items() if isinstance(item, list) and name != "clip"]
    return {}


def _prompt(graph: Mapping[str, Any], wire: object) -> str:
    return next((str(found[key]) for key in ("text", "text_g") if (found := _upstream(graph, wire, key))), "")


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


Reader = Callable[[Mapping[str, str], str], dict[str, Any]]
READERS: tuple[tuple[str, Callable[[Mapping[str, str]], bool], Reader], ...] = (
    ("invokeai", lambda texts: "invokeai_metadata" in texts, _invokeai),
    ("invokeai", lambda texts: "sd-metadata" in texts, _invokeai_2),
    ("novelai", lambda texts: texts.get("Software") == "NovelAI" and "Comment" in texts, _novelai),
    ("comfyui", lambda texts: texts.get("prompt", "").startswith("{"), _comfyui),
)
