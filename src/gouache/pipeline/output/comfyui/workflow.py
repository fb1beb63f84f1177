"""The editor's graph (text `workflow`), for pictures that don't hold the queued one.

Nodes have wires by link number and widgets by position. Names of widgets are those of ComfyUI's own nodes; newer
editors write them beside the wires.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gouache.errors import RecipeError
from gouache.pipeline.output.comfyui.graph import Graph, Node, checked_size

_MUTED, _BYPASSED = 2, 4
_AFTER = "control_after_generate"
_WIDGETS: dict[str, str] = {
    "KSampler": f"seed {_AFTER} steps cfg sampler_name scheduler denoise",
    "KSamplerAdvanced": f"add_noise noise_seed {_AFTER} steps cfg sampler_name scheduler start_at_step end_at_step",
    "SamplerCustom": f"add_noise noise_seed {_AFTER} cfg",
    "RandomNoise": f"noise_seed {_AFTER}",
    "CFGGuider": "cfg",
    "KSamplerSelect": "sampler_name",
    "BasicScheduler": "scheduler steps denoise",
    "KarrasScheduler": "steps sigma_max sigma_min rho",
    "ExponentialScheduler": "steps sigma_max sigma_min",
    "PolyexponentialScheduler": "steps sigma_max sigma_min rho",
    "SDTurboScheduler": "steps denoise",
    "BetaSamplingScheduler": "steps alpha beta",
    "AlignYourStepsScheduler": "model_type steps denoise",
    "SplitSigmas": "step",
    "SamplerEulerAncestral": "eta s_noise",
    "CLIPTextEncode": "text",
    "CLIPTextEncodeSDXL": "width height crop_w crop_h target_width target_height text_g text_l",
    "CLIPTextEncodeSDXLRefiner": "ascore width height text",
    "CLIPTextEncodeSD3": "clip_l clip_g t5xxl empty_padding",
    "TripleCLIPLoader": "clip_name1 clip_name2 clip_name3",
    "ModelSamplingSD3": "shift",
    "CLIPSetLastLayer": "stop_at_clip_layer",
    "EmptyLatentImage": "width height batch_size",
    "EmptySD3LatentImage": "width height batch_size",
    "CheckpointLoaderSimple": "ckpt_name",
    "CheckpointLoader": "config_name ckpt_name",
    "unCLIPCheckpointLoader": "ckpt_name",
    "UNETLoader": "unet_name weight_dtype",
    "VAELoader": "vae_name",
    "LoraLoader": "lora_name strength_model strength_clip",
    "LoraLoaderModelOnly": "lora_name strength_model",
    "LatentUpscale": "upscale_method width height crop",
    "LatentUpscaleBy": "upscale_method scale_by",
    "ImageScale": "upscale_method width height crop",
    "ImageScaleBy": "upscale_method scale_by",
    "UpscaleModelLoader": "model_name",
    "ConditioningAverage": "conditioning_to_strength",
    "ConditioningSetTimestepRange": "start end",
    "ConditioningSetArea": "width height x y strength",
    "RescaleCFG": "multiplier",
    "PerturbedAttentionGuidance": "scale",
    "SelfAttentionGuidance": "scale blur_sigma",
    "FreeU": "b1 b2 s1 s2",
    "FreeU_V2": "b1 b2 s1 s2",
    "PerpNeg": "neg_scale",
    "PerpNegGuider": "cfg neg_scale",
    "DynamicThresholdingSimple": "mimic_scale threshold_percentile",
    "SaveImage": "filename_prefix",
    "LoadImage": "image upload",
    "StringConcatenate": "string_a string_b delimiter",
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "PrimitiveInt": f"value {_AFTER}",
    "PrimitiveFloat": "value",
    "ControlNetApply": "strength",
    "ControlNetApplyAdvanced": "strength start_percent end_percent",
}
_NOTES = ("Note", "MarkdownNote", "Label (rgthree)", "Bookmark (rgthree)")


def graph_of_workflow(text: str, where: str) -> Graph:
    """The graph behind an editor's file.

    Raises:
        RecipeError: it isn't one.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(where, given=str(error), expected="ComfyUI's workflow as JSON") from error
    listed = values.get("nodes") if isinstance(values, dict) else None
    if not isinstance(listed, list):
        raise RecipeError(where, given="JSON without nodes", expected="ComfyUI's workflow")
    nodes = {str(one["id"]): one for one in listed if isinstance(one, dict) and "id" in one}
    editor = _Editor(nodes, _links(values.get("links")))
    queued = {number: editor.node(number) for number in nodes if editor.is_queued(number)}
    graph = Graph(checked_size(queued, where))
    graph.note("the file holds the editor's graph alone; settings that change while queueing are as they stood there")
    for one in nodes.values():
        kind = one.get("type")
        if isinstance(kind, str) and len(kind) == 36 and kind.count("-") == 4:
            graph.note(f"a node made of other nodes (node {one['id']}) can't be followed inside")
    return graph


