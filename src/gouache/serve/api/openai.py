"""OpenAI's image API, as the package `openai` speaks it: generations, edits, variations."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from gouache.config import expectation
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, PictureError
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.request import MAX_SEED
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.views import raise_unless_painted
from gouache.serve.decoding.operations import Facts
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.http.guard import seal
from gouache.serve.http.replies import PlainJson, in_words_of, openai_error, status_of
from gouache.serve.queue.job import FINISHED, Job
from gouache.serve.queue.notify import changes
from gouache.serve.queue.queue import fingerprint_of
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio

STEPS = {"low": 10, "medium": 20, "high": 40, "hd": 40}
"""What a quality means here; auto and standard leave it to the model."""
EDIT_STRENGTH, VARIATION_STRENGTH = 0.75, 0.6
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


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How the pictures are sent."""

    kind: ImageKind
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


def output_of(body: Images) -> OutputFormat:
    """Format and way of sending.

    Raises:
        InvalidInput: what can't be served, by its name.
    """
    drawn = body if isinstance(body, Drawn) else None
    kind: ImageKind = (drawn.output_format if drawn else None) or "png"
    compression = drawn.output_compression if drawn else None
    if compression not in (None, 100) and kind == "png":
        raise InvalidInput("output_compression", given=compression, expected="jpeg or webp as output_format")
    if body.response_format == "url" and drawn is not None and drawn.stream:
        raise InvalidInput("response_format", given="url", expected="b64_json while streaming")
    asked = drawn.quality if drawn else None
    return OutputFormat(
        kind,
        max(1, 100 if compression is None else compression),
        body.response_format == "url",
        body.size,
        asked,
        drawn.background if drawn else None,
    )


def request_of(body: Images, pictures: Mapping[str, object] | None = None) -> PaintRequest:
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
        "negative_prompt": body.negative_prompt,
        "guidance_scale": body.guidance_scale,
        "sampler": body.sampler,
        "num_inference_steps": body.steps,
        **(pictures or {}),
    }
    if isinstance(body, Drawn):
        values["prompt"] = body.prompt
        values["num_inference_steps"] = body.steps or STEPS.get(body.quality or "")
        values["background"] = {"transparent": "transparent", "opaque": "white"}.get(body.background or "")
    return PaintRequest.from_dict({key: value for key, value in values.items() if value is not None}, where="request")


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


router = APIRouter(prefix="/v1/images", tags=["openai"])
ImagesBody = TypeVar("ImagesBody", bound=Images)


@router.post("/generations", response_model=None)
async def generations(body: Generations, request: Request) -> Response:
    """Paint from a prompt."""
    with in_words_of(WORDS):
        return await _answer(request, body, request_of(body), "image_generation")


_FORM = {"type": "string", "format": "binary"}


def _form(model: type[Images], *files: str) -> dict[str, Any]:
    """The schema of a multipart body: the fields and the files."""
    schema = model.model_json_schema()
    schema["properties"] |= dict.fromkeys(files, _FORM)
    schema["required"] = [*schema.get("required", []), "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post("/edits", response_model=None, openapi_extra=_form(Edits, "image", "mask"))
async def edits(request: Request) -> Response:
    """Paint over a picture: where the mask is fully transparent, or everywhere without one."""
    with in_words_of(WORDS):
        fields, files = await _read_form(request)
        body = _checked(Edits, fields)
        studio = studio_of(request)
        owner = owner_of(request)
        image, facts = await studio.decoding.beside(_attached, studio, owner, files, "image")
        pictures: dict[str, object] = {"init_image": image, "strength": _or(body.strength, EDIT_STRENGTH)}
        if files.get("mask"):
            pictures["mask"] = {
                "image": await studio.decoding.beside(_mask, studio, owner, files["mask"][0], facts),
                "blur": 0,
            }
        elif facts["clear"]:
            pictures["mask"] = {"blur": 0}
        return await _answer(request, body, request_of(body, pictures), "image_edit")


@router.post("/variations", response_model=None, openapi_extra=_form(Variations, "image"))
async def variations(request: Request) -> Response:
    """Paint over a whole picture, without a prompt."""
    with in_words_of(WORDS):
        fields, files = await _read_form(request)
        body = _checked(Variations, fields)
        studio = studio_of(request)
        image, _ = await studio.decoding.beside(_attached, studio, owner_of(request), files, "image")
        paint = request_of(body, {"init_image": image, "strength": _or(body.strength, VARIATION_STRENGTH)})
        return await _answer(request, body, paint, "image_edit")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


async def _read_form(request: Request) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """Fields, and files by name; `image[]` counts as `image`."""
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=20, max_fields=50) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
            else:
                fields[name] = value
    return fields, files


def _checked(kind: type[ImagesBody], fields: Mapping[str, str]) -> ImagesBody:
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "body"
        raise InvalidInput(where, given=repr(first.get("input"))[:80], expected=expectation(first["msg"])) from error


def _attached(studio: Studio, owner: str, files: Mapping[str, list[bytes]], name: str) -> tuple[str, Facts]:
    """The name of the one picture that came in this field, and what is known of it."""
    found = files.get(name, [])
    if len(found) != 1:
        raise InvalidInput(name, given=f"{len(found)} pictures", expected="one picture as a file")
    with _as_input(name):
        return studio.attach(owner, found[0], name)


