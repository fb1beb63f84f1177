"""Other tools' pictures: texts as those tools write them; `sd_parsers` reads the same files as a second opinion."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from gouache.diffusion.samplers.names import resolve
from gouache.errors import RecipeError
from gouache.pipeline.output.foreign import read_recipe

A1111 = (
    "a (red:1.2) cat\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1234, Size: 512x768, Model: v1-5, "
    "Clip skip: 2, Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent, "
    "Version: v1.10.1"
)
SD_CPP = (
    "a cat\nNegative prompt: bad\nSteps: 12, CFG scale: 5.5, Guidance: 3.5, Eta: 0, Seed: 42, Size: 512x512, "
    "Model: sd.gguf, RNG: cuda, Sampler: euler_a karras, Version: stable-diffusion.cpp"
)
INVOKE = {
    "positive_prompt": "a cat",
    "negative_prompt": "bad",
    "width": 640,
    "height": 512,
    "seed": 77,
    "cfg_scale": 6.0,
    "steps": 25,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 1,
    "seamless_x": True,
    "seamless_y": False,
    "model": {"model_name": "dreamy", "base_model": "sd-1"},
    "app_version": "3.7.0",
}
COMFY_PROMPT = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 8566257,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (red) cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}
LINKS = [[1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"]]
NOVEL = {
    "prompt": "{cat}, [dog]",
    "uc": "bad",
    "steps": 28,
    "height": 768,
    "width": 512,
    "scale": 11.0,
    "seed": 99,
    "sampler": "k_euler_ancestral",
    "noise_schedule": "karras",
    "cfg_rescale": 0.2,
    "strength": 0.7,
    "noise": 0.2,
}


def png(**texts: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key.replace("_", " ") if key == "sd_metadata" else key, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def second_opinion(data: bytes) -> Any:
    found = ParserManager().parse(io.BytesIO(data))
    assert found is not None
    return found.samplers[0]


def agrees(data: bytes, prompt: str) -> None:
    """Prompt, negative prompt, seed and steps are those that the other reader finds."""
    request, other = read_recipe(data).request, second_opinion(data)
    assert [text.value for text in other.prompts] == [prompt]
    assert [text.value for text in other.negative_prompts] == [request.negative_prompt]
    assert str(other.parameters["seed"]) == str(request.seed)


def test_a1111() -> None:
    data = png(parameters=A1111)
    found = read_recipe(data)
    request = found.request
    assert found.tool == "a1111"
    assert (request.sampler, request.schedule) == ("DPM++ 2M", "Karras")
    assert (request.width, request.height, request.seed, request.num_inference_steps) == (512, 768, 1234, 20)
    assert (request.guidance_scale, request.clip_skip, request.determinism) == (7.5, 2, "a1111")
    assert request.hires is not None
    assert (request.hires.scale, request.hires.num_inference_steps, request.hires.strength) == (1.5, 10, 0.6)
    agrees(data, "a (red:1.2) cat")


def test_sd_cpp() -> None:
    data = png(parameters=SD_CPP)
    found = read_recipe(data)
    assert found.tool == "sd.cpp"
    assert found.request.guidance_scale == 5.5
    assert resolve(found.request.sampler or "") == ("euler_ancestral", "karras")
    agrees(data, "a cat")


def test_invokeai() -> None:
    data = png(invokeai_metadata=json.dumps(INVOKE))
    found = read_recipe(data)
    request = found.request
    assert found.tool == "invokeai"
    assert (resolve(request.sampler or "")[0], request.schedule) == ("dpmpp_2m", "karras")
    assert (request.width, request.clip_skip, request.seamless, request.model) == (640, 2, "x", "dreamy")
    agrees(data, "a cat")


def test_comfyui() -> None:
    data = png(prompt=json.dumps(COMFY_PROMPT), workflow=json.dumps({"links": LINKS}))
    found = read_recipe(data)
    request = found.request
    assert found.tool == "comfyui"
    assert (request.prompt, request.negative_prompt, request.emphasis) == ("a (red) cat", "bad", "comfy")
    assert (request.width, request.height, request.model) == (512, 640, "v1-5.safetensors")
    assert (request.seed, request.num_inference_steps, request.guidance_scale) == (8566257, 20, 8.0)
    agrees(data, "a (red) cat")


def test_loras_of_other_tools_become_tags() -> None:
    """What a graph or a list of LoRAs holds must not be lost without a word."""
    loras = [{"model": {"name": "film"}, "weight": 0.75}, {"lora": {"model_name": "old"}, "weight": -0.5}]
    found = read_recipe(png(invokeai_metadata=json.dumps({**INVOKE, "loras": loras})))
    assert found.request.prompt == "a cat <lora:film:0.75:0.75> <lora:old:-0.5:-0.5>"
    graph = json.loads(json.dumps(COMFY_PROMPT))
    graph["3"]["inputs"]["model"] = ["10", 0]
    loader = {"lora_name": "styles\\film.safetensors", "strength_model": 0.8, "strength_clip": ["12", 0]}
    graph["10"] = {"class_type": "LoraLoader", "inputs": {**loader, "model": ["11", 0], "clip": ["4", 1]}}
    only = {"lora_name": "b.safetensors", "strength_model": 1.5, "model": ["4", 0]}
    graph["11"] = {"class_type": "LoraLoaderModelOnly", "inputs": only}
    graph["12"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 0.25}}
    request = read_recipe(png(prompt=json.dumps(graph))).request
    assert request.prompt == "a (red) cat <lora:film:0.25:0.8> <lora:b:0:1.5>"
    assert request.model == "v1-5.safetensors"


def test_comfyui_seeds_beyond_ours_are_folded() -> None:
    graph = json.loads(json.dumps(COMFY_PROMPT))
    graph["3"]["inputs"]["seed"] = 2**64 - 1
    assert read_recipe(png(prompt=json.dumps(graph))).request.seed == 2**63 - 1


def test_novelai() -> None:
    data = png(
        Software="NovelAI", Source="Stable Diffusion 1D44365E", Description="{cat}, [dog]", Comment=json.dumps(NOVEL)
    )
    found = read_recipe(data)
    request = found.request
    assert found.tool == "novelai"
    assert request.prompt == "(cat:1.05), (dog:0.9524)"
    assert resolve(request.sampler or "")[0] == "euler_ancestral"
    assert (request.schedule, request.guidance_rescale) == ("karras", 0.2)
    agrees(data, "{cat}, [dog]")


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "only a prompt"},
        {"parameters": "a\nSteps: many, Sampler: Euler, Seed: 1"},
        {"parameters": "a\nSteps: 0, Sampler: Euler, Seed: 1"},
        {"parameters": "a\nSteps: 5, Sampler: Euler, Seed: -7"},
        {"gouache": "{}"},
        {"gouache": '{"recipe": 1, "request": {"prompt": 3}}'},
        {"invokeai_metadata": "[]"},
        {"invokeai_metadata": '{"steps": -1}'},
        {"prompt": '{"1": {"inputs": {}}}'},
        {"prompt": "{"},
        {"Software": "NovelAI", "Comment": "null"},
    ],
)
def test_damaged_or_missing_recipes_are_typed_errors(texts: dict[str, str]) -> None:
    with pytest.raises(RecipeError):
        read_recipe(png(**texts))


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "inputs",
                        "seed",
                        "steps",
                        "cfg",
                        "sampler_name",
                        "positive",
                        "prompt",
                        "image",
                        "model",
                        "1",
                        "2",
                        "text",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["prompt", "invokeai_metadata", "Comment"]),
)
def test_no_json_breaks_the_readers(values: Any, key: str) -> None:
    texts = {key: json.dumps(values), "Software": "NovelAI"}
    try:
        read_recipe(png(**texts))
    except RecipeError:
        return


@pytest.mark.parametrize(
    ("tool", "given", "expected"),
    [
        ("invokeai", 0.0, 1.0),
        ("invokeai", 0.5, 1.0),
        ("invokeai", 1, 1.0),
        ("invokeai", 7.5, 7.5),
        ("invokeai 2", 0.0, 1.0),
        ("invokeai 2", 7.5, 7.5),
        ("sd.next", 0, 1.0),
        ("sd.next", 1, 1.0),
        ("sd.next", 6, 6.0),
        ("sd.next diffusers", 0, 1.0),
        ("a1111", 0, 0.0),
        ("a1111", 1, 1.0),
        ("comfyui", 0.0, 0.0),
        ("comfyui", 1.0, 1.0),
        ("novelai", 0.0, 0.0),
    ],
)
def test_each_tools_guidance_scale_is_read_as_it_means_it(tool: str, given: float, expected: float) -> None:
    """Programs that run diffusers leave guidance off at 1 and below; the others mean the unguided prediction by 0."""
    text = f"a cat\nSteps: 4, Sampler: Euler, CFG scale: {given}, Seed: 1, Size: 512x512"
    graph = json.loads(json.dumps(COMFY_PROMPT))
    for node in graph.values():
        if "cfg" in node["inputs"]:
            node["inputs"]["cfg"] = given
    novelai = {"prompt": "a cat", "uc": "", "steps": 4, "scale": given, "sampler": "k_euler", "seed": 1}
    texts = {
        "invokeai": {"invokeai_metadata": json.dumps({"positive_prompt": "a cat", "cfg_scale": given})},
        "invokeai 2": {"sd-metadata": json.dumps({"image": {"prompt": "a cat", "cfg_scale": given}})},
        "sd.next": {"parameters": f"{text}, App: SD.Next"},
        "sd.next diffusers": {"parameters": f"{text}, Backend: Diffusers"},
        "a1111": {"parameters": text},
        "comfyui": {"prompt": json.dumps(graph)},
        "novelai": {"Software": "NovelAI", "Comment": json.dumps(novelai)},
    }[tool]
    assert read_recipe(png(**texts)).request.guidance_scale == expected


@pytest.mark.parametrize(
    ("scheduler", "sampler", "schedule"),
    [
        ("unipc", "unipc_bh2", "diffusers"),
        ("euler", "euler", "diffusers"),
        ("kdpm_2_a_k", "dpm_2_ancestral", "karras"),
        ("dpmpp_sde_k", "dpmpp_sde", "karras"),
        ("deis", "deis", "diffusers"),
        ("dpmpp_2m_sde", "dpmpp_2m_sde", None),
        ("made_up", "made_up", None),
    ],
)
def test_invokeai_s_schedulers_are_diffusers_classes(scheduler: str, sampler: str, schedule: str | None) -> None:
    """Its names mean classes of diffusers with their own lists, or Karras' behind `_k`."""
    request = read_recipe(png(invokeai_metadata=json.dumps({**INVOKE, "scheduler": scheduler}))).request
    assert (request.sampler, request.schedule) == (sampler, schedule)


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [("beta", "beta_time"), ("normal", "normal"), ("ddim_uniform", "ddim_uniform"), ("karras", "karras")],
)
def test_comfyui_s_beta_runs_over_time(scheduler: str, schedule: str) -> None:
    """A1111's schedule of that name runs over sigma."""
    graph = json.loads(json.dumps(COMFY_PROMPT))
    graph["3"]["inputs"]["scheduler"] = scheduler
    assert read_recipe(png(prompt=json.dumps(graph))).request.schedule == schedule
