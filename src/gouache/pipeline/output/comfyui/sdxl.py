"""The prompts of a graph, and what SDXL is told beside them: another text for its second encoder, and sizes.

ComfyUI's CLIPTextEncodeSDXL holds both texts, `text_l` for ViT-L, which is our `prompt`, and `text_g` for bigG, our
`prompt_2`; and the six numbers of Podell et al. 2023 (arXiv:2307.01952, section 2.2). CLIPTextEncodeSD3 holds the text
for T5 beside both, `t5xxl`, which is our `prompt_3`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gouache.pipeline.fields.values import MAX_SIDE, MIN_SIDE
from gouache.pipeline.output.comfyui.graph import Graph
from gouache.pipeline.output.comfyui.regions import regions_of
from gouache.pipeline.output.comfyui.sampling import Sampling
from gouache.pipeline.output.comfyui.texts import (
    Conditionings,
    Part,
    alone_everywhere,
    in_a1111s_words,
    in_boxes,
    prompt_of,
)

_NUMBERS = {
    "original_width": "width",
    "original_height": "height",
    "crop_left": "crop_w",
    "crop_top": "crop_h",
    "target_width": "target_width",
    "target_height": "target_height",
}
"""Our name of a number -> the node's."""


def prompts_of(
    graph: Graph, encoded: Conditionings, main: Sampling, size: tuple[int | None, int | None] = (None, None)
) -> dict[str, Any]:
    """The prompts of a sampler for each of SDXL's encoders (once, where both read the same), and the rule of emphasis.

    Args:
        graph: takes the notes.
        encoded: follows the wires.
        main: the sampler.
        size: width and height of the picture, as far as they are known, for prompts on parts of it.
    """
    positive = encoded.parts(main.positive, "positive")
    negative = encoded.parts(main.negative, "negative") if main.negative is not None else []
    if positive is None:
        graph.note("the prompt could not be followed and is not known")
    if negative is None:
        graph.note("the negative prompt could not be followed and is left out")
    found: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    joined = False
    positive = alone_everywhere(positive, graph)
    everywhere = None if positive is None else [part for part in positive if part.area is None]
    for suffix, parts in _by_encoder(everywhere):
        found[f"prompt{suffix}"], joined = prompt_of(parts, graph)
    boxed, boxes_joined = in_boxes(positive or [], graph, joined=joined)
    if boxes_joined and not joined:
        joined = True
        found |= {name: in_a1111s_words(text) for name, text in found.items() if text}
    regions = regions_of(boxed, bool(everywhere), (size[0], size[1]) if size[0] and size[1] else None, graph)
    if regions:
        found["regions"] = regions
    for suffix, parts in _by_encoder(negative):
        text, _ = prompt_of(parts, graph, negative=True)
        found[f"negative_prompt{suffix}"] = in_a1111s_words(text) if joined and text else text
    return {**found, "emphasis": "a1111" if joined else encoded.rule}


def _by_encoder(parts: list[Part] | None) -> list[tuple[str, list[Part]]]:
    """Suffix of the field, and what its encoder reads."""
    if parts is None:
        return []
    found = [("", parts)]
    if any(part.second is not None for part in parts):
        found.append(("_2", [part.for_second for part in parts]))
    if any(part.third is not None for part in parts):
        found.append(("_3", [part.for_third for part in parts]))
    return found


def sizes_of(
    graph: Graph, encoded: Conditionings, size: Sequence[int | None], scores: Mapping[str, float]
) -> dict[str, Any]:
    """The field `size_condition`, where a graph tells other sizes than the picture's; else nothing.

    Args:
        graph: takes the notes.
        encoded: after it followed the prompts.
        size: width and height of the picture, as far as they are known.
        scores: what the refiner is told of beauty.
    """
    found = {
        role: {ours: graph.number(node.inputs.get(theirs), theirs) for ours, theirs in _NUMBERS.items()}
        for role, node in encoded.sized.items()
    }
    told = {name: number for name, number in found.get("positive", {}).items() if isinstance(number, int)}
    if "positive" in found and found.get("negative", found["positive"]) != found["positive"]:
        graph.note(f"{encoded.sized['negative']} tells sizes of its own, which are left out")
    if not all((0 if name.startswith("crop") else MIN_SIDE) <= number <= MAX_SIDE for name, number in told.items()):
        graph.note(f"{encoded.sized['positive']} tells sizes outside of what is possible here; they are left out")
        return {}
    own = dict(zip(("original_width", "original_height", "crop_left", "crop_top"), (*size, 0, 0), strict=True))
    own |= {"target_width": size[0], "target_height": size[1]}
    if all(number == own[name] for name, number in told.items()):
        return {}
    return {"size_condition": {**told, **scores}}
