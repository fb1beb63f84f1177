"""`/sdapi/v1`: what there is, and the tools beside painting."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image

from gouache.diffusion.sampler_table import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import InvalidInput
from gouache.pipeline.infotext import parse_infotext
from gouache.pipeline.metadata import PARAMETERS, encode_picture, read_texts
from gouache.pipeline.pixels import fit, read_picture
from gouache.pipeline.request import MAX_PIXELS
from gouache.serve.a1111.fields import ExtraBatch, Extras, ExtraSingle, Interrogate, PngInfo
from gouache.serve.a1111.mapping import HIRES_UPSCALERS, decoded
from gouache.serve.access import owner_of, studio_of

router = APIRouter(tags=["a1111"])
PREFIX = "/sdapi/v1"
UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_HIDDEN = ("ddim_inversion",)


@router.get(f"{PREFIX}/samplers")
def samplers() -> list[dict[str, Any]]:
    """Every sampler."""
    return [
        {"name": info.label, "aliases": [info.name, *info.aliases], "options": {"scheduler": info.default_schedule}}
        for info in SAMPLER_INFOS.values()
        if info.name not in _HIDDEN
    ]


@router.get(f"{PREFIX}/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """Every sigma schedule."""
    first = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}
    rho = {"karras": 7.0, "polyexponential": 1.0}
    return [first] + [
        {"name": info.name, "label": info.label, "aliases": list(info.aliases) or None,
         "default_rho": rho.get(info.name, -1), "need_inner_model": False}
        for info in SCHEDULE_INFOS.values()
        if info.name != "custom"
    ]  # fmt: skip


@router.get(f"{PREFIX}/sd-models")
def sd_models(request: Request) -> list[dict[str, Any]]:
    """Every model; the path on this machine is not told."""
    return [
        {"title": entry.title, "model_name": entry.stem, "hash": entry.sha256[:10] if entry.sha256 else None,
         "sha256": entry.sha256, "filename": entry.name, "config": None}
        for entry in studio_of(request).shelf.entries()
    ]  # fmt: skip


@router.get(f"{PREFIX}/upscalers")
def upscalers() -> list[dict[str, Any]]:
    """Upscalers of the extras calls."""
    return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in UPSCALERS]


@router.get(f"{PREFIX}/latent-upscale-modes")
def latent_upscale_modes() -> list[dict[str, str]]:
    """Latent upscalers of the second pass."""
    return [{"name": name} for name in HIRES_UPSCALERS if name.startswith("Latent")]


@router.get(f"{PREFIX}/prompt-styles")
def prompt_styles(request: Request) -> list[dict[str, str]]:
    """The caller's styles."""
    found = studio_of(request).presets(owner_of(request))
    return [{"name": name, "prompt": texts[0], "negative_prompt": texts[1]} for name, texts in found.items()]


@router.get(f"{PREFIX}/scripts")
def scripts() -> dict[str, list[str]]:
    """Scripts: there are none, nothing is plugged in."""
    return {"txt2img": [], "img2img": []}


@router.get(f"{PREFIX}/embeddings")
def embeddings() -> dict[str, dict[str, Any]]:
    """Textual inversions that this server offers."""
    return {"loaded": {}, "skipped": {}}


@router.get(f"{PREFIX}/cmd-flags")
def cmd_flags(request: Request) -> dict[str, Any]:
    """How the server was started, as far as clients need it."""
    settings = studio_of(request).settings
    return {"api": True, "listen": not settings.on_loopback, "port": settings.port}


