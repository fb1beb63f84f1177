"""`/v1/models/files` and `/v1/models/folders`: weight files that are sent in pieces, and folders of the server's
machine that are added to the list. For administrators."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from gouache.config import Config
from gouache.serve.api.training import BYTES
from gouache.serve.api.views import Plain
from gouache.serve.http.access import admin_of, check_here, studio_of
from gouache.serve.models.added_folders import add_folder, added_folders, remove_folder
from gouache.serve.models.uploads import PIECE, Placed, Upload, free_bytes
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1/models", tags=["models"])
LARGEST = 2**53


class FileIn(Config):
    """A weight file to send."""

    name: Annotated[Plain, Field(min_length=1)]
    """Of the file, with its suffix."""
    size: Annotated[int, Field(ge=1, le=LARGEST)]
    """In bytes."""
    modified: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """When it was last changed, in ms since 1970: tells whether a second upload of this name is the same file."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{64})?$")] = ""
    """Compared with what arrived, if it is given."""


class FileView(Config):
    """A weight file on its way, or, once it is whole, in its place."""

    id: str
    """For the address of its pieces."""
    name: str
    """Of the file; of one in its place what requests call it."""
    size: int
    modified: int
    received: int
    """Bytes that are here: the next piece begins there."""
    piece: int
    """Most bytes of one piece."""
    kind: str
    """What its header says that it is (model, lora, textual-inversion, controlnet, vae and so on); empty until that
    is known."""
    family: str = ""
    """Of one in its place."""
    sha256: str = ""
    """The same."""
    done: bool = False
    """Whether it is in its place."""


class FolderIn(Config):
    """A folder to add."""

    path: Annotated[str, Field(min_length=1, max_length=4000)]
    """The whole path, on the server's machine."""


class FolderView(Config):
    """A folder that was added."""

    number: int
    """Its place in the list, from 0."""
    path: str
    models: int
    """That were found in it."""


class Room(Config):
    """Where files would go."""

    free: int
    """Bytes that the disk of the models has."""
    reserve: int
    """Bytes that must stay free."""


@router.get("/room")
def room(request: Request) -> Room:
    """How much fits. For administrators."""
    admin_of(request)
    studio = studio_of(request)
    return Room(free=free_bytes(studio.uploads.models), reserve=studio.settings.limits.free_bytes)


@router.get("/files")
def files(request: Request) -> list[FileView]:
    """Uploads that were begun and are not whole."""
    admin_of(request)
    studio = studio_of(request)
    return [_file_view(studio, upload) for upload in studio.uploads.listing()]


@router.post("/files", status_code=201)
def begin(body: FileIn, request: Request) -> FileView:
    """Begin with a file, or go on with one: `received` says where its next piece begins."""
    admin_of(request)
    studio = studio_of(request)
    return _file_view(studio, studio.uploads.open(body.name, body.size, body.modified, body.sha256))


@router.put("/files/{upload}", openapi_extra={"requestBody": {"required": True, "content": BYTES}})
async def send(
    upload: str, request: Request, offset: Annotated[int, Query(ge=0, le=LARGEST, description="Where it belongs.")]
) -> FileView:
    """Send the next piece, as the plain body. The last one puts the file in its place, told by what it holds."""
    admin_of(request)
    studio = studio_of(request)
    piece = await request.body()
    begun = studio.uploads.get(upload)
    return _file_view(studio, await asyncio.to_thread(studio.uploads.write, upload, offset, piece), begun)


@router.delete("/files/{upload}", status_code=204)
def give_up(upload: str, request: Request) -> None:
    """Give one up; what is here of it is removed."""
    admin_of(request)
    studio_of(request).uploads.cancel(upload)


@router.get("/folders")
def folders(request: Request) -> list[FolderView]:
    """Folders that were added. For administrators at the server's own machine."""
    admin_of(request)
    check_here(request)
    return _folder_views(studio_of(request))


@router.post("/folders", status_code=201)
def add(body: FolderIn, request: Request) -> list[FolderView]:
    """Add one: models in it, and in folders inside, can be painted with. Nothing is copied."""
    admin_of(request)
    check_here(request)
    studio = studio_of(request)
    add_folder(studio.database, body.path)
    studio.catalog.refresh()
    return _folder_views(studio)


@router.delete("/folders/{number}")
def remove(number: int, request: Request) -> list[FolderView]:
    """Take one off the list; its files stay."""
    admin_of(request)
    check_here(request)
    studio = studio_of(request)
    remove_folder(studio.database, number)
    studio.catalog.refresh()
    return _folder_views(studio)


def _folder_views(studio: Studio) -> list[FolderView]:
    places = [entry.path for entry in studio.catalog.models() if entry.path is not None]
    found = added_folders(studio.database)
    counts = [sum(folder in (place, *place.parents) for place in places) for folder in found]
    return [FolderView(number=k, path=str(folder), models=counts[k]) for k, folder in enumerate(found)]


def _file_view(studio: Studio, upload: Upload | Placed, begun: Upload | None = None) -> FileView:
    piece = min(PIECE, studio.settings.limits.body_bytes)
    if isinstance(upload, Placed):
        assert begun is not None, "only what was begun is put in its place"
        return FileView(
            id=begun.id,
            name=upload.name,
            size=begun.size,
            modified=begun.modified,
            received=begun.size,
            piece=piece,
            kind=upload.kind,
            family=upload.family,
            sha256=upload.sha256,
            done=True,
        )
    return FileView(
        id=upload.id,
        name=upload.name,
        size=upload.size,
        modified=upload.modified,
        received=upload.received,
        piece=piece,
        kind=upload.kind,
    )
