"""What the schema says of every route beside its own body: who may ask, how it refuses, replies without JSON."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gouache.serve.http.guard import OPEN_PATHS
from gouache.serve.http.visitors import SESSION


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI's clients know it; the last four keys are our own."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    kind: str | None = None
    given: str | None = None
    expected: str | None = None
    cure: str | None = None


class InvalidField(BaseModel):
    """One field that does not fit the schema."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """A refusal of the native API and of OpenAI's."""

    error: ErrorDetail
    detail: list[InvalidField] | None = None


class A1111Refusal(BaseModel):
    """A refusal of A1111's API; `detail` is a list where fields don't fit the schema."""

    detail: str | list[InvalidField]
    error: str | None = None
    body: str | None = None
    errors: str | None = None
    field: str | None = None


class SentImage(BaseModel):
    """One image, in one of two ways."""

    b64_json: str | None = None
    url: str | None = None


class SentImages(BaseModel):
    """The reply of OpenAI's three calls."""

    created: int
    data: list[SentImage]
    background: str
    output_format: str
    quality: str
    size: str
    usage: dict[str, Any]


SECURITY: dict[str, dict[str, str]] = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token of `gouache accounts add`."},
    "password": {"type": "http", "scheme": "basic", "description": "Name, and password or token."},
    "session": {"type": "apiKey", "in": "cookie", "name": SESSION, "description": "As POST /login gives it."},
}
REFUSED = {
    "401": "Nobody known asks.",
    "403": "Not from here, or not this user's to do.",
    "404": "There is no such thing, or it is somebody else's.",
    "413": "The body is too large.",
    "422": "A field or a picture can't be used.",
    "429": "Too many requests, or a full queue; see Retry-After.",
    "503": "Nothing can be answered at this moment; see Retry-After.",
    "default": "Any other refusal.",
}
_BINARY = {"type": "string", "format": "binary"}
_JPEG, _PNG, _WEBP = ({f"image/{kind}": {"schema": _BINARY}} for kind in ("jpeg", "png", "webp"))
CONTENTS: dict[str, dict[str, Any]] = {
    "/v1/attachments/{digest}": {**_PNG, **_JPEG, **_WEBP},
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
    "/v1/events": {"text/event-stream": {"schema": {"type": "string"}}},
    "/v1/explanations/{job_id}/page": {"text/html": {"schema": {"type": "string"}}},
    "/v1/jobs/{job_id}/events": {"text/event-stream": {"schema": {"type": "string"}}},
    "/v1/jobs/{job_id}/preview": _JPEG,
    "/v1/pictures/{picture_id}/file": {**_PNG, **_JPEG, **_WEBP},
    "/v1/pictures/{picture_id}/thumbnail": _WEBP,
    "/v1/training/runs/{name}/samples/{images_seen}": _PNG,
    "/v1/training/sets/{name}/thumbnails/{file}": _WEBP,
}
"""Replies that are no JSON."""


def describe(api: FastAPI) -> None:
    """Complete the schema that the application tells."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(title=api.title, version=api.version, routes=api.routes)
            _complete(schema)
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> None:
    parts = schema.setdefault("components", {})
    parts["securitySchemes"] = SECURITY
    schema["security"] = [{name: []} for name in SECURITY]
    models = parts.setdefault("schemas", {})
    for model in (Refusal, A1111Refusal, SentImages):
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        models |= {**made.pop("$defs", {}), model.__name__: made}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _describe(path, operation)
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape, which nothing here has.
        models.pop(unused, None)


def _describe(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    if path in OPEN_PATHS:
        operation["security"] = []
        return
    kind = A1111Refusal if path.startswith(("/sdapi/", "/controlnet/")) else Refusal
    shown = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    refused = dict(REFUSED)
    if path.startswith("/v1/images/"):  # As OpenAI's own answers do.
        refused["400"] = refused.pop("422")
        answers.pop("422", None)
        answers["200"]["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/SentImages"}}}
    for status, text in sorted(refused.items()):
        answers[status] = {"description": text, "content": shown}
    if path in CONTENTS:
        answers["200"]["content"] = CONTENTS[path]
    for answer in answers.values():
        for content in answer.get("content", {}).values():
            # A route that answers nothing answers JSON's null.
            content["schema"] = content.get("schema") or {"type": "null"}