@router.get(f"{PREFIX}/memory")
def memory() -> dict[str, Any]:
    """Memory of the machine."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").is_file() else []
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    return {"ram": {"free": free, "used": total - free, "total": total}, "cuda": {"error": "asked of the workers only"}}


def _empty() -> list[Any]:
    """Nothing of this kind is offered."""
    return []


for _name in (
    "sd-vae", "loras", "hypernetworks", "face-restorers", "realesrgan-models", "script-info", "extensions",
    "artist-categories", "artists",
):  # fmt: skip
    router.get(f"{PREFIX}/{_name}", name=_name)(_empty)


@router.post(f"{PREFIX}/refresh-checkpoints")
def refresh_checkpoints(request: Request) -> None:
    """Look again which models there are."""
    studio_of(request).shelf.refresh()


@router.post(f"{PREFIX}/unload-checkpoint")
def unload_checkpoint(request: Request) -> dict[str, Any]:
    """Workers let go of their models before the next job."""
    studio_of(request).supervisor.unload_models()
    return {}


def _nothing_to_do() -> dict[str, Any]:
    """What this would load is read when it is needed."""
    return {}


for _name in ("refresh-vae", "refresh-embeddings", "refresh-loras", "reload-checkpoint"):
    router.post(f"{PREFIX}/{_name}", name=_name)(_nothing_to_do)


@router.post(f"{PREFIX}/png-info")
def png_info(body: PngInfo) -> dict[str, Any]:
    """The texts inside a picture."""
    texts = read_texts(decoded("image", body.image), where="image")
    info = texts.pop(PARAMETERS, "")
    read = parse_infotext(info)
    named = {"Prompt": read.prompt, "Negative prompt": read.negative_prompt} if info else {}
    return {"info": info, "items": texts, "parameters": {**named, **read.values}}


@router.post(f"{PREFIX}/interrogate")
def interrogate(body: Interrogate) -> dict[str, str]:
    """Captions: refused, there is no captioning model."""
    raise InvalidInput("model", given=repr(body.model)[:80], expected="nothing: this server captions no pictures")


@router.post(f"{PREFIX}/extra-single-image")
def extra_single(body: ExtraSingle) -> dict[str, str]:
    """Enlarge one picture."""
    return {"html_info": "", "image": _enlarged(body, "image", body.image)}


@router.post(f"{PREFIX}/extra-batch-images")
def extra_batch(body: ExtraBatch) -> dict[str, Any]:
    """Enlarge several pictures."""
    return {"html_info": "", "images": [_enlarged(body, "imageList", item.data) for item in body.imageList]}


def _enlarged(body: Extras, field: str, text: str) -> str:
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if getattr(body, name):
            raise InvalidInput(name, given=getattr(body, name), expected="0: this server can't do it")
    if body.upscaler_2 not in (None, "None"):
        raise InvalidInput("upscaler_2", given=repr(body.upscaler_2), expected="None")
    if (body.upscaler_1 or "None") not in UPSCALERS:
        raise InvalidInput("upscaler_1", given=repr(body.upscaler_1), expected=f"one of {', '.join(UPSCALERS)}")
    data = decoded(field, text)
    picture = read_picture(data, where=field)
    resample = UPSCALERS[body.upscaler_1 or "None"]
    if resample is not None:
        picture = _resized(body, picture, resample)
    texts = read_texts(data, where=field)
    return base64.b64encode(encode_picture(picture, "png", texts)).decode("ascii")


def _resized(body: Extras, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
    factor = body.upscaling_resize or 2
    width, height = round(picture.width * factor), round(picture.height * factor)
    if body.resize_mode == 1:
        width, height = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
    if width * height > MAX_PIXELS or min(width, height) < 1:
        raise InvalidInput("upscaling_resize", given=f"{width}x{height} pixels", expected=f"1 to {MAX_PIXELS} pixels")
    if body.resize_mode == 1 and body.upscaling_crop:
        return fit(picture, width, height, "crop")
    if body.resize_mode == 1:
        scale = min(width / picture.width, height / picture.height)
        width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize((width, height), resample)


@router.get("/controlnet/version")
def controlnet_version() -> dict[str, int]:
    """No ControlNet: version 0."""
    return {"version": 0}


@router.get("/controlnet/model_list")
def controlnet_models() -> dict[str, list[str]]:
    """No models."""
    return {"model_list": []}


@router.get("/controlnet/module_list")
def controlnet_modules() -> dict[str, list[str]]:
    """No modules but the one that does nothing."""
    return {"module_list": ["none"]}
