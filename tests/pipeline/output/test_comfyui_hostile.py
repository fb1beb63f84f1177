"""Graphs that nobody drew: any wires, circles, values of any kind, sizes that would cost hours.

The kind: a text in a file from anywhere. It ends in a request or in a typed error, in about the time that its length
takes.
"""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gouache.errors import RecipeError
from gouache.pipeline.output.comfyui.graph import MAX_NODES
from gouache.pipeline.output.foreign import read_recipe

KINDS = [
    "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "SaveImage", "PreviewImage",
    "VAEDecode", "VAEEncode", "CLIPTextEncode", "CLIPTextEncodeSDXL", "ConditioningCombine",
    "ConditioningConcat", "ConditioningAverage", "ConditioningSetTimestepRange", "ConditioningSetArea",
    "ControlNetApplyAdvanced", "StringConcatenate", "StringReplace", "PrimitiveString", "Reroute",
    "Any Switch (rgthree)", "ImpactSwitch", "LatentUpscaleBy", "ImageScale", "FaceDetailer", "LoraLoader",
    "LoRA Stacker", "Power Lora Loader (rgthree)", "CheckpointLoaderSimple", "CFGGuider", "BasicScheduler",
    "SplitSigmas", "RandomNoise", "KSamplerSelect", "easy fullLoader", "Efficient Loader", "ManualSigmas",
    "Unknown", "",
]  # fmt: skip
INPUTS = [
    "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "model", "positive", "negative",
    "latent_image", "text", "images", "samples", "pixels", "image", "conditioning", "conditioning_1",
    "conditioning_2", "string_a", "string_b", "find", "replace", "string", "any_01", "select", "input1",
    "scale_by", "width", "height", "lora_name", "lora_stack", "lora_1", "strength_model", "ckpt_name", "clip",
    "noise", "guider", "sampler", "sigmas", "step", "pipe", "start", "end", "conditioning_to",
    "conditioning_from", "start_at_step", "end_at_step", "add_noise", "text_g", "text_l", "",
]  # fmt: skip
WIRES = st.tuples(st.sampled_from("123456"), st.integers(-1, 2)).map(list)
VALUES = (
    WIRES
    | WIRES
    | st.integers(-2, 40)
    | st.floats()
    | st.sampled_from(["a", "x", "", "None"])
    | st.none()
    | st.booleans()
)
ODD = (
    VALUES
    | st.lists(st.integers(0, 3), max_size=2)
    | st.dictionaries(st.sampled_from(["lora", "content", "on"]), VALUES)
)
NODES = st.fixed_dictionaries(
    {"class_type": st.sampled_from(KINDS), "inputs": st.dictionaries(st.sampled_from(INPUTS), ODD, max_size=9)}
)


def png(texts: dict[str, str]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from("123456"), NODES, min_size=1, max_size=6))
def test_any_graph_ends_in_a_request_or_a_typed_error(values: dict[str, Any]) -> None:
    sampler = {
        "seed": 1,
        "steps": 2,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "latent_image": ["2", 0],
        "model": ["3", 0],
        "positive": ["4", 0],
        "negative": ["5", 0],
    }
    values.setdefault("1", {"class_type": "KSampler", "inputs": sampler})
    try:
        found = read_recipe(png({"prompt": json.dumps(values)}))
    except RecipeError:
        return
    assert found.prompt_known or not found.request.prompt


def chain(count: int, kind: str, name: str, other: str = "") -> dict[str, Any]:
    """A sampler whose prompt is `count` nodes away, each wired once or twice to the next."""
    nodes: dict[str, Any] = {
        str(k): {"class_type": kind, "inputs": {one: [str(k + 1), 0] for one in (name, other) if one}}
        for k in range(10, 10 + count)
    }
    nodes[str(10 + count)] = {"class_type": "CLIPTextEncode", "inputs": {"text": "x" * 90_000}}
    inputs = {
        "seed": 1,
        "steps": 2,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "latent_image": ["10", 0],
        "model": ["10", 0],
        "positive": ["10", 0],
        "negative": ["10", 0],
    }
    return {"1": {"class_type": "KSampler", "inputs": inputs}, **nodes}


@pytest.mark.parametrize(
    "values",
    [
        chain(60, "StringConcatenate", "string_a", "string_b"),
        chain(60, "ConditioningCombine", "conditioning_1", "conditioning_2"),
        chain(60, "ConditioningConcat", "conditioning_to", "conditioning_from"),
        chain(1500, "ConditioningSetArea", "conditioning"),
        chain(1500, "FaceDetailer", "image"),
        chain(1500, "Reroute", "any"),
        chain(1500, "LoraLoader", "model"),
        chain(MAX_NODES + 1, "VAEDecode", "samples"),
    ],
    ids=["joins", "combinations", "concatenations", "areas", "detailers", "reroutes", "loaders", "too many"],
)
def test_long_chains_and_doubling_ones_end_soon(values: dict[str, Any]) -> None:
    encoder = {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0]}}
    start = time.process_time()
    for one in (
        values,
        {**values, "2": encoder, "1": {**values["1"], "inputs": {**values["1"]["inputs"], "positive": ["2", 0]}}},
    ):
        try:
            read_recipe(png({"prompt": json.dumps(one)}))
        except RecipeError:
            continue
    assert time.process_time() - start < 10.0


def test_replacements_that_would_fill_the_memory() -> None:
    values = chain(0, "x", "y")
    for k in range(10, 16):
        inputs = {"string": [str(k + 1), 0], "find": "x", "replace": "x" * 1000}
        values[str(k)] = {"class_type": "StringReplace", "inputs": inputs}
    values["16"] = {"class_type": "PrimitiveString", "inputs": {"value": "x" * 1000}}
    values["2"] = {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0]}}
    values["1"]["inputs"]["positive"] = ["2", 0]
    assert not read_recipe(png({"prompt": json.dumps(values)})).prompt_known


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.integers(1, 6) | st.text(max_size=2),
                "type": st.sampled_from([*KINDS, "SetNode", "GetNode", "PrimitiveNode"]),
            },
            optional={
                "mode": st.sampled_from([0, 2, 4]),
                "widgets_values": st.lists(ODD, max_size=6)
                | st.dictionaries(st.sampled_from(INPUTS), ODD, max_size=3)
                | st.none(),
                "inputs": st.lists(
                    st.fixed_dictionaries({"name": st.sampled_from(INPUTS), "link": st.integers(0, 6) | st.none()}),
                    max_size=4,
                ),
                "outputs": st.lists(st.fixed_dictionaries({"type": st.sampled_from(["MODEL", "IMAGE"])}), max_size=2),
            },
        ),
        max_size=6,
    ),
    st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=6),
)
def test_any_editors_graph_ends_in_a_request_or_a_typed_error(nodes: list[Any], links: list[Any]) -> None:
    try:
        read_recipe(png({"workflow": json.dumps({"nodes": nodes, "links": links})}))
    except RecipeError:
        return
