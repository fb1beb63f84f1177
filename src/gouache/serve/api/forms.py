"""`/v1/request-fields`, `/v1/models/facts`, `/v1/prompts`: what a form for a request is made of, and what it asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field

from gouache.checkpoints.adapters.library import EMBEDDING, list_adapters
from gouache.config import Config
from gouache.errors import InvalidInput
from gouache.pipeline.batch import wildcard_names
from gouache.pipeline.request import MAX_PROMPT, Emphasis
from gouache.serve.api.request_fields import RequestFields, describe
from gouache.serve.api.views import Plain, plain_text
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.models.abilities import Abilities, abilities_of, families_fitting
from gouache.serve.models.prompt_tokens import count_tokens
from gouache.serve.settings import Limits
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1", tags=["forms"])
Kind = Literal["lora", "embedding", "wildcard", "style", "preset"]


class PromptIn(Config):
    """A prompt, and who reads it."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(plain_text)]
    model: Plain = ""
    """Empty: the model of your requests that name none."""
    emphasis: Emphasis = "a1111"


class Tokens(Config):
    """What a prompt costs."""

    chunk_length: int
    """Tokens of a text that one chunk holds; 0 for a model that reads no words."""
    chunks: tuple[int, ...]
    """Tokens in each chunk."""
    tokens: int
    """In all of them."""
    cut: int
    """Tokens that are not read, because there are too many chunks."""
    unknown: tuple[str, ...]
    """Adapters that the prompt names and this model can't have here."""


class Completion(Config):
    """Something that may be written, or chosen, in place of a beginning."""

    kind: Kind
    """style: of the model's own; it belongs into the field of that name. preset: one of the user's."""
    text: str
    """What stands in the prompt then: `<lora:name:1>`, `name`, `__name__`; else the name."""
    label: str
    about: str = ""
    """A few words, as the file says them."""


@router.get("/request-fields", response_model=RequestFields)
def request_fields(request: Request) -> Response:
    """Every field that a request may have: kind, range, choices, default and help, in the groups of the page."""
    owner_of(request)
    body, tag = _body(studio_of(request).settings.limits)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@cache
def _body(limits: Limits) -> tuple[bytes, str]:
    body = describe(limits).model_dump_json(exclude_defaults=True).encode()
    return body, f'"{sha256(body).hexdigest()[:16]}"'


@router.get("/models/facts")
def facts(
    request: Request, model: Annotated[Plain, Query(description="Name, stem, title or hash; empty: yours.")] = ""
) -> Abilities:
    """What a model is set to by itself, what a request may ask it for, and what fits it here; nothing is loaded."""
    owner, studio = owner_of(request), studio_of(request)
    return abilities_of(studio.catalog.find(model or studio.default_model(owner)))


@router.post("/prompts/tokens")
def tokens(body: PromptIn, request: Request) -> Tokens:
    """Count a prompt's tokens by the model's own tokenizer; nothing is loaded."""
    owner, studio = owner_of(request), studio_of(request)
    longest = studio.settings.limits.prompt
    if len(body.prompt) > longest:
        raise InvalidInput("prompt", given=f"{len(body.prompt)} characters", expected=f"at most {longest}")
    found = count_tokens(body.prompt, studio.catalog.find(body.model or studio.default_model(owner)), body.emphasis)
    if found is None:
        return Tokens(chunk_length=0, chunks=(), tokens=0, cut=0, unknown=())
    return Tokens(
        chunk_length=found.chunk_length,
        chunks=found.chunks,
        tokens=sum(found.chunks) + found.cut,
        cut=found.cut,
        unknown=found.unknown,
    )


@router.get("/prompts/completions")
def completions(
    request: Request,
    prefix: Annotated[Plain, Query(description="What stands before the cursor: `<lora:ca`, `__an`, `ca`.")] = "",
    model: Annotated[Plain, Query(description="Only what fits this model; empty: yours.")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> list[Completion]:
    """What a beginning may become: adapters that fit the model, wildcards, its styles, your presets."""
    owner, studio = owner_of(request), studio_of(request)
    kinds, begun = _meant(prefix.strip())
    name = model or studio.default_model(owner)
    offered = [one for one in _offered(studio, owner, name) if one.kind in kinds and begun in one.label.casefold()]
    return sorted(offered, key=lambda one: (not one.label.casefold().startswith(begun), one.label.casefold()))[:limit]


_TAG = re.compile(r"<(?:(?:lora|lyco|hypernet)?:?)?([^:<>]*)$", re.IGNORECASE)


def _meant(prefix: str) -> tuple[tuple[Kind, ...], str]:
    """The kinds that a beginning can be of, and the beginning of the name."""
    if (tag := _TAG.search(prefix)) is not None:
        begun = tag[1].casefold()
        return ("lora",), "" if "lora".startswith(begun) and ":" not in prefix else begun
    if prefix.startswith("__"):
        return ("wildcard",), prefix.strip("_").casefold()
    return ("lora", "embedding", "wildcard", "style", "preset"), prefix.casefold()


def _offered(studio: Studio, owner: str, model: str) -> Iterator[Completion]:
    known = abilities_of(studio.catalog.find(model))
    fits = families_fitting(known.family)
    for file in list_adapters():
        if file.family in fits:
            kind: Kind = "embedding" if file.kind == EMBEDDING else "lora"
            text = file.name if kind == "embedding" else f"<lora:{file.name}:1>"
            yield Completion(kind=kind, text=text, label=file.name, about=file.label)
    for name in wildcard_names(studio.settings.wildcards):
        yield Completion(kind="wildcard", text=f"__{name}__", label=name)
    for style in known.styles:
        yield Completion(kind="style", text=style, label=style)
    for preset in studio.presets.all(owner):
        yield Completion(kind="preset", text=preset.name, label=preset.name, about=preset.prompt[:100])
