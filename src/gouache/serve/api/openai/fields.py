"""OpenAI's image parameters, checked, and turned into a request. Form fields arrive as texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gouache.errors import InvalidInput
from gouache.pipeline.output.metadata import Kind
from gouache.pipeline.request import MAX_SEED, Request

STEPS = {"low": 10, "medium": 20, "high": 40, "hd": 40}
"""What a quality means here; auto and standard leave it to the model."""
EDIT_STRENGTH, VARIATION_STRENGTH = 0.75, 0.6
Text = Annotated[str, Field(max_length=32_000)]
Name = Annotated[str, Field(max_length=1000)]


class Images(BaseModel):
    """What the three calls share; the last fields are our own, sent by `extra_body`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: Name | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    negative_prompt: Text | None = None
    guidance_scale: Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)] | None = None
    sampler: Name | None = None


class Drawn(Images):
    """What generations and edits share."""

    prompt: Text
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    stream: bool | None = None


class Generations(Drawn):
    """POST /v1/images/generations."""

    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["low", "auto"] | None = None


class Edits(Drawn):
    """POST /v1/images/edits, without its files."""

    input_fidelity: Literal["high", "low"] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None


class Variations(Images):
    """POST /v1/images/variations, without its file."""

    strength: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """How the pictures are sent."""

    kind: Kind
    quality: int
    as_url: bool
    size: str | None
    asked_quality: str | None
    background: str | None

    def labels(self) -> dict[str, str]:
        """What replies and chunks say about the pictures."""
        return {
            "background": self.background or "auto",
            "output_format": self.kind,
            "quality": self.asked_quality or "auto",
            "size": self.size or "auto",
        }


def output_of(body: Images) -> Output:
    """Format and way of sending.

    Raises:
        InvalidInput: what can't be served, by its name.
    """
    drawn = body if isinstance(body, Drawn) else None
    kind: Kind = (drawn.output_format if drawn else None) or "png"
    compression = drawn.output_compression if drawn else None
    if compression not in (None, 100) and kind == "png":
        raise InvalidInput("output_compression", given=compression, expected="jpeg or webp as output_format")
    if body.response_format == "url" and drawn is not None and drawn.stream:
        raise InvalidInput("response_format", given="url", expected="b64_json while streaming")
    asked = drawn.quality if drawn else None
    return Output(
        kind,
        max(1, 100 if compression is None else compression),
        body.response_format == "url",
        body.size,
        asked,
        drawn.background if drawn else None,
    )


def request_of(body: Images, pictures: Mapping[str, object] | None = None) -> Request:
    """The request behind a body.

    Args:
        body: checked fields.
        pictures: `init_image`, `mask`, `strength` as a request takes them.

    Raises:
        InvalidInput: a field that can't be served; `where` is its name.
    """
    if isinstance(body, Generations) and body.style is not None:
        raise InvalidInput("style", given=body.style, expected="nothing: put the style into the prompt")
    if isinstance(body, Edits) and body.input_fidelity is not None:
        raise InvalidInput("input_fidelity", given=body.input_fidelity, expected="nothing: use strength (0 to 1)")
    width, height = _size(body.size)
    values: dict[str, Any] = {
        "model": body.model,
        "count": body.n or 1,
        "width": width,
        "height": height,
        "seed": body.seed,
        "negative_prompt": body.negative_prompt or "",
        "guidance_scale": body.guidance_scale,
        "sampler": body.sampler,
        "num_inference_steps": body.steps,
        **(pictures or {}),
    }
    if isinstance(body, Drawn):
        values["prompt"] = body.prompt
        values["num_inference_steps"] = body.steps or STEPS.get(body.quality or "")
        values["background"] = {"transparent": "transparent", "opaque": "white"}.get(body.background or "")
    return Request.from_dict({key: value for key, value in values.items() if value is not None}, where="request")


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size in (None, "auto"):
        return None, None
    width, cross, height = (size or "").partition("x")
    if not (cross and width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise InvalidInput("size", given=repr(size), expected="WIDTHxHEIGHT or auto")
    return int(width), int(height)


WORDS = {
    "num_inference_steps": "quality",
    "count": "n",
    "width": "size",
    "height": "size",
    "width * height": "size",
    "count * steps * pixels": "n",
    "init_image": "image",
    "attachment": "image",
    "mask": "mask",
}
"""Our name of a field -> OpenAI's, for errors."""