def _links(listed: object) -> dict[int, tuple[str, int]]:
    """Number of a link -> node and output that it comes from."""
    found = {}
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict):
            one = [one.get("id"), one.get("origin_id"), one.get("origin_slot")]
        if isinstance(one, list) and len(one) >= 3 and isinstance(one[0], int) and isinstance(one[2], int):
            found[one[0]] = (str(one[1]), one[2])
    return found


class _Editor:
    """Nodes as the editor holds them."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], links: Mapping[int, tuple[str, int]]) -> None:
        self.nodes, self.links = nodes, links
        self.named = {
            self._first_widget(node): number for number, node in nodes.items() if str(node.get("type")) == "SetNode"
        }

    def is_queued(self, number: str) -> bool:
        node = self.nodes[number]
        return node.get("mode") not in (_MUTED, _BYPASSED) and node.get("type") not in _NOTES

    def node(self, number: str) -> Node:
        one = self.nodes[number]
        kind = str(one.get("type") or "")
        inputs = self._widgets(one, kind)
        for entry in self._entries(one):
            value = self._value(entry.get("link"))
            name = entry.get("name")
            if value is not None and isinstance(name, str):
                inputs[name] = value
        if kind == "GetNode" and self._first_widget(one) in self.named:
            inputs["source"] = [self.named[self._first_widget(one)], 0]
        return Node(number, kind, inputs)

    def _entries(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        listed = node.get("inputs")
        return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []

    def _first_widget(self, node: Mapping[str, Any]) -> str:
        values = node.get("widgets_values")
        return str(values[0]) if isinstance(values, list) and values else ""

    def _widgets(self, node: Mapping[str, Any], kind: str) -> dict[str, Any]:
        values = node.get("widgets_values")
        if isinstance(values, dict):
            return dict(values)
        if not isinstance(values, list):
            return {}
        names = _WIDGETS[kind].split() if kind in _WIDGETS else []
        if not names:
            for one in self._entries(node):
                if isinstance(one.get("widget"), dict):
                    names.append(str(one["widget"].get("name")))
                    if names[-1] in ("seed", "noise_seed") and len(values) > 1:
                        names.append(_AFTER)
        if not names:
            names = ["value"] if len(values) == 1 else [f"widget {k}" for k in range(len(values))]
        plain = dict(zip(names, values, strict=False))
        plain.pop(_AFTER, None)
        return {name: value for name, value in plain.items() if not isinstance(value, list)}

    def _value(self, link: object, depth: int = 0) -> object:
        """The wire behind a link, past bypassed nodes; the plain value of the editor's own primitives."""
        end = self.links.get(link) if isinstance(link, int) else None
        if end is None or end[0] not in self.nodes or depth > 100:
            return None
        node = self.nodes[end[0]]
        if node.get("type") == "PrimitiveNode":
            values = node.get("widgets_values")
            return values[0] if isinstance(values, list) and values else None
        if node.get("mode") == _BYPASSED:
            outputs = node.get("outputs")
            kinds = [one.get("type") for one in outputs if isinstance(one, dict)] if isinstance(outputs, list) else []
            kind = kinds[end[1]] if end[1] < len(kinds) else None
            same = [one for one in self._entries(node) if one.get("type") == kind]
            return self._value(same[0].get("link"), depth + 1) if same else None
        return None if node.get("mode") == _MUTED else [end[0], end[1]]
