"""`/v1/pictures`, `/v1/attachments`, `/v1/capabilities`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from gouache import __version__
from gouache.config import Config
from gouache.diffusion.samplers.names import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import PictureError
from gouache.pipeline.output.metadata import ImageKind
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import MAX_SEED
from gouache.serve.api.views import (
    Attachment,
    Board,
    BoardIn,
    Change,
    Compared,
    Instant,
    PictureCounts,
    Pictures,
    PictureView,
    Plain,
    Sequence,
    TagCount,
    picture_view,
    recipe_of,
    seconds_of,
)
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.queue.admission import UPSCALERS
from gouache.serve.search.query import FoundPicture
from gouache.serve.settings import Limits
from gouache.serve.store.wanted import Kind, Wanted, board_counts, counts, tag_counts
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1", tags=["pictures"])
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


class Capabilities(Config):
    """What this server can do and how much of it."""

    version: str
    limits: Limits
    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    upscalers: tuple[str, ...]
    features: tuple[str, ...]


def wanted_of(
    request: Request,
    q: Annotated[Plain, Query(description="Words that the prompt must have.")] = "",
    tag: Annotated[Plain | None, Query()] = None,
    board: Annotated[Plain | None, Query(description="Id of a board; empty for pictures on none.")] = None,
    starred: bool | None = None,
    model: Annotated[Plain | None, Query(description="Name of the model that painted it.")] = None,
    sampler: Annotated[Plain | None, Query()] = None,
    seed: Annotated[int | None, Query(ge=0, le=MAX_SEED)] = None,
    kind: Annotated[Kind | None, Query(description="What it was painted from.")] = None,
    since: Annotated[Instant | None, Query(description="Painted at or after this date or time.")] = None,
    until: Annotated[Instant | None, Query(description="Painted before this time, or up to this date.")] = None,
    deleted: bool = False,
) -> Wanted:
    """Which of the user's pictures are meant."""
    return Wanted(
        owner=owner_of(request),
        words=q,
        tag=tag,
        board=board,
        starred=starred,
        model=model,
        sampler=sampler,
        seed=seed,
        kind=kind,
        since=None if since is None else seconds_of(since),
        until=None if until is None else seconds_of(until, to_its_end=True),
        deleted=deleted,
    )


Filtered = Annotated[Wanted, Depends(wanted_of)]