@contextmanager
def _as_input(name: str) -> Iterator[None]:
    """What is wrong with a picture is wrong with the field that it came in."""
    try:
        yield
    except PictureError as error:
        raise InvalidInput(name, given=error.given, expected=error.expected, cure=error.cure) from error


def _mask(studio: Studio, owner: str, data: bytes, picture: Facts) -> str:
    """OpenAI's mask is transparent where to paint; ours is white there."""
    wanted = {"width": picture["width"], "height": picture["height"], "max_pixels": studio.upload_pixels}
    with _as_input("mask"):
        _, white = studio.decoding.run(owner, "white_mask", data, wanted)
        return studio.attachments.keep(owner, white)


async def _answer(request: Request, body: Images, paint: PaintRequest, kind: str) -> Response:
    studio, owner = studio_of(request), owner_of(request)
    output = output_of(body)
    retried = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")
    key = request.headers.get("idempotency-key")
    _check_key(key)

    def hand_in() -> Job:
        try:
            return studio.submit(
                paint,
                owner=owner,
                source="openai",
                key=key,
                label=body.user or "",
                is_retry=retried,
                fingerprint=fingerprint_of(f"{request.url.path}\n{paint.to_json()}"),
            )[0]
        except ModelNotFound as error:
            raise InvalidInput("model", given=error.given, expected=error.expected, cure=error.cure) from error

    job = await asyncio.to_thread(hand_in)
    if isinstance(body, Drawn) and body.stream:
        stream = _stream(studio, job, output, kind, body.partial_images or 0)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    job = await studio.wait_for(job.id, studio.settings.wait)
    raise_unless_painted(job)
    data = await studio.decoding.beside(_data, studio, job, output, str(request.base_url))
    return PlainJson({"created": int(job.created), "data": data, **output.labels(), "usage": _usage(paint, len(data))})


def _check_key(key: str | None) -> None:
    if key is not None and (len(key) > 255 or not key.isascii() or not key.isprintable() or not key):
        raise InvalidInput("Idempotency-Key", given=repr(key)[:80], expected="1 to 255 printable ASCII characters")


def _data(studio: Studio, job: Job, output: OutputFormat, base_url: str) -> list[dict[str, str]]:
    found = studio.pictures.of_job(job.id)
    if output.as_url:
        return [{"url": base_url.rstrip("/") + _link(studio, picture)} for picture in found]
    return [{"b64_json": _encoded(studio, picture, output)} for picture in found]


def _link(studio: Studio, picture: Picture) -> str:
    """An address that needs no token, for an hour."""
    path = f"/v1/pictures/{picture.id}/file"
    return f"{path}?link={seal(path, studio.secret, 'link')}"


def _encoded(studio: Studio, picture: Picture, output: OutputFormat) -> str:
    return base64.b64encode(studio.encoded(picture, output.kind, output.quality)).decode("ascii")


def _usage(paint: PaintRequest, count: int) -> dict[str, Any]:
    """Pictures aren't counted in tokens here; the client's type wants the numbers."""
    text = len(paint.prompt.split())
    details = {"text_tokens": text, "image_tokens": 0}
    return {"input_tokens": text, "output_tokens": count, "total_tokens": text + count, "input_tokens_details": details}


async def _stream(studio: Studio, job: Job, output: OutputFormat, kind: str, partial_images: int) -> AsyncIterator[str]:
    shown, last = 0, -1
    try:
        looks = changes(studio.notifier, job.id, lambda: _look(studio, job.id, partial_images > shown), every=0.25)
        async for job in looks:
            if job.state in FINISHED:
                break
            preview = await asyncio.to_thread(studio.jobs.preview, job.id) if shown < partial_images else None
            if preview is not None and preview[0] != last:
                last = preview[0]
                text = await studio.decoding.beside(_repainted, studio, job, preview[1], output)
                chunk = {"type": f"{kind}.partial_image", "b64_json": text, "partial_image_index": shown}
                yield _sse(chunk | {"created_at": int(job.created)} | output.labels())
                shown += 1
        raise_unless_painted(job)
        for item in await studio.decoding.beside(_data, studio, job, output, ""):
            usage = _usage(job.parsed(), 1)
            yield _sse(
                {"type": f"{kind}.completed", **item, "created_at": int(job.created), "usage": usage} | output.labels()
            )
    except GouacheError as error:
        yield _sse(openai_error(status_of(error), studio.hidden(error).to_dict()))
    yield "data: [DONE]\n\n"


def _look(studio: Studio, job_id: str, watch: bool) -> Job:
    job = studio.jobs.get(job_id)
    if watch and job.state not in FINISHED:
        studio.jobs.watch(job_id, 5.0)
    return job


def _repainted(studio: Studio, job: Job, jpeg: bytes, output: OutputFormat) -> str:
    if output.kind != "jpeg":
        wanted = {"kind": output.kind, "quality": 95, "max_pixels": None}
        jpeg = studio.decoding.run(job.owner, "encode", jpeg, wanted)[1]
    return base64.b64encode(jpeg).decode("ascii")


def _sse(chunk: Mapping[str, object]) -> str:
    return f"event: {chunk.get('type', 'error')}\ndata: {json.dumps(dict(chunk))}\n\n"
