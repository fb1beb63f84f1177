"""`/v1/boards`, `/v1/tags`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from gouache.serve.api.views import Board, BoardIn, TagCount
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.store.wanted import Wanted, board_counts, tag_counts

router = APIRouter(prefix="/v1", tags=["pictures"])


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
