"""LoRA files that a graph's loaders apply, by name and weights, as tags of a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from gouache.pipeline.output.comfyui.graph import Graph, Node


def loras_of(node: Node, graph: Graph) -> list[tuple[str, object, object]]:
    """Name and weights (text encoders, U-Net) of the LoRAs that a node, or the stack wired to it, loads."""
    inputs, found = node.inputs, list[tuple[str, object, object]]()
    names = [key for key in inputs if re.fullmatch(r"lora(_name)?(_?\d+)?|lora_\d+_name", key)]
    for key in sorted(names, key=lambda key: int(re.search(r"\d+|$", key)[0] or 0)):  # type: ignore[index]
        value, tail = inputs[key], re.search(r"(_?\d+)?$", key)[0]  # type: ignore[index]
        number = tail.lstrip("_")
        if isinstance(value, Mapping) and "lora" in value:
            name, both = value.get("lora"), value.get("strength", 1)
            weights = (value.get("strengthTwo") or both, both) if value.get("on", True) else (0, 0)
        else:
            name = graph.plain(value)
            weights = _weights(inputs, number, graph)
        off = str(inputs.get(f"switch_{number}", "On")).lower() == "off"
        count = graph.plain(inputs.get("lora_count"))
        beyond = isinstance(count, int) and number.isdecimal() and int(number) > count
        if isinstance(name, str) and name not in ("", "None") and not off and not beyond and any(weights):
            found.append((_stem(name), *weights))
    listed = inputs.get("loras")
    for one in (listed.get("__value__") if isinstance(listed, Mapping) else listed) or ():
        if isinstance(one, Mapping) and one.get("active", True) and one.get("name"):
            strength = one.get("strength", 1)
            found.append((_stem(str(one["name"])), one.get("clipStrength", strength), strength))
    for key in ("lora_stack", "optional_lora_stack"):
        stack = graph.wired(inputs.get(key))
        if stack is not None and stack[0] is not node:
            found += loras_of(stack[0], graph)
    return found


def _weights(inputs: Mapping[str, Any], number: str, graph: Graph) -> tuple[object, object]:
    """Weights for text encoders and U-Net; a loader for the U-Net alone has none for text."""
    simple = inputs.get("input_mode") == "simple"
    unet_names = ["lora_wt", "strength", "lora_strength"] if simple else []
    unet_names += ["strength_model", "model_weight", "model_str", "lora_model_strength", "strength_unet"]
    unet_names += ["lora_wt", "strength", "lora_strength", "lora_weight", "strength_1"]
    text_names = [] if simple else ["strength_clip", "clip_weight", "clip_str", "lora_clip_strength"]
    ends = [f"_{number}", number, ""] if number else [""]

    def first(names: list[str]) -> object:
        key = next((name + end for name in names for end in ends if name + end in inputs), None)
        return None if key is None else graph.plain(inputs[key])

    unet, text = first(unet_names), first(text_names)
    alone = "strength_model" in inputs and "strength_clip" not in inputs
    unet = 1 if unet is None else unet
    return (0 if alone else unet if text is None else text), unet


def _stem(name: str) -> str:
    return re.sub(r"\.(safetensors|pt|ckpt|bin)$", "", PurePosixPath(name.replace("\\", "/")).name)


def with_tags(prompt: str | None, loras: list[tuple[str, object, object]]) -> str | None:
    if prompt is None:
        return None
    return " ".join([prompt, *(f"<lora:{name}:{text}:{unet}>" for name, text, unet in loras)])
