"""ComfyUI's popular packs, LoRAs, sizes, seeds, the editor's graph, and the files that hold them.

The kind is described in `test_comfyui_texts.py`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_graphs import TEXT, Graph, encoded, graph, node, png, read
from PIL import Image
from sd_parsers import ParserManager
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.pipeline.output.foreign import read_recipe

PACKS: dict[str, Graph] = {
    "Efficiency": {
        "1": node(
            "Efficient Loader",
            ckpt_name="SD15\\v1-5.safetensors",
            vae_name="Baked VAE",
            clip_skip=-2,
            lora_name="None",
            lora_model_strength=1,
            lora_clip_strength=1,
            positive=TEXT,
            negative="bad",
            token_normalization="none",
            weight_interpretation="comfy",
            empty_latent_width=512,
            empty_latent_height=640,
            batch_size=1,
        ),
        "2": node(
            "KSampler (Efficient)",
            seed=42,
            steps=20,
            cfg=8.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            preview_method="auto",
            vae_decode="true",
            model=["1", 0],
            positive=["1", 1],
            negative=["1", 2],
            latent_image=["1", 3],
            optional_vae=["1", 4],
        ),
        "3": node("SaveImage", filename_prefix="x", images=["2", 5]),
    },
    "Impact's pipe": {
        "1": node("ToBasicPipe", model=["4", 0], clip=["9", 0], vae=["4", 2], positive=["6", 0], negative=["7", 0]),
        "2": node(
            "ImpactKSamplerBasicPipe",
            basic_pipe=["1", 0],
            seed=42,
            steps=20,
            cfg=8.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            latent_image=["5", 0],
            denoise=1.0,
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "9": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1]),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "6": node("CLIPTextEncode", text=TEXT, clip=["9", 0]),
        "7": node("CLIPTextEncode", text="bad", clip=["9", 0]),
        "8": node("VAEDecode", samples=["2", 1], vae=["2", 2]),
        "10": node("SaveImage", images=["8", 0]),
    },
    "easy-use": {
        "1": node(
            "easy fullLoader",
            ckpt_name="v1-5.safetensors",
            config_name="Default",
            vae_name="Baked VAE",
            clip_skip=-2,
            lora_name="None",
            resolution="自定义 x 自定义",
            empty_latent_width=512,
            empty_latent_height=640,
            positive=TEXT,
            positive_token_normalization="none",
            positive_weight_interpretation="comfy",
            negative="bad",
            negative_token_normalization="none",
            negative_weight_interpretation="comfy",
            batch_size=1,
        ),
        "2": node(
            "easy preSampling",
            steps=20,
            cfg=8,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1,
            seed=42,
            pipe=["1", 0],
        ),
        "3": node(
            "easy fullkSampler",
            pipe=["2", 0],
            steps=0,
            cfg=0,
            sampler_name=None,
            image_output="Save",
            save_prefix="ComfyUI",
        )
        | {},
    },
    "rgthree's context": {
        "1": node(
            "Context (rgthree)",
            model=["4", 0],
            clip=["9", 0],
            vae=["4", 2],
            positive=["6", 0],
            negative=["7", 0],
            latent=["5", 0],
        ),
        "2": node(
            "KSampler",
            seed=42,
            steps=20,
            cfg=8.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            model=["1", 1],
            positive=["1", 4],
            negative=["1", 5],
            latent_image=["1", 6],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "9": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1]),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "6": node("CLIPTextEncode", text=TEXT, clip=["9", 0]),
        "7": node("CLIPTextEncode", text="bad", clip=["9", 0]),
        "8": node("VAEDecode", samples=["2", 0], vae=["1", 3]),
        "10": node("SaveImage", images=["8", 0]),
    },
}
del PACKS["easy-use"]["3"]["inputs"]["steps"], PACKS["easy-use"]["3"]["inputs"]["cfg"]


@pytest.mark.parametrize("name", PACKS)
def test_popular_packs(name: str) -> None:
    request = read(PACKS[name]).request
    assert (request.prompt, request.negative_prompt, request.seed) == (TEXT, "bad", 42)
    assert (request.num_inference_steps, request.guidance_scale) == (20, 8.0)
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "karras")
    assert (request.width, request.height, request.model) == (512, 640, "v1-5.safetensors")
    assert request.clip_skip == 2


SIZES: dict[str, dict[str, Any]] = {
    "SD3": node("EmptySD3LatentImage", width=512, height=640, batch_size=1),
    "Comfyroll": node(
        "CR SDXL Aspect Ratio", width=640, height=512, aspect_ratio="custom", swap_dimensions="On", upscale_factor=1
    ),
    "essentials": node("SDXLEmptyLatentSizePicker+", resolution="512x640 (0.8)", batch_size=1, width_override=0),
    "wired": node("EmptyLatentImage", width=["40", 0], height=["41", 0], batch_size=1),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    more = {"n40": node("PrimitiveInt", value=512), "n41": node("INTConstant", value=640)}
    request = read(graph(n5=SIZES[name], **more)).request
    assert (request.width, request.height) == (512, 640)


def test_a_size_that_is_computed_is_the_pictures_own() -> None:
    values = graph(
        n5=node("EmptyLatentImage", width=["40", 0], height=["40", 1]),
        n40=node("MathExpression|pysssss", expression="a"),
    )
    found = read(values, (48, 64))
    assert (found.request.width, found.request.height) == (48, 64)
    assert any("MathExpression" in note for note in found.notes)


@pytest.mark.parametrize(
    "source",
    [
        node("Seed (rgthree)", seed=7),
        node("easy seed", seed=7, control_mode="x"),
        node("PrimitiveInt", value=7),
        node("CR Seed", seed=7),
        node("Seed Generator", seed=7),
        node("Int Literal", int=7),
    ],
    ids=lambda one: one["class_type"],
)
def test_seeds_from_other_nodes(source: dict[str, Any]) -> None:
    values = graph(n40=source)
    values["3"]["inputs"]["seed"] = ["40", 0]
    assert read(values).request.seed == 7


def test_a_starting_picture_is_noted() -> None:
    values = graph(
        n5=node("VAEEncode", pixels=["40", 0], vae=["4", 2]), n40=node("LoadImage", image="start.png", upload="image")
    )
    values["3"]["inputs"]["denoise"] = 0.6
    found = read(values)
    assert any("start.png" in note and "0.6" in note for note in found.notes)


A1111 = (
    "a good text\nNegative prompt: worse\n"
    "Steps: 9, Sampler: Euler a, CFG scale: 5, Seed: 11, Size: 64x64, Version: ComfyUI"
)


@pytest.mark.parametrize(
    "values",
    [{"1": node("LoadImage", image="x.png")}, graph(n3=None), graph(n6=encoded("99", 0)), {}],
    ids=["no sampler", "sampler removed", "prompt unknown", "empty"],
)
def test_the_text_beside_a_graph_that_says_too_little(values: Graph) -> None:
    found = read_recipe(png({"prompt": json.dumps(values), "parameters": A1111}))
    assert (found.request.prompt, found.request.seed, found.tool) == ("a good text", 11, "comfyui")
    assert any("parameters" in note for note in found.notes)


def test_a_graph_that_says_enough_counts_more_than_the_text_beside_it() -> None:
    assert read_recipe(png({"prompt": json.dumps(graph()), "parameters": A1111})).request.prompt == TEXT


def test_a_second_opinion_on_the_plain_ones() -> None:
    data = png({"prompt": json.dumps(graph()), "workflow": json.dumps({"links": []})})
    other = ParserManager().parse(io.BytesIO(data))
    assert other is not None
    (sampler,) = other.samplers
    request = read_recipe(data).request
    assert [one.value for one in sampler.prompts] == [request.prompt]
    assert (sampler.name, sampler.parameters["steps"]) == (request.sampler, request.num_inference_steps)


EDITOR: dict[str, Any] = {
    "nodes": [
        {
            "id": 3,
            "type": "KSampler",
            "mode": 0,
            "widgets_values": [42, "randomize", 20, 8, "dpmpp_2m", "karras", 1],
            "inputs": [
                {"name": "model", "link": 1},
                {"name": "positive", "link": 2},
                {"name": "negative", "link": 3},
                {"name": "latent_image", "link": 4},
            ],
        },
        {"id": 4, "type": "CheckpointLoaderSimple", "mode": 0, "widgets_values": ["v1-5.safetensors"], "inputs": []},
        {"id": 5, "type": "EmptyLatentImage", "mode": 0, "widgets_values": [512, 640, 1], "inputs": []},
        {
            "id": 6,
            "type": "CLIPTextEncode",
            "mode": 0,
            "widgets_values": ["old"],
            "inputs": [{"name": "clip", "link": 5}, {"name": "text", "link": 9, "widget": {"name": "text"}}],
        },
        {
            "id": 7,
            "type": "CLIPTextEncode",
            "mode": 0,
            "widgets_values": ["bad"],
            "inputs": [{"name": "clip", "link": 5}],
        },
        {
            "id": 8,
            "type": "VAEDecode",
            "mode": 0,
            "inputs": [{"name": "samples", "link": 6}, {"name": "vae", "link": 7}],
        },
        {
            "id": 9,
            "type": "SaveImage",
            "mode": 0,
            "widgets_values": ["ComfyUI"],
            "inputs": [{"name": "images", "link": 8}],
        },
        {"id": 10, "type": "PrimitiveNode", "mode": 0, "widgets_values": [TEXT]},
        {
            "id": 11,
            "type": "LoraLoader",
            "mode": 4,
            "widgets_values": ["off.safetensors", 1, 1],
            "inputs": [{"name": "model", "type": "MODEL", "link": 10}, {"name": "clip", "type": "CLIP", "link": 5}],
            "outputs": [{"name": "MODEL", "type": "MODEL"}, {"name": "CLIP", "type": "CLIP"}],
        },
        {"id": 12, "type": "Note", "mode": 0, "widgets_values": ["a note"]},
        {
            "id": 13,
            "type": "KSampler",
            "mode": 2,
            "widgets_values": [1, "fixed", 1, 1, "euler", "normal", 1],
            "inputs": [],
        },
    ],
    "links": [
        [1, 11, 0, 3, 0, "MODEL"],
        [2, 6, 0, 3, 1, "CONDITIONING"],
        [3, 7, 0, 3, 2, "CONDITIONING"],
        [4, 5, 0, 3, 3, "LATENT"],
        [5, 4, 1, 6, 0, "CLIP"],
        [6, 3, 0, 8, 0, "LATENT"],
        [7, 4, 2, 8, 1, "VAE"],
        [8, 8, 0, 9, 0, "IMAGE"],
        [9, 10, 0, 6, 1, "STRING"],
        [10, 4, 0, 11, 0, "MODEL"],
    ],
}


def test_the_editors_graph_where_the_queued_one_is_missing() -> None:
    """Wires by number, widgets by position; muted and bypassed nodes, primitives and notes."""
    found = read_recipe(png({"workflow": json.dumps(EDITOR)}))
    request = found.request
    assert (request.prompt, request.negative_prompt, request.seed) == (TEXT, "bad", 42)
    assert (request.width, request.height, request.num_inference_steps) == (512, 640, 20)
    assert request.model == "v1-5.safetensors"
    assert any("editor's graph" in note for note in found.notes)


def exif_file(kind: str, tags: dict[int, str]) -> bytes:
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[tag] = text
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
@pytest.mark.parametrize(
    "tags",
    [
        {0x0110: "prompt:{}", 0x010F: "workflow:{{}}"},
        {0x010F: "Prompt: {}", 0x010E: "Workflow: {{}}"},
        {0x010E: "prompt:{}"},
        {0x010F: "workflow:{{}}", 0x010E: "extra:[1]", 0x0110: "prompt:{}"},
    ],
    ids=["core", "WAS", "description", "more"],
)
def test_webp_and_jpeg_hold_the_graph_in_exif(kind: str, tags: dict[int, str]) -> None:
    data = exif_file(kind, {tag: text.format(json.dumps(graph())) for tag, text in tags.items()})
    found = read_recipe(data)
    assert (found.tool, found.request.prompt, found.request.seed) == ("comfyui", TEXT, 42)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_webp_and_jpeg_hold_both_graphs_in_one_comment(kind: str) -> None:
    exif = Image.Exif()
    packed = json.dumps({"prompt": graph(), "workflow": {"nodes": []}})
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + packed.encode("utf-16-be")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    assert read_recipe(file.getvalue()).request.prompt == TEXT


def test_notes_reach_the_recipe_of_what_is_painted_like_it(tmp_path: Path) -> None:
    values = graph(n10=node("FreeU_V2", model=["4", 0], b1=1.3), n5=node("EmptyLatentImage", width=32, height=32))
    values["3"]["inputs"] |= {"model": ["10", 0], "steps": 1}
    values["4"]["inputs"]["ckpt_name"] = "pocket"
    source, made = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(png({"prompt": json.dumps(values)}))
    done = CliRunner().invoke(app, ["paint", "--like", str(source), "-o", str(made)])
    assert done.exit_code == 0, done.output
    recipe = read_recipe(made).recipe
    assert recipe is not None
    assert any("FreeU_V2 (node 10)" in note for note in recipe.notes)
    assert recipe.request.prompt == TEXT
