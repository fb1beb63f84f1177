"""From OpenAI's fields to a request, and how its pictures are sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from gouache.errors import InvalidInput, ModelNotFound, PictureError
from gouache.pipeline.inputs.images import on_background, read_picture
from gouache.pipeline.output.metadata import ImageKind, encode_picture
from gouache.pipeline.request import Request as PaintRequest
from gouache.pipeline.request_fields import MAX_FACTOR, MIN_SIDE, OPAQUE
from gouache.serve.api.openai.fields import Drawn, Edits, Generations, Images, Variations
from gouache.serve.models.facts import Facts, facts_of
from gouache.serve.studio import Studio

STEPS = {"low": 10, "medium": 20, "high": 40, "hd": 40}
"""What a quality means here; auto and standard leave it to the model."""
EDIT_STRENGTH, VARIATION_STRENGTH = 0.75, 0.6
FIDELITY = {"high": 0.5, "low": EDIT_STRENGTH}
"""How strongly an edit changes the picture, by `input_fidelity`."""
OLD_MODELS = "dall-e"
"""Names that begin so answer with links and without transparency, unless told otherwise."""
HIRES_FROM = 1.4
"""Times the model's own side, by area: what is larger is painted in two passes, lest it show everything twice."""

WORDS = {
    "num_inference_steps": "quality",
    "count": "n",
    "width": "size",
    "height": "size",
    "width * height": "size",
    "count * steps * pixels": "n",
    "hires.width": "size",
    "hires.height": "size",
    "upscale": "size",
    "upscale.factor": "size",
    "init_image": "image",
    "attachment": "image",
    "mask": "mask",
}
"""Our name of a field -> OpenAI's, for errors."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How the pictures are sent."""

    kind: ImageKind
    quality: int
    as_url: bool
    asked_quality: str | None
    background: str | None

    def labels(self, size: tuple[int, int] | None) -> dict[str, str]:
        """What replies and chunks say about pictures of this size."""
        return {
            "background": self.background or "auto",
            "output_format": self.kind,
            "quality": self.asked_quality or "auto",
            "size": "auto" if size is None else f"{size[0]}x{size[1]}",
        }


@dataclass(frozen=True, slots=True)
class MappedImages:
    """What a body asks for: the request, how to send its pictures, and what was left aside."""

    request: PaintRequest
    output: OutputFormat
    notes: tuple[str, ...] = ()


def output_of(body: Images) -> OutputFormat:
    """Format and way of sending. Without a word, DALL-E's names mean links, others the pictures themselves.

    Raises:
        InvalidInput: what can't be served, by its name.
    """
    drawn = body if isinstance(body, Drawn) else None
    kind: ImageKind = (drawn.output_format if drawn else None) or "png"
    compression = drawn.output_compression if drawn else None
    if compression not in (None, 100) and kind == "png":
        raise InvalidInput("output_compression", given=compression, expected="jpeg or webp as output_format")
    streams = drawn is not None and bool(drawn.stream)
    if body.response_format == "url" and streams:
        raise InvalidInput("response_format", given="url", expected="b64_json while streaming")
    by_name = "url" if _is_old(body) and not streams else "b64_json"
    return OutputFormat(
        kind,
        max(1, 100 if compression is None else compression),
        (body.response_format or by_name) == "url",
        drawn.quality if drawn else None,
        drawn.background if drawn else None,
    )


def _is_old(body: Images) -> bool:
    return (body.model or "").startswith(OLD_MODELS)


def served_name(name: str | None, studio: Studio) -> str | None:
    """The model that is meant by a name: None, the user's own choice, for OpenAI's names of models that aren't here."""
    if name is None or name not in studio.settings.model_aliases:
        return name
    try:
        return studio.catalog.find(name).name
    except ModelNotFound:
        return None


def order_of(body: Images, studio: Studio, owner: str, pictures: Mapping[str, object] | None = None) -> MappedImages:
    """The request behind a body.

    Args:
        body: checked fields.
        studio: that serves it.
        owner: who asks.
        pictures: `init_image`, `mask`, `strength` as a request takes them, and `start`, the picture's size.

    Raises:
        InvalidInput: a field that can't be served; `where` is its name.
    """
    pictures = dict(pictures or {})
    start: Any = pictures.pop("start", None)
    notes: list[str] = []
    if isinstance(body, Generations) and body.style is not None:
        notes.append("style: ignored, put it into the prompt")
    values: dict[str, Any] = {
        "model": served_name(body.model, studio),
        "count": body.n or 1,
        "seed": body.seed,
        "negative_prompt": body.negative_prompt,
        "guidance_scale": body.guidance_scale,
        "sampler": body.sampler,
        "num_inference_steps": body.steps,
        **pictures,
    }
    if isinstance(body, Drawn):
        values["prompt"] = body.prompt
        values["num_inference_steps"] = body.steps or STEPS.get(body.quality or "")
    values["background"] = _background(body)
    facts = _facts(values["model"] or studio.default_model(owner), studio)
    values |= _sized(_size(body.size), start, facts, has_mask="mask" in pictures)
    given = {key: value for key, value in values.items() if value is not None}
    return MappedImages(PaintRequest.from_dict(given, where="request"), output_of(body), tuple(notes))


