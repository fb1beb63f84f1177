"""`/v1/pictures/bulk` and `/v1/pictures/zip`: many pictures at once."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import InvalidInput, NotFound
from gouache.files import slug
from gouache.serve.api.views import Plain, Tag
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.store.bulk import Changes, change_many
from gouache.serve.store.file_store import FileStore
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1/pictures", tags=["pictures"])
MOST_CHANGED = 5000
MOST_ZIPPED = 1000
MOST_BYTES = 2**32 - 2**20
"""Of all files in one zip: what every program that unpacks can read."""
_ZIP_NAME = "pictures.zip"

_ID = r"^[0-9A-Za-z-]{1,40}$"
PictureId = Annotated[str, Field(pattern=_ID)]


class Bulk(Config):
    """What to do with many pictures; what is left out stays."""

    ids: Annotated[tuple[PictureId, ...], Field(min_length=1, max_length=MOST_CHANGED)]
    starred: bool | None = None
    add_tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    remove_tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    board: Plain | None = None
    """Id of a board; an empty text takes them off theirs."""
    delete: bool = False
    """Take them out of every list."""
    restore: bool = False
    """Undo their deletion."""

    @model_validator(mode="after")
    def _is_clear(self) -> Self:
        if self.delete and self.restore:
            raise ValueError("delete or restore: a picture can't be both")
        return self


class Changed(Config):
    """Which pictures were changed."""

    ids: tuple[str, ...]


class Chosen(Config):
    """Pictures to pack, in this order."""

    ids: Annotated[tuple[PictureId, ...], Field(min_length=1, max_length=MOST_ZIPPED)]


@router.post("/bulk")
def change(body: Bulk, request: Request) -> Changed:
    """Star, tag, put on a board, delete or restore many pictures: all of them or, if one isn't yours, none."""
    changes = Changes(
        starred=body.starred,
        add_tags=body.add_tags,
        remove_tags=body.remove_tags,
        board=body.board,
        deleted=True if body.delete else False if body.restore else None,
    )
    studio = studio_of(request)
    changed = change_many(studio.database, body.ids, owner_of(request), changes)
    studio.pictures.changed()
    return Changed(ids=tuple(changed))


_ZIP_FILE = {"schema": {"type": "string", "format": "binary"}}
_ZIP_REPLY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": _ZIP_FILE}}}


@router.post("/zip", response_class=Response, responses=_ZIP_REPLY)
def zipped(body: Chosen, request: Request) -> StreamingResponse:
    """Pictures with their recipes inside, as they are stored, in one zip."""
    return _reply(studio_of(request), body.ids, owner_of(request))


@router.get("/zip", response_class=Response, responses=_ZIP_REPLY)
def zipped_by_address(
    request: Request,
    ids: Annotated[str, Query(min_length=1, max_length=41 * MOST_ZIPPED, description="Ids with commas between.")],
) -> StreamingResponse:
    """As the other, as an address that a browser can save from."""
    chosen = [part.strip() for part in ids.split(",") if part.strip()]
    odd = next((one for one in chosen if not re.fullmatch(_ID, one)), None)
    if odd is not None:
        raise NotFound("picture", given=repr(odd)[:100], expected="ids of your pictures, with commas between")
    if len(chosen) > MOST_ZIPPED:
        raise InvalidInput("ids", given=f"{len(chosen)} pictures", expected=f"at most {MOST_ZIPPED}")
    return _reply(studio_of(request), chosen, owner_of(request))


def _reply(studio: Studio, ids: Iterable[str], owner: str) -> StreamingResponse:
    found = studio.pictures.chosen(list(ids), owner)
    size = sum(picture.bytes for picture in found)
    if size > MOST_BYTES:
        cure = "Choose fewer pictures."
        raise InvalidInput("ids", given=f"{size} bytes", expected=f"at most {MOST_BYTES} in one zip", cure=cure)
    headers = {"Content-Disposition": f'attachment; filename="{_ZIP_NAME}"', "Cache-Control": "no-store"}
    return StreamingResponse(packed(found, studio.file_store), media_type="application/zip", headers=headers)


class _Sink:
    """What zipfile writes to: it can't be sought in, and what was written is taken away."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        """What was written since the last call."""
        taken, self._parts = b"".join(self._parts), []
        return taken


def packed(found: Iterable[Picture], files: FileStore) -> Iterator[bytes]:
    """A zip of pictures, one after the other, so that no more than one is in memory.

    A picture whose file is gone is named in `missing.txt` instead.
    """
    sink, missing = _Sink(), []
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already.
        for picture, name in named(found):
            try:
                data = files.read("pictures", picture.file)
            except NotFound:
                missing.append(name)
                continue
            made = time.localtime(picture.created)[:6]
            archive.writestr(zipfile.ZipInfo(name, (made[0], *made[1:6])), data)
            yield sink.take()
        if missing:
            archive.writestr("missing.txt", "\n".join(missing) + "\n")
    yield sink.take()


def named(found: Iterable[Picture]) -> Iterator[tuple[Picture, str]]:
    """Pictures with names for their files, of prompt and seed, each name once."""
    given: set[str] = set()
    for picture in found:
        stem = f"{slug(picture.prompt)}-{picture.seed}"
        name = next(name for k in range(1, len(given) + 2) if (name := _numbered(stem, k)) not in given)
        given.add(name)
        yield picture, name


def _numbered(stem: str, number: int) -> str:
    return f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
