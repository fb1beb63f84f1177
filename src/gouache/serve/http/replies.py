"""Errors as HTTP replies, in the shape that the clients of each interface know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse, Response

from gouache.config import expectation
from gouache.errors import (
    CheckpointError,
    Conflict,
    DataError,
    GouacheError,
    HubError,
    InvalidInput,
    MissingDependency,
    ModelNotFound,
    NotFound,
    QueueFull,
    RecipeError,
    StoreAway,
    StoreError,
)
from gouache.serve.store.file_store import disk_error, is_of_disk


class TookTooLong(StoreError):
    """The caller's wait is over; the job goes on."""


class NotAllowed(StoreError):
    """Somebody known asks for what is not theirs to do."""


class NobodyAnswers(StoreError):
    """No worker answered in time."""


_STATUS: tuple[tuple[type[GouacheError], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (QueueFull, 429),
    (ModelNotFound, 422),
    (CheckpointError, 422),
    (InvalidInput, 422),
    (RecipeError, 422),
    (DataError, 422),
    (MissingDependency, 501),
    (TookTooLong, 504),
    (NobodyAnswers, 504),
    (NotAllowed, 403),
    (HubError, 424),
    (StoreAway, 503),
)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: GouacheError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def reply_to(path: str, error: GouacheError) -> Response:
    """An error as the reply to a request for this path."""
    if isinstance(error.__cause__, OSError) and is_of_disk(error.__cause__):  # Not the fault of what it names.
        error = disk_error(error.__cause__)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull | StoreAway) else {}
    return refusal(path, status_of(error), error.to_dict(), headers)


def refusal(path: str, status: int, parts: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Response:
    """A reply that says no.

    Args:
        path: of the request; it decides the shape.
        status: HTTP status.
        parts: `message`, and `where`, `given`, `expected`, `cure` if known.
        headers: to send along.
    """
    if path.startswith(("/sdapi/", "/controlnet/")):
        body: dict[str, Any] = {
            "error": _TYPES.get(status, "error"),
            "detail": parts["message"],
            "body": "",
            "errors": parts["message"],
            "field": parts.get("where"),
        }
    elif path.startswith("/v1/images/"):
        body = openai_error(400 if status == 422 else status, parts)
        status = 400 if status == 422 else status
    else:
        body = openai_error(status, parts)
    return PlainJson(body, status, dict(headers or {}))


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about our fields name theirs instead.

    Args:
        names: our name -> theirs.
    """
    try:
        yield
    except InvalidInput as error:
        own = error.where.removeprefix("request: ")
        if own == "request":  # A rule about several fields; its sentence begins with one of them.
            own = next((name for name in names if error.expected.startswith(name)), own)
        raise InvalidInput(names.get(own, own), given=error.given, expected=error.expected, cure=error.cure) from error


def openai_error(status: int, parts: Mapping[str, str]) -> dict[str, Any]:
    """OpenAI's shape; the extra keys are ours."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error: dict[str, Any] = {"message": parts["message"], "type": kind, "param": parts.get("where"), "code": None}
    return {"error": error | {key: parts[key] for key in ("kind", "given", "expected", "cure") if key in parts}}


def validation_reply(path: str, errors: Sequence[Mapping[str, Any]]) -> Response:
    """A body or query that doesn't fit the schema."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "header", "path"))
    expected = expectation(str(first["msg"]))
    if not where and str(first["type"]) in ("model_attributes_type", "dict_type"):
        expected = "a JSON object, sent with Content-Type: application/json"
    message = f"{where or 'body'}: expected {expected}."
    detail = [{"loc": list(error["loc"]), "msg": error["msg"], "type": error["type"]} for error in errors]
    if path.startswith(("/sdapi/", "/controlnet/")):
        return PlainJson({"detail": detail}, 422)
    parts = {"kind": "ConfigError", "message": message, "where": where or "body", "expected": expected}
    status = 400 if path.startswith("/v1/images/") else 422
    return PlainJson(openai_error(status, parts) | {"detail": detail}, status)


class PlainJson(JSONResponse):
    """JSON in which any text that came from outside, even a lone surrogate, can stand."""

    def render(self, content: object) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