def _background(body: Images) -> str | None:
    asked = body.background if isinstance(body, Drawn) else None
    if asked == "transparent":
        return "transparent"
    return OPAQUE if asked == "opaque" or _is_old(body) else None


def _facts(name: str, studio: Studio) -> Facts:
    try:
        return facts_of(studio.catalog.find(name))
    except ModelNotFound as error:
        raise InvalidInput("model", given=error.given, expected=error.expected, cure=error.cure) from error


def _size(size: str | None) -> tuple[int, int] | None:
    if size in (None, "", "auto"):
        return None
    width, cross, height = (size or "").partition("x")
    if not (cross and width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise InvalidInput("size", given=repr(size), expected="WIDTHxHEIGHT or auto")
    return int(width), int(height)


def _sized(
    asked: tuple[int, int] | None, start: tuple[int, int] | None, facts: Facts, *, has_mask: bool
) -> dict[str, Any]:
    """Width and height, and how they are reached where the model's own pictures are smaller.

    From words, a model with an upscaler enlarges by itself; another paints a second pass. An edit of a whole picture is
    painted at the model's size and enlarged; a part of one is painted at the picture's, whose pixels stay.
    """
    whole = asked or start
    values: dict[str, Any] = {} if asked is None else {"width": asked[0], "height": asked[1]}
    if whole is None or not facts.trained_side or has_mask or min(whole) < MIN_SIDE:
        return values
    if facts.upscaler:
        factor = max(whole) / facts.trained_side
        if start is None or factor <= 1:
            return values
        larger = factor if asked is not None else min(factor, MAX_FACTOR)
        return {**_fitted(whole, factor), "upscale": {"factor": larger, "upscaler": "model"}}
    factor = math.sqrt(whole[0] * whole[1]) / facts.trained_side
    if start is not None or factor <= HIRES_FROM:
        return values
    return {**_fitted(whole, factor), "hires": {"width": whole[0], "height": whole[1]}}


def _fitted(size: tuple[int, int], factor: float) -> dict[str, int]:
    width, height = (max(MIN_SIDE, round(side / factor / 8) * 8) for side in size)
    return {"width": width, "height": height}


def edited_pictures(body: Edits, studio: Studio, files: Mapping[str, list[bytes]]) -> dict[str, object]:
    """Starting picture, mask and strength of an edit, for `order_of`.

    Several pictures are laid side by side. OpenAI's mask belongs to the first one, so with a mask the others are left
    aside.
    """
    found = [_picture(studio, data, "image") for data in files.get("image", [])]
    if not found:
        raise InvalidInput("image", given="no picture", expected="a picture as a file")
    strength = FIDELITY.get(body.input_fidelity or "", EDIT_STRENGTH) if body.strength is None else body.strength
    values: dict[str, object] = {"strength": strength, "start": found[0].size}
    if files.get("mask"):
        values["mask"] = {"image": _mask(studio, files["mask"][0], found[0].size), "blur": 0}
    elif len(found) > 1:
        return values | {"init_image": studio.file_store.attach(encode_picture(side_by_side(found), "png"))}
    elif found[0].mode == "RGBA" and found[0].getchannel("A").getextrema()[0] == 0:
        values["mask"] = {"blur": 0}
    return values | {"init_image": studio.file_store.attach(files["image"][0])}


def varied_picture(body: Variations, studio: Studio, files: Mapping[str, list[bytes]]) -> dict[str, object]:
    """Starting picture and strength of a variation, for `order_of`."""
    if len(files.get("image", [])) != 1:
        raise InvalidInput("image", given=f"{len(files.get('image', []))} pictures", expected="one picture as a file")
    (data,) = files["image"]
    strength = VARIATION_STRENGTH if body.strength is None else body.strength
    start = _picture(studio, data, "image").size
    return {"init_image": studio.file_store.attach(data), "strength": strength, "start": start}


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one of the first one's size, in rows and columns on white. Mode RGB."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = column * width // columns, row * height // rows
        right, bottom = (column + 1) * width // columns, (row + 1) * height // rows
        cell = max(1, right - left), max(1, bottom - top)
        small = ImageOps.contain(on_background(picture, "white"), cell, Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (cell[0] - small.width) // 2, top + (cell[1] - small.height) // 2))
    return sheet


def _picture(studio: Studio, data: bytes, name: str) -> Image.Image:
    try:
        return read_picture(data, where=name, max_pixels=4 * studio.settings.limits.pixels)
    except PictureError as error:
        raise InvalidInput(name, given=error.given, expected=error.expected, cure=error.cure) from error


def _mask(studio: Studio, data: bytes, size: tuple[int, int]) -> str:
    """OpenAI's mask is transparent where to paint; ours is white there."""
    mask = _picture(studio, data, "mask")
    if mask.size != size:
        raise InvalidInput("mask", given=f"{mask.width}x{mask.height}", expected=f"{size[0]}x{size[1]}")
    if mask.mode != "RGBA":
        raise InvalidInput("mask", given="a picture without transparency", expected="transparent pixels where to paint")
    white = mask.getchannel("A").point([255] + [0] * 255)
    return studio.file_store.attach(encode_picture(white.convert("RGB"), "png"))
