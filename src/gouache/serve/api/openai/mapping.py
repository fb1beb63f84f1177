"""From OpenAI's fields to a request, and how its pictures are sent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gouache.errors import InvalidInput, ModelNotFound, PictureError
from gouache.pipeline.fields.values import MAX_FACTOR, MIN_SIDE, OPAQUE
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.openai.fields import Drawn, Edits, Generations, Images, Variations
from gouache.serve.decoding.operations import Facts as PictureFacts
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


def edited_pictures(body: Edits, studio: Studio, owner: str, files: Mapping[str, list[bytes]]) -> dict[str, object]:
    """Starting picture, mask and strength of an edit, for `order_of`; blocks, see `Decoding.beside`.

    Several pictures are laid side by side. OpenAI's mask belongs to the first one, so with a mask the others are left
    aside.
    """
    images, masks = files.get("image", []), files.get("mask", [])
    if not images:
        raise InvalidInput("image", given="no picture", expected="a picture as a file")
    strength = FIDELITY.get(body.input_fidelity or "", EDIT_STRENGTH) if body.strength is None else body.strength
    values: dict[str, object] = {"strength": strength}
    if len(images) > 1 and not masks:
        with _as_input("image"):
            wanted = {"lengths": [len(data) for data in images], "max_pixels": studio.upload_pixels}
            facts, sheet = studio.decoding.run(owner, "side_by_side", b"".join(images), wanted)
            name = studio.attachments.keep(owner, sheet)
        return values | {"init_image": name, "start": (facts["width"], facts["height"])}
    with _as_input("image"):
        name, facts = studio.attach(owner, images[0], "image")
    if masks:
        values["mask"] = {"image": _mask(studio, owner, masks[0], facts), "blur": 0}
    elif facts["clear"]:
        values["mask"] = {"blur": 0}
    return values | {"init_image": name, "start": (facts["width"], facts["height"])}


def varied_picture(body: Variations, studio: Studio, owner: str, files: Mapping[str, list[bytes]]) -> dict[str, object]:
    """Starting picture and strength of a variation, for `order_of`; blocks, see `Decoding.beside`."""
    if len(files.get("image", [])) != 1:
        raise InvalidInput("image", given=f"{len(files.get('image', []))} pictures", expected="one picture as a file")
    strength = VARIATION_STRENGTH if body.strength is None else body.strength
    with _as_input("image"):
        name, facts = studio.attach(owner, files["image"][0], "image")
    return {"init_image": name, "strength": strength, "start": (facts["width"], facts["height"])}


def _mask(studio: Studio, owner: str, data: bytes, picture: PictureFacts) -> str:
    """OpenAI's mask is transparent where to paint; ours is white there."""
    wanted = {"width": picture["width"], "height": picture["height"], "max_pixels": studio.upload_pixels}
    with _as_input("mask"):
        _, white = studio.decoding.run(owner, "white_mask", data, wanted)
        return studio.attachments.keep(owner, white)


@contextmanager
def _as_input(name: str) -> Iterator[None]:
    """What is wrong with a picture is wrong with the field that it came in."""
    try:
        yield
    except PictureError as error:
        raise InvalidInput(name, given=error.given, expected=error.expected, cure=error.cure) from error
