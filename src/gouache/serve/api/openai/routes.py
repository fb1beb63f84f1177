"""The routes of OpenAI's image API, and what they answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from gouache.config import expectation
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, NotFound
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.openai.fields import Drawn, Edits, Generations, Images, Variations
from gouache.serve.api.openai.mapping import (
    WORDS,
    MappedImages,
    OutputFormat,
    edited_pictures,
    order_of,
    served_name,
    varied_picture,
)
from gouache.serve.api.views import Model, raise_unless_painted
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.http.guard import seal
from gouache.serve.http.replies import PlainJson, in_words_of, openai_error, status_of
from gouache.serve.queue.job import FINISHED, Job
from gouache.serve.queue.notify import changes
from gouache.serve.queue.queue import fingerprint_of
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio

ImagesBody = TypeVar("ImagesBody", bound=Images)
router = APIRouter(tags=["openai"])
PREFIX = "/v1/images"


@router.get("/v1/models/{name:path}", tags=["models"])
def model(name: str, request: Request) -> Model:
    """One model; by one of OpenAI's names the one that is meant."""
    studio = studio_of(request)
    served = served_name(name, studio) or studio.default_model(owner_of(request))
    try:
        entry = studio.catalog.find(served)
    except ModelNotFound as error:
        raise NotFound("model", given=error.given, expected=error.expected, cure=error.cure) from error
    own = name if served != name else entry.name
    return Model(id=own, created=int(entry.modified), title=entry.title, size=entry.size, sha256=entry.sha256)


@router.post(f"{PREFIX}/generations", response_model=None)
async def generations(body: Generations, request: Request) -> Response:
    """Paint from a prompt."""
    with in_words_of(WORDS):
        order = await asyncio.to_thread(order_of, body, studio_of(request), owner_of(request))
        return await _answer(request, body, order, "image_generation")


_FORM = {"type": "string", "format": "binary"}


def _form(model: type[Images], *files: str) -> dict[str, Any]:
    """The schema of a multipart body: the fields and the files."""
    schema = model.model_json_schema()
    schema["properties"] |= dict.fromkeys(files, _FORM)
    schema["required"] = [*schema.get("required", []), "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post(f"{PREFIX}/edits", response_model=None, openapi_extra=_form(Edits, "image", "mask"))
async def edits(request: Request) -> Response:
    """Paint over a picture: where the mask is fully transparent, or everywhere without one."""
    return await _painted_over(request, Edits, edited_pictures)


@router.post(f"{PREFIX}/variations", response_model=None, openapi_extra=_form(Variations, "image"))
async def variations(request: Request) -> Response:
    """Paint over a whole picture, without a prompt."""
    return await _painted_over(request, Variations, varied_picture)


async def _painted_over(
    request: Request,
    kind: type[ImagesBody],
    pictures_of: Callable[[ImagesBody, Studio, str, dict[str, list[bytes]]], dict[str, object]],
) -> Response:
    """Answer a form with pictures; `pictures_of` makes of its files what `order_of` takes."""
    with in_words_of(WORDS):
        fields, files = await _read_form(request)
        body, studio, owner = _checked(kind, fields), studio_of(request), owner_of(request)
        pictures = await studio.decoding.beside(pictures_of, body, studio, owner, files)
        order = await asyncio.to_thread(order_of, body, studio, owner, pictures)
        return await _answer(request, body, order, "image_edit")


@router.get(f"{PREFIX}/files/{{quality}}/{{picture_id}}.{{kind}}", response_class=Response)
def linked_file(quality: int, picture_id: str, kind: ImageKind, request: Request) -> Response:
    """A picture by a link; clients save it under the last part of the path."""
    studio = studio_of(request)
    # A signed link has no user; the guard let it through for exactly this address.
    picture = studio.pictures.get(picture_id, request.state.owner)
    return Response(studio.encoded(picture, kind, min(max(quality, 1), 100)), media_type=f"image/{kind}")


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


async def _answer(request: Request, body: Images, order: MappedImages, kind: str) -> Response:
    studio, owner = studio_of(request), owner_of(request)
    paint, output = order.request, order.output
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
    found = await asyncio.to_thread(studio.pictures.of_job, job.id)
    data = await studio.decoding.beside(_data, studio, found, output, str(request.base_url))
    reply = {
        "created": int(job.created),
        "data": data,
        **output.labels(_size_of(found)),
        "usage": _usage(paint, len(data)),
    }
    notes = [*order.notes, *dict.fromkeys(note for picture in found for note in picture.parsed().notes)]
    return PlainJson(reply | ({"notes": notes} if notes else {}))


def _size_of(found: Sequence[Picture]) -> tuple[int, int] | None:
    """The size that came, whatever was asked for."""
    return (found[0].width, found[0].height) if found else None


def _check_key(key: str | None) -> None:
    if key is not None and (len(key) > 255 or not key.isascii() or not key.isprintable() or not key):
        raise InvalidInput("Idempotency-Key", given=repr(key)[:80], expected="1 to 255 printable ASCII characters")


def _data(studio: Studio, found: Sequence[Picture], output: OutputFormat, base_url: str) -> list[dict[str, str]]:
    if output.as_url:
        return [{"url": base_url.rstrip("/") + _link(studio, picture, output)} for picture in found]
    return [
        {"b64_json": base64.b64encode(studio.encoded(picture, output.kind, output.quality)).decode("ascii")}
        for picture in found
    ]


def _link(studio: Studio, picture: Picture, output: OutputFormat) -> str:
    """An address that needs no token, for an hour."""
    path = f"{PREFIX}/files/{output.quality}/{picture.id}.{output.kind}"
    return f"{path}?link={seal(path, studio.secret, 'link')}"


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
                yield _sse(chunk | {"created_at": int(job.created)} | output.labels(None))
                shown += 1
        raise_unless_painted(job)
        found = await asyncio.to_thread(studio.pictures.of_job, job.id)
        for item in await studio.decoding.beside(_data, studio, found, output, ""):
            about = {"created_at": int(job.created), "usage": _usage(job.parsed(), 1)}
            yield _sse({"type": f"{kind}.completed", **item, **about, **output.labels(_size_of(found))})
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
