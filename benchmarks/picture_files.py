"""Small pictures with their settings inside, as each program writes them: place, container, encoding, names of keys."""

from __future__ import annotations

import html
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

GIVEN = {
    "prompt": "a cat", "negative_prompt": "bad", "seed": 42, "num_inference_steps": 20, "guidance_scale": 7.5,
    "width": 512, "height": 768, "sampler": "dpmpp_2m", "schedule": "karras", "model": "dreamy",
}  # fmt: skip
"""What every program was asked for, in our words."""
TEXT = (
    "a cat\nNegative prompt: bad\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, Model: dreamy"
)


def png(path: Path, texts: dict[str, str], *, sort: str = "plain", behind: bool = False) -> None:
    """A PNG; `sort` is plain (tEXt or iTXt), packed (zTXt) or international (iTXt).

    Args:
        path: of the file.
        texts: by keyword.
        sort: of text chunks.
        behind: put them behind the pixels, as ImageMagick does.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        if sort == "international":
            chunks.add_itxt(key, text)
        else:
            chunks.add_text(key, text, zip=sort == "packed")
    file = io.BytesIO()
    Image.new("RGB", (8, 12)).save(file, "PNG", pnginfo=chunks)
    data = file.getvalue()
    if behind:
        first = data.index(b"IHDR") + 4 + 13 + 4
        pixels, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
        data = data[:first] + data[pixels:end] + data[first:pixels] + data[end:]
    path.write_bytes(data)


def with_exif(path: Path, kind: str, *, comment: bytes = b"", tags: dict[int, str] | None = None) -> None:
    """A JPEG or WebP with EXIF."""
    exif = Image.Exif()
    for tag, text in (tags or {}).items():
        exif[tag] = text
    if comment:
        exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 12)).save(path, kind, exif=exif)


def unicode_comment(text: str, order: str = "be") -> bytes:
    """EXIF's comment in UTF-16, as A1111 (big-endian) and ImageSharp (little-endian) write it."""
    return b"UNICODE\0" + text.encode(f"utf-16-{order}")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of ComfyUI's queue."""
    return {"class_type": kind, "inputs": inputs}


