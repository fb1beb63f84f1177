"""`/sdapi/v1/extra-*`: finished pictures made larger, by a filter or by the upscaler of the caller's model."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image

from gouache.errors import InvalidInput, PictureError
from gouache.pipeline.inputs.images import fit, read_picture
from gouache.pipeline.output.metadata import encode_picture, read_texts
from gouache.pipeline.request import MAX_PIXELS
from gouache.serve.api.a1111.fields import ExtraBatch, Extras, ExtraSingle
from gouache.serve.api.a1111.mapping import decoded
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.models.facts import facts_of
from gouache.serve.studio import Studio

router = APIRouter(tags=["a1111"])
PREFIX = "/sdapi/v1"
OWN = "model"
"""The upscaler that the caller's model brings."""
NONE = "None"
FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
UNSERVED = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")


@router.get(f"{PREFIX}/upscalers")
def upscalers(request: Request) -> list[dict[str, Any]]:
    """Upscalers of the extras calls; `model` is the one that the caller's model brings, if it does."""
    studio = studio_of(request)
    model = studio.default_model(owner_of(request))
    own = {OWN: model} if _has_upscaler(studio, model) else {}
    names: dict[str, str | None] = {NONE: None, **dict.fromkeys(FILTERS), **own}
    return [
        {"name": name, "model_name": of, "model_path": None, "model_url": None, "scale": 4}
        for name, of in names.items()
    ]


@router.post(f"{PREFIX}/extra-single-image")
async def extra_single(body: ExtraSingle, request: Request) -> dict[str, str]:
    """Enlarge one picture."""
    return {"html_info": "", "image": await _enlarged(body, "image", body.image, request)}


@router.post(f"{PREFIX}/extra-batch-images")
async def extra_batch(body: ExtraBatch, request: Request) -> dict[str, Any]:
    """Enlarge several pictures."""
    made = [await _enlarged(body, "imageList", item.data, request) for item in body.imageList]
    return {"html_info": "", "images": made}


def _has_upscaler(studio: Studio, model: str) -> bool:
    return facts_of(studio.catalog.find(model)).upscaler


async def _enlarged(body: Extras, field: str, text: str, request: Request) -> str:
    studio = studio_of(request)
    model = studio.default_model(owner_of(request))
    upscaler = await asyncio.to_thread(_checked, body, studio, model)
    picture, texts = await asyncio.to_thread(_opened, studio, field, text)
    size = picture.size if upscaler == NONE else _size(body, picture)
    factor = max(size[0] / picture.width, size[1] / picture.height)
    if upscaler == OWN and factor > 1:
        png = await asyncio.to_thread(encode_picture, picture, "png")
        larger = await studio.upscale_tasks.enlarge(png, factor, model)
        picture = await asyncio.to_thread(read_picture, larger)
    resample = FILTERS.get(upscaler, FILTERS["Lanczos"])
    return await asyncio.to_thread(_finished, body, picture, texts, size, resample)


def _checked(body: Extras, studio: Studio, model: str) -> str:
    for name in UNSERVED:
        if getattr(body, name):
            raise InvalidInput(name, given=getattr(body, name), expected="0: this server can't do it")
    if body.upscaler_2 not in (None, NONE):
        raise InvalidInput("upscaler_2", given=repr(body.upscaler_2), expected=NONE)
    upscaler = body.upscaler_1 or NONE
    names = [NONE, *FILTERS, *([OWN] if _has_upscaler(studio, model) else [])]
    if upscaler not in names:
        raise InvalidInput("upscaler_1", given=repr(upscaler), expected=f"one of {', '.join(names)}")
    return upscaler


def _opened(studio: Studio, field: str, text: str) -> tuple[Image.Image, dict[str, str]]:
    data = decoded(field, text)
    try:
        picture = read_picture(data, where=field, max_pixels=4 * studio.settings.limits.pixels)
    except PictureError as error:
        raise InvalidInput(field, given=error.given, expected=error.expected, cure=error.cure) from error
    return picture, read_texts(data, where=field)


def _size(body: Extras, picture: Image.Image) -> tuple[int, int]:
    """Width and height that are asked for."""
    factor = body.upscaling_resize or 2
    width, height = round(picture.width * factor), round(picture.height * factor)
    if body.resize_mode == 1:
        width, height = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
        if not body.upscaling_crop:
            scale = min(width / picture.width, height / picture.height)
            width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if width * height > MAX_PIXELS or min(width, height) < 1:
        raise InvalidInput("upscaling_resize", given=f"{width}x{height} pixels", expected=f"1 to {MAX_PIXELS} pixels")
    return width, height


def _finished(
    body: Extras, picture: Image.Image, texts: dict[str, str], size: tuple[int, int], resample: Image.Resampling
) -> str:
    if picture.size != size:
        crops = body.resize_mode == 1 and body.upscaling_crop
        picture = fit(picture, *size, "crop") if crops else picture.resize(size, resample)
    return base64.b64encode(encode_picture(picture, "png", texts)).decode("ascii")
