"""Graphs as ComfyUI writes them, and the pictures that hold them."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image, PngImagePlugin

from gouache.pipeline.output.foreign import ForeignText, read_recipe

Graph = dict[str, dict[str, Any]]
TEXT = "a (red:1.2) cat"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(**nodes: Any) -> Graph:
    """The default workflow with other nodes in place of its own or beside them; None takes one away."""
    plain = {
        "3": node(
            "KSampler",
            seed=42,
            steps=20,
            cfg=8,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "6": node("CLIPTextEncode", text=TEXT, clip=["4", 1]),
        "7": node("CLIPTextEncode", text="bad", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }
    named = {key.removeprefix("n"): one for key, one in nodes.items()}
    return {key: one for key, one in {**plain, **named}.items() if one is not None}


def png(texts: dict[str, str], size: tuple[int, int] = (8, 8)) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read(values: Graph, size: tuple[int, int] = (8, 8), where: str = "picture") -> ForeignText:
    return read_recipe(png({"prompt": json.dumps(values)}, size), where=where)


def encoded(*wire: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=list(wire), clip=["4", 1])
