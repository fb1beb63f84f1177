"""What an editor needs beside jobs: control pictures, its own uploads again, and a place for what it composed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from PIL import Image
from pydantic import Field, model_validator

from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.preprocessor_library import DRAWN, drawable
from gouache.config import Config
from gouache.errors import InvalidInput, PictureError
from gouache.serve.api.views import Attachment, PictureView, Plain, picture_view
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1", tags=["pictures"])
Drawn = Literal["canny", "depth", "segmentation"]
MEDIA_TYPES: Mapping[str, str] = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}
"""Of what a browser shows; other uploads are sent as bytes."""
INERT = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
"""Whatever else a file may be than a picture, nothing in it runs."""
MOST_PARENTS = 50
_PICTURE = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}


class ControlLists(Config):
    """What control pictures can be made with here."""

    preprocessors: tuple[str, ...]
    """none, canny, and those whose network lies in the models folder."""
    models: tuple[str, ...]
    """ControlNets, control-LoRAs and T2I-Adapters, by the names that a request takes."""


class PreprocessorParameters(Config):
    """What a preprocessor is told; each reads its own."""

    canny_low: Annotated[int, Field(ge=0, le=1000)] = 100
    """Edges at least this strong count where they continue a strong one."""
    canny_high: Annotated[int, Field(ge=0, le=1000)] = 200
    """Edges at least this strong count by themselves."""

    @model_validator(mode="after")
    def _is_in_order(self) -> PreprocessorParameters:
        if self.canny_low > self.canny_high:
            raise ValueError("canny_low of at most canny_high")
        return self


class ControlImageIn(Config):
    """A picture, and what is to be drawn of it."""

    image: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """An attachment of yours."""
    preprocessor: Drawn
    """canny draws edges; depth and segmentation take a network in the models folder."""
    parameters: PreprocessorParameters = PreprocessorParameters()


@router.get("/control-images")
def control_lists(request: Request) -> ControlLists:
    """Preprocessors and control networks that this server has."""
    owner_of(request)
    return ControlLists(
        preprocessors=("none", "canny", *drawable()), models=tuple(file.name for file in usable_controls())
    )


@router.post("/control-images", status_code=201)
async def draw(body: ControlImageIn, request: Request) -> Attachment:
    """Draw the control picture that a job with this preprocessor would draw; it is kept as an attachment.

    Raises:
        InvalidInput: the server lacks the network for it.
        PictureError: no such attachment of yours.
        QueueFull: too many of your pictures wait.
        NobodyAnswers: no worker runs.
    """
    studio, owner = studio_of(request), owner_of(request)
    data = await asyncio.to_thread(studio.attachments.read, owner, body.image)
    if body.preprocessor in DRAWN:
        known = await asyncio.to_thread(drawable)
        if body.preprocessor not in known:
            expected = f"one that this server has the network for: {', '.join(('canny', *known))}"
            raise InvalidInput("preprocessor", given=body.preprocessor, expected=expected)
        drawn = await studio.draw_tasks.make(data, {"preprocessor": body.preprocessor}, owner)
    else:
        low, high = body.parameters.canny_low, body.parameters.canny_high
        wanted = {"where": "image", "max_pixels": studio.upload_pixels, "low": low, "high": high}
        _, drawn = await studio.decoding.beside(studio.decoding.run, owner, "edges", data, wanted)
    name, facts = await studio.decoding.beside(studio.attach, owner, drawn)
    return Attachment(name=name, width=facts["width"], height=facts["height"])


@router.get("/attachments/{digest}", response_class=Response)
def attachment(digest: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], request: Request) -> Response:
    """A picture that you uploaded, as it came."""
    data = studio_of(request).attachments.read(owner_of(request), f"sha256:{digest}")
    return Response(data, media_type=_media_type(data), headers=INERT)


def _media_type(data: bytes) -> str:
    """From the header alone: an upload was decoded once, when it came."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return MEDIA_TYPES.get(picture.format or "", "application/octet-stream")
    except OSError:
        return "application/octet-stream"


@router.post("/pictures", status_code=201, openapi_extra=_PICTURE)
async def keep_edited(
    request: Request,
    parent: Annotated[
        list[Plain] | None, Query(max_length=MOST_PARENTS, description="Pictures of yours that it was made of.")
    ] = None,
) -> PictureView:
    """Put a picture that was composed elsewhere into your gallery, as the plain body.

    It carries the recipe of its first parent, with a note that it was edited.
    """
    data = await request.body()
    if not data:
        raise PictureError("body", given="nothing", expected="a picture's bytes")
    studio, owner = studio_of(request), owner_of(request)
    return await studio.decoding.beside(_kept, studio, owner, data, tuple(parent or ()))


def _kept(studio: Studio, owner: str, data: bytes, parents: tuple[str, ...]) -> PictureView:
    picture = studio.keep_edited(owner, data, parents)
    return picture_view(picture, studio.pictures.tags_of(picture.id))
