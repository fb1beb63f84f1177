"""`/v1/pictures/{id}/request` and `/v1/recipes/read`: settings that come back, of the gallery's pictures and others."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request

from gouache.config import Config
from gouache.errors import GouacheError, RecipeError
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.recall import Recalled, at_asked_size, followed, recalled
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1", tags=["pictures"])
LONGEST = 2**20
"""Bytes of a text that is read."""


class NoteView(Config):
    """What the settings don't say, or say otherwise."""

    kind: str
    """edited, older, no_job, partial, versions: why the picture may come out differently; model, picture: what is not
    here any more; left_out: a name that this server hasn't got; read: what of the file could not be followed."""
    about: str
    """The field, or the name."""
    text: str
    """The sentence."""


class Settings(Config):
    """The settings of a picture."""

    request: dict[str, Any]
    """What to hand in to paint it: the fields that differ from their defaults."""
    seeds: dict[str, str]
    """The seeds in it, by field, as text: they may be larger than JavaScript's numbers."""
    notes: tuple[NoteView, ...]


class PictureSettings(Settings):
    """The settings of a picture of the gallery."""

    painted: dict[str, Any]
    """The same without gaps: with what the model filled in."""


class ReadSettings(Settings):
    """The settings that a file or a text says."""

    own: bool
    """Whether gouache painted it, so that the settings are complete."""
    tool: str
    """gouache, a1111, comfyui, invokeai, ..."""
    picture: str | None
    """Id in your gallery, where it is one of yours."""
    raw: dict[str, str]
    """The texts in the file as they stand, by keyword."""


@router.get("/pictures/{picture_id}/request")
def request_of(picture_id: str, request: Request) -> PictureSettings:
    """The request that paints this picture again, as it was asked."""
    studio = studio_of(request)
    picture = studio.pictures.get(picture_id, owner_of(request))
    found = recalled(studio, picture)
    return PictureSettings(**_settings(found), painted=_plain(picture.parsed().request))


@router.post(
    "/recipes/read",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                "text/plain": {"schema": {"type": "string"}},
            },
        }
    },
)
async def read(request: Request) -> ReadSettings:
    """The settings that a picture's file says, sent as the plain body; or those in a text, sent as text/plain."""
    data = await request.body()
    # The guard calls a text that begins like JSON so, whatever its sender called it.
    is_text = request.headers.get("content-type", "").startswith(("text/", "application/json"))
    studio, owner = studio_of(request), owner_of(request)
    if not data.strip():
        raise RecipeError("body", given="nothing", expected="a picture's bytes, or a text")
    if is_text and len(data) > LONGEST:
        raise RecipeError("body", given=f"{len(data)} bytes of text", expected=f"at most {LONGEST}")
    return await studio.decoding.beside(_read, studio, owner, data, is_text)


def _read(studio: Studio, owner: str, data: bytes, is_text: bool) -> ReadSettings:
    own = None if is_text else studio.pictures.by_sha256(sha256(data).hexdigest(), owner)
    wanted = {"max_pixels": studio.upload_pixels, "text": is_text}
    facts, _ = studio.decoding.run(owner, "recipe", data, wanted)
    if own is not None:
        found = recalled(studio, own)
    else:
        size = None if is_text else (int(facts["size"][0]), int(facts["size"][1]))
        found = _of_another(studio, owner, facts["request"], size, facts["model_hash"])
    told = () if facts["own"] else tuple(NoteView(kind="read", about="", text=_valid(note)) for note in facts["notes"])
    settings = _settings(found)
    return ReadSettings(
        **{**settings, "notes": (*settings["notes"], *told)},
        own=facts["own"],
        tool=facts["tool"],
        picture=None if own is None else own.id,
        raw={_valid(key): _valid(text) for key, text in facts["texts"].items()},
    )


def _of_another(
    studio: Studio, owner: str, values: dict[str, object], size: tuple[int, int] | None, model_hash: str
) -> Recalled:
    try:
        request = PaintRequest.from_dict(values, where="recipe")
    except GouacheError as error:
        raise RecipeError("recipe", given=f"{error.where}: {error.given}", expected=error.expected) from error
    return followed(studio, owner, at_asked_size(request, size), model_hash)


def _settings(found: Recalled) -> dict[str, Any]:
    notes = tuple(NoteView(**{key: _valid(text) for key, text in asdict(note).items()}) for note in found.notes)
    return {"request": _plain(found.request), "seeds": seeds_of(found.request), "notes": notes}


def _valid(text: str) -> str:
    """A text from outside without halves of characters, which no answer can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(request: PaintRequest) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude_defaults=True)


def seeds_of(request: PaintRequest) -> dict[str, str]:
    """The seeds in a request as text, by field."""
    given = {"seed": request.seed, "subseed": request.subseed}
    if request.interpolation is not None:
        given["interpolation.seed"] = request.interpolation.seed
    return {field: str(seed) for field, seed in given.items() if seed is not None}
