"""`/v1/request-fields`, `/v1/models/facts`: what a form for a request is made of."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from gouache.serve.api.request_fields import RequestFields, describe
from gouache.serve.api.views import Plain
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.models.abilities import Abilities, abilities_of
from gouache.serve.settings import Limits

router = APIRouter(prefix="/v1", tags=["forms"])


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
