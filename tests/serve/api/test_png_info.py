"""`/sdapi/v1/png-info`, and images dropped on the page: other programs' settings in A1111's words."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

A1111 = "a cat\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 42, Size: 512x768"
NODES: dict[str, Any] = {
    "3": ("KSampler", {"seed": 42, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras",
                       "denoise": 1, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0],
                       "latent_image": ["5", 0]}),
    "4": ("CheckpointLoaderSimple", {"ckpt_name": "dreamy.safetensors"}),
    "5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
    "6": ("CLIPTextEncode", {"text": ["11", 0], "clip": ["4", 1]}),
    "7": ("CLIPTextEncode", {"text": "bad", "clip": ["4", 1]}),
    "9": ("SaveImage", {"images": ["3", 0]}),
    "10": ("FreeU_V2", {"model": ["4", 0]}),
    "11": ("PrimitiveString", {"value": "a cat"}),
}  # fmt: skip
COMFY = json.dumps({key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in NODES.items()})
SWARM = json.dumps(
    {"sui_image_params": {"prompt": "a cat", "negativeprompt": "bad", "seed": 42, "steps": 20, "cfgscale": 7.5,
                          "width": 512, "height": 768, "sampler": "dpmpp_2m", "scheduler": "karras"}}
)  # fmt: skip
TEXTS = {"a1111": {"parameters": A1111}, "comfyui": {"prompt": COMFY}, "swarmui": {"parameters": SWARM}}


def png(texts: dict[str, str]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


@pytest.mark.parametrize("tool", TEXTS)
def test_png_info_answers_in_a1111s_words(make_client: MakeClient, tool: str) -> None:
    image = base64.b64encode(png(TEXTS[tool])).decode()
    answer = make_client().post("/sdapi/v1/png-info", json={"image": image}).json()
    found = answer["parameters"]
    assert (found["Prompt"], found["Negative prompt"], found["Seed"], found["Steps"]) == ("a cat", "bad", "42", "20")
    assert answer["info"].startswith("a cat\nNegative prompt: bad\nSteps: 20")
    assert ("notes" in answer["items"]) is (tool == "comfyui")
    assert tool == "a1111" or any(text in answer["items"].values() for text in TEXTS[tool].values())


@pytest.mark.parametrize("texts", [{}, {"Comment": "hello"}, {"parameters": "only a prompt"}, {"prompt": "{"}])
def test_png_info_of_a_picture_without_settings_is_what_stands_there(
    make_client: MakeClient, texts: dict[str, str]
) -> None:
    image = base64.b64encode(png(texts)).decode()
    answer = make_client().post("/sdapi/v1/png-info", json={"image": image})
    assert answer.status_code == 200
    assert answer.json()["info"] == texts.get("parameters", "")
