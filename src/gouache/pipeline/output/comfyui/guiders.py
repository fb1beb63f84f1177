"""What a graph says of guiders: the nodes between checkpoint and sampler that change how the model is guided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.pipeline.fields.guiders import FreeU, Mimic, Pag, PerpNeg, Sag
from gouache.pipeline.output.comfyui.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of node and the group of a request that says the same.

    Attributes:
        option: the request's field.
        group: its class.
        numbers: the group's field -> the node's input.
        fixed: what the node means without saying it.
        only: inputs that have to be absent or among these values; with others the node does something else.
    """

    option: str
    group: type[Config]
    numbers: dict[str, str]
    fixed: dict[str, Any] = field(default_factory=dict)
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)


_FREE_U = {name: name for name in ("b1", "b2", "s1", "s2")}
_RANGES = {"scale": "mimic_scale", "percentile": "threshold_percentile"}
_CONSTANT = ("Constant", "CONSTANT")
KINDS = {
    "PerturbedAttentionGuidance": Kind("pag", Pag, {"scale": "scale"}),
    "PerturbedAttention": Kind(
        "pag",
        Pag,
        {"scale": "scale"},
        only={
            "adaptive_scale": (0,),
            "unet_block": ("middle",),
            "unet_block_id": (0,),
            "unet_block_list": ("",),
            "sigma_start": (-1,),
            "sigma_end": (-1,),
            "rescale": (0,),
        },
    ),
    "SelfAttentionGuidance": Kind("sag", Sag, {"scale": "scale", "blur_sigma": "blur_sigma"}),
    "FreeU": Kind("freeu", FreeU, _FREE_U, {"version": 1, "stages": "widths"}),
    "FreeU_V2": Kind("freeu", FreeU, _FREE_U, {"version": 2, "stages": "widths"}),
    "PerpNeg": Kind("perp_neg", PerpNeg, {"scale": "neg_scale"}),
    "PerpNegGuider": Kind("perp_neg", PerpNeg, {"scale": "neg_scale"}),
    "DynamicThresholdingSimple": Kind("mimic", Mimic, _RANGES, {"by_channel": False}),
    "DynamicThresholdingFull": Kind(
        "mimic",
        Mimic,
        {**_RANGES, "phi": "interpolate_phi"},
        only={"mimic_mode": _CONSTANT, "cfg_mode": _CONSTANT},
    ),
}
"""Kinds of nodes of ComfyUI, of sd-perturbed-attention and of sd-dynamic-thresholding."""
_LATER = "interpolate_phi"
"""An input that older versions of its node don't have."""
_WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "separate_feature_channels": ("by_channel", {"enable": True, "disable": False}),
    "scaling_startpoint": ("centre", {"MEAN": "mean", "ZERO": "zero"}),
    "variability_measure": ("spread", {"AD": "max", "STD": "std"}),
}


def guiders_of(graph: Graph, nodes: Iterable[Node]) -> tuple[dict[str, Any], frozenset[str]]:
    """Fields of a request, and the numbers of the nodes that they say.

    Args:
        graph: gets a note of each node that is left out.
        nodes: those above the sampler, the nearest first; of two that say the same the nearest counts.
    """
    found: dict[str, Any] = {}
    understood: set[str] = set()
    rescales = False
    for node in nodes:
        kind = KINDS.get(node.kind)
        rescales = rescales or node.kind == "RescaleCFG"
        if kind is None:
            continue
        if kind.option in found:
            graph.note(f"{node} comes before another that sets {kind.option}; it is left out")
            continue
        group = _group(graph, node, kind)
        if group is not None:
            found[kind.option] = group
            understood.add(node.number)
    added = sorted(found.keys() & {"pag", "sag"})
    if rescales and added:
        graph.note(f"RescaleCFG acts before {' and '.join(added)} there; here it takes them in")
    return found, frozenset(understood)


def _group(graph: Graph, node: Node, kind: Kind) -> dict[str, Any] | None:
    """The group's values; None, with a note where the model's nodes are walked, for what has no place in it."""
    for name, allowed in kind.only.items():
        if name in node.inputs and graph.plain(node.inputs[name], name) not in allowed:
            return None
    values = dict(kind.fixed)
    for ours, theirs in kind.numbers.items():
        number = graph.number(node.inputs.get(theirs), theirs)
        if number is None and theirs != _LATER:
            return None
        if number is not None:
            values[ours] = number
    for theirs, (ours, words) in _WORDS.items():
        if theirs in node.inputs and kind.group is Mimic:
            word = graph.plain(node.inputs[theirs], theirs)
            if word not in words:
                return None
            values[ours] = words[word]
    try:
        kind.group.from_dict(values, where=node.kind)
    except ConfigError as error:
        graph.note(f"{node} has a value that isn't repeated: {error.given}")
        return None
    return values