def graph(**others: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's default workflow, with other nodes in place of its own or beside them."""
    plain = {
        "3": node("KSampler", seed=42, steps=20, cfg=7.5, sampler_name="dpmpp_2m", scheduler="karras", denoise=1,
                  model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="dreamy.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="bad", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }  # fmt: skip
    return {**plain, **{key.removeprefix("n"): one for key, one in others.items()}}


def queued(values: dict[str, Any]) -> dict[str, str]:
    """The texts of ComfyUI's PNG."""
    return {"prompt": json.dumps(values), "workflow": json.dumps({"nodes": [], "links": []})}


def wired() -> dict[str, Any]:
    """Text from another node."""
    return graph(n6=node("CLIPTextEncode", text=["10", 0], clip=["4", 1]), n10=node("PrimitiveString", value="a cat"))


def refined() -> dict[str, Any]:
    """Base and refiner."""
    base = {"add_noise": "enable", "noise_seed": 42, "steps": 20, "cfg": 7.5, "sampler_name": "dpmpp_2m",
            "scheduler": "karras", "start_at_step": 0, "end_at_step": 16, "return_with_leftover_noise": "enable",
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}  # fmt: skip
    then = {**base, "add_noise": "disable", "start_at_step": 16, "end_at_step": 10000, "latent_image": ["3", 0]}
    return graph(
        n3=node("KSamplerAdvanced", **base),
        n10=node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        n11=node("KSamplerAdvanced", **{**then, "model": ["10", 0]}),
        n8=node("VAEDecode", samples=["11", 0], vae=["4", 2]),
    )


def custom() -> dict[str, Any]:
    """SamplerCustomAdvanced."""
    return graph(
        n3=node("SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], sigmas=["23", 0],
                latent_image=["5", 0]),
        n20=node("RandomNoise", noise_seed=42),
        n21=node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=7.5),
        n22=node("KSamplerSelect", sampler_name="dpmpp_2m"),
        n23=node("BasicScheduler", model=["4", 0], scheduler="karras", steps=20, denoise=1.0),
    )  # fmt: skip


EDITOR = {
    "nodes": [
        {"id": 3, "type": "KSampler", "mode": 0, "widgets_values": [42, "fixed", 20, 7.5, "dpmpp_2m", "karras", 1],
         "inputs": [{"name": "model", "link": 1}, {"name": "positive", "link": 2}, {"name": "negative", "link": 3},
                    {"name": "latent_image", "link": 4}]},
        {"id": 4, "type": "CheckpointLoaderSimple", "mode": 0, "widgets_values": ["dreamy.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "mode": 0, "widgets_values": [512, 768, 1]},
        {"id": 6, "type": "CLIPTextEncode", "mode": 0, "widgets_values": ["a cat"], "inputs": []},
        {"id": 7, "type": "CLIPTextEncode", "mode": 0, "widgets_values": ["bad"], "inputs": []},
        {"id": 8, "type": "VAEDecode", "mode": 0, "inputs": [{"name": "samples", "link": 5}]},
        {"id": 9, "type": "SaveImage", "mode": 0, "widgets_values": ["x"], "inputs": [{"name": "images", "link": 6}]},
    ],
    "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"],
              [4, 5, 0, 3, 3, "LATENT"], [5, 3, 0, 8, 0, "LATENT"], [6, 8, 0, 9, 0, "IMAGE"]],
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a cat", "negative_prompt": "bad", "width": 512, "height": 768, "seed": 42, "cfg_scale": 7.5,
    "steps": 20, "scheduler": "dpmpp_2m_k", "model": {"key": "x", "name": "dreamy", "base": "sd-1", "type": "main"},
    "app_version": "5.6.0",
}  # fmt: skip
INVOKE_2 = {
    "model": "stable diffusion", "model_weights": "dreamy", "app_id": "invoke-ai/InvokeAI",
    "image": {"prompt": [{"prompt": "a cat [bad]", "weight": 1}], "steps": 20, "cfg_scale": 7.5, "seed": 42,
              "width": 512, "height": 768, "sampler": "k_dpmpp_2m"},
}  # fmt: skip
NOVEL = {
    "prompt": "a cat", "uc": "bad", "steps": 20, "height": 768, "width": 512, "scale": 7.5, "seed": 42,
    "sampler": "k_dpmpp_2m", "noise_schedule": "karras", "request_type": "PromptGenerateRequest",
}  # fmt: skip
FOOOCUS = {
    "prompt": "a cat", "negative_prompt": "bad", "steps": 20, "guidance_scale": 7.5, "resolution": "(512, 768)",
    "sampler": "dpmpp_2m", "scheduler": "karras", "seed": "42", "base_model": "dreamy", "base_model_hash": "ab",
    "metadata_scheme": "fooocus", "styles": "[]", "adm_guidance": "(1.5, 0.8, 0.3)", "version": "Fooocus v2.5.5",
}  # fmt: skip
RUINED = {
    "Prompt": "a cat", "Negative": "bad", "steps": 20, "cfg": 7.5, "width": 512, "height": 768, "seed": 42, "loras": [],
    "sampler_name": "dpmpp_2m", "scheduler": "karras", "base_model_name": "dreamy", "software": "RuinedFooocus",
}  # fmt: skip
SWARM = {"sui_image_params": {
    "prompt": "a cat", "negativeprompt": "bad", "model": "sdxl/dreamy", "seed": 42, "steps": 20, "cfgscale": 7.5,
    "width": 512, "height": 768, "sampler": "dpmpp_2m", "scheduler": "karras", "swarm_version": "0.9.6",
}}  # fmt: skip
EASY = {
    "prompt": "a cat", "negative_prompt": "bad", "seed": 42, "use_stable_diffusion_model": "dreamy", "width": 512,
    "height": 768, "num_inference_steps": 20, "guidance_scale": 7.5, "sampler_name": "dpmpp_2m",
}  # fmt: skip
DRAW = {
    "c": "a cat", "uc": "bad", "model": "dreamy", "sampler": "DPM++ 2M Karras", "scale": 7.5, "seed": 42,
    "size": "512x768", "steps": 20, "strength": 1,
}  # fmt: skip
DREAM = '"a cat [bad]" -s 20 -S 42 -W 512 -H 768 -C 7.5 -A k_dpmpp_2m'


def draw_things(path: Path) -> None:
    """Draw Things' XMP."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/"><exif:UserComment><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{html.escape(json.dumps(DRAW))}</rdf:li></rdf:Alt></exif:UserComment>'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    png(path, {"XML:com.adobe.xmp": packet}, sort="international")


def raw_utf8(path: Path) -> None:
    """stable-diffusion.cpp's tEXt in UTF-8."""
    text = TEXT.replace("Sampler: DPM++ 2M, Schedule type: Karras", "Sampler: dpm++2m karras")
    body = b"parameters\0" + f"{text}, Version: stable-diffusion.cpp".encode()
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    png(path, {})
    data = path.read_bytes()
    pixels = data.index(b"IDAT") - 4
    path.write_bytes(data[:pixels] + chunk + data[pixels:])


def in_comment(path: Path, kind: str) -> None:
    """A1111's text in a JPEG's or GIF's own comment."""
    Image.new("RGB", (8, 12)).save(path, kind, comment=TEXT.encode())


def stealth(path: Path) -> None:
    """A1111's extension that hides the text in the lowest bit of alpha, column by column."""
    packed = zlib.compress(TEXT.encode(), wbits=31)
    bits = "".join(f"{byte:08b}" for byte in b"stealth_pngcomp" + struct.pack(">I", 8 * len(packed)) + packed)
    picture = Image.new("RGBA", (64, 64), (9, 9, 9, 255))
    for k, bit in enumerate(bits):
        picture.putpixel((k // 64, k % 64), (9, 9, 9, 254 | int(bit)))
    picture.save(path)