@router.get("/pictures")
async def search(
    request: Request,
    wanted: Filtered,
    meaning: Annotated[Plain, Query(description="What the pictures should show; the nearest come first.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[Sequence | None, Query()] = None,
    after: Annotated[Sequence | None, Query(description="Only those that are newer than this `seq`.")] = None,
) -> Pictures:
    """Your pictures, newest first; with `meaning`, by what they show."""
    studio = studio_of(request)
    wanted = replace(wanted, before=before, after=after)
    if not meaning.strip():
        return await asyncio.to_thread(_newest, studio, wanted, limit)
    found = await studio.semantic_search.search(meaning, wanted, limit=limit)
    return await asyncio.to_thread(_nearest, studio, found)


@router.get("/pictures/counts")
def count(request: Request, wanted: Filtered) -> PictureCounts:
    """How many pictures fit, and how many would by another choice of each filter."""
    return PictureCounts(**asdict(counts(studio_of(request).database, wanted)))


def _newest(studio: Studio, wanted: Wanted, limit: int) -> Pictures:
    found = studio.pictures.find(wanted, limit)
    tags = studio.pictures.tags_of_all([picture.id for picture in found])
    return Pictures(pictures=tuple(picture_view(picture, tags[picture.id]) for picture in found))


def _nearest(studio: Studio, found: FoundPicture) -> Pictures:
    tags = studio.pictures.tags_of_all([picture.id for picture, _ in found.pictures])
    return Pictures(
        pictures=tuple(picture_view(picture, tags[picture.id], score) for picture, score in found.pictures),
        meaning=Compared(by=found.compared, model=found.model),
    )


@router.get("/pictures/{picture_id}")
def get(picture_id: str, request: Request) -> PictureView:
    """One picture's row."""
    gallery = studio_of(request).pictures
    return picture_view(gallery.get(picture_id, owner_of(request)), gallery.tags_of(picture_id))


@router.get("/pictures/{picture_id}/file", response_class=Response)
async def file(picture_id: str, request: Request, format: ImageKind = "png") -> Response:  # noqa: A002
    """The picture with its recipe inside: as it was stored (PNG), or encoded anew."""
    studio = studio_of(request)
    # A signed link has no user; the guard let it through for exactly this address.
    picture = await asyncio.to_thread(studio.pictures.get, picture_id, request.state.owner)
    data = await studio.decoding.beside(studio.encoded, picture, format)
    headers = FOREVER | {"Content-Disposition": f'inline; filename="{picture.id}.{format}"'}
    return Response(data, media_type=f"image/{format}", headers=headers)


@router.get("/pictures/{picture_id}/thumbnail", response_class=Response)
async def thumbnail(picture_id: str, request: Request) -> Response:
    """A small WebP."""
    studio = studio_of(request)
    picture = await asyncio.to_thread(studio.pictures.get, picture_id, owner_of(request))
    data = await studio.decoding.beside(studio.thumbnail, picture)
    return Response(data, media_type="image/webp", headers=FOREVER)


@router.get("/pictures/{picture_id}/recipe")
def recipe(picture_id: str, request: Request) -> Recipe:
    """How to paint it again."""
    return recipe_of(studio_of(request).pictures.get(picture_id, owner_of(request)))


@router.patch("/pictures/{picture_id}")
def change(picture_id: str, body: Change, request: Request) -> PictureView:
    """Star it, tag it, put it on a board."""
    gallery = studio_of(request).pictures
    changed = gallery.change(picture_id, owner_of(request), starred=body.starred, new_tags=body.tags, board=body.board)
    return picture_view(changed, gallery.tags_of(picture_id))


@router.delete("/pictures/{picture_id}", status_code=204)
def delete(picture_id: str, request: Request) -> None:
    """Take it out of every list; `restore` undoes it."""
    studio_of(request).pictures.delete(picture_id, owner_of(request))


@router.post("/pictures/{picture_id}/restore")
def restore(picture_id: str, request: Request) -> PictureView:
    """Undo a deletion."""
    gallery = studio_of(request).pictures
    return picture_view(gallery.restore(picture_id, owner_of(request)), gallery.tags_of(picture_id))


@router.post(
    "/attachments",
    status_code=201,
    openapi_extra={
        "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def attach(request: Request) -> Attachment:
    """Upload a picture for a request, as the plain body. It is checked and named by its sha256."""
    data = await request.body()
    if not data:
        raise PictureError("body", given="nothing", expected="a picture's bytes")
    studio = studio_of(request)
    name, facts = await studio.decoding.beside(studio.attach, owner_of(request), data)
    return Attachment(name=name, width=facts["width"], height=facts["height"])


@router.get("/capabilities", tags=["models"])
def capabilities(request: Request) -> Capabilities:
    """Limits, names and features."""
    return Capabilities(
        version=__version__,
        limits=studio_of(request).settings.limits,
        samplers=tuple(SAMPLER_INFOS),
        schedules=tuple(SCHEDULE_INFOS),
        upscalers=UPSCALERS,
        features=("idempotency", "previews", "events", "attachments", "boards", "tags", "presets", "meaning"),
    )


@router.get("/boards")
def boards(request: Request) -> list[Board]:
    """Your boards."""
    studio, owner = studio_of(request), owner_of(request)
    number = board_counts(studio.database, Wanted(owner=owner))
    found = studio.pictures.boards(owner)
    return [Board(id=key, name=name, pictures=number.get(key, 0)) for key, name in found.items()]


@router.post("/boards", status_code=201)
def add_board(body: BoardIn, request: Request) -> Board:
    """Make a board."""
    return Board(id=studio_of(request).pictures.add_board(owner_of(request), body.name), name=body.name)


@router.patch("/boards/{board_id}")
def rename_board(board_id: str, body: BoardIn, request: Request) -> Board:
    """Give a board another name."""
    studio, owner = studio_of(request), owner_of(request)
    studio.pictures.rename_board(board_id, owner, body.name)
    number = board_counts(studio.database, Wanted(owner=owner, board=board_id))
    return Board(id=board_id, name=body.name, pictures=number.get(board_id, 0))


@router.delete("/boards/{board_id}", status_code=204)
def delete_board(board_id: str, request: Request) -> None:
    """Forget a board; the pictures on it stay."""
    studio_of(request).pictures.delete_board(board_id, owner_of(request))


@router.get("/tags")
def tags(request: Request) -> list[TagCount]:
    """The tags of your pictures, the most frequent first."""
    found = tag_counts(studio_of(request).database, Wanted(owner=owner_of(request)))
    return [TagCount(tag=tag, pictures=number) for tag, number in found.items()]
