"""The bodies of OpenAI's image API: generations, edits, variations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gouache.pipeline.request import MAX_SEED

LongText = Annotated[str, Field(max_length=32_000)]
FieldText = Annotated[str, Field(max_length=1000)]


class Images(BaseModel):
    """What the three calls share; the last fields are our own, sent by `extra_body`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: FieldText | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: FieldText | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    negative_prompt: LongText | None = None
    guidance_scale: Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)] | None = None
    sampler: FieldText | None = None


class Drawn(Images):
    """What generations and edits share."""

    prompt: LongText
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
