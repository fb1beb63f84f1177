"""`/v1/explanations`: what each part of a model did for one picture."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from gouache.config import Config
from gouache.errors import NotFound
from gouache.pipeline.explain.data import ExplanationData
from gouache.pipeline.explain.page import to_html
from gouache.pipeline.explain.possible import check_explained
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.jobs import Key, seen
from gouache.serve.api.views import JobView
from gouache.serve.http.access import owner_of, studio_of

router = APIRouter(prefix="/v1/explanations", tags=["explanations"])
PAGE_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)
"""Of the page as a file: its own style and script, in an origin of its own, where nothing of the studio is reached."""
_UNFIT = re.compile(r"[^\w-]+")


class ExplanationIn(Config):
    """What is to be explained."""

    request: PaintRequest
    """One picture, in one pass; what adds a pass or a picture is refused by name."""


@router.post("", status_code=202)
def submit(body: ExplanationIn, request: Request, response: Response, key: Key = None) -> JobView:
    """Hand in a job that paints a picture as always and keeps what each part of the model did; look at it as at any
    other job. The picture is in the explanation and not in the gallery.

    Raises:
        InvalidInput: several pictures, or several passes.
    """
    studio = studio_of(request)
    check_explained(body.request)
    job, new = studio.submit(body.request, owner=owner_of(request), source="explain", key=key)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return seen(studio, job)


@router.get("/{job_id}", response_model=ExplanationData)
def get(job_id: str, request: Request) -> Response:
    """The explanation, a week long after its job was done. Pictures are PNGs as data URIs.

    Raises:
        NotFound: no such job of yours, or there is no explanation yet, or no longer.
    """
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(_stored(job_id, request), media_type="application/json", headers=headers)


@router.get("/{job_id}/page", response_class=Response)
def page(job_id: str, request: Request, language: Annotated[Literal["en", "zh"], Query()] = "en") -> Response:
    """The explanation as one HTML file that needs no network; as `gouache explain` writes it."""
    data = ExplanationData.from_json(_stored(job_id, request).decode(), where="explanation")
    # A name that every system takes; the whole prompt is inside.
    name = _UNFIT.sub("-", data.prompt.encode("ascii", "ignore").decode()).strip("-")[:40] or "explanation"
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.html"',
        "Content-Security-Policy": PAGE_POLICY,
        "Cache-Control": "private, max-age=3600",
    }
    return Response(to_html(data, language), media_type="text/html; charset=utf-8", headers=headers)


def _stored(job_id: str, request: Request) -> bytes:
    studio = studio_of(request)
    job = studio.jobs.get(job_id, owner_of(request))
    if job.source != "explain" or job.state != "done":
        given = f"a job that is {job.state}" if job.source == "explain" else "a job that paints"
        raise NotFound("explanation", given=given, expected="a job of /v1/explanations that is done")
    try:
        return studio.file_store.read("explanations", job.id)
    except NotFound as error:
        raise NotFound(
            "explanation", given="one that is no longer kept", expected="one of the last week", cure="Explain it again."
        ) from error
