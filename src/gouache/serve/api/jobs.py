"""`/v1/jobs`: hand in, look, cancel, retry, follow."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from gouache.errors import InvalidInput, NotFound, StoreAway
from gouache.pipeline.batch import has_choices, with_choices
from gouache.pipeline.request import Request as PaintRequest
from gouache.serve.api.events import CountedStream, LastEvent, check_streams
from gouache.serve.api.views import JobIn, Jobs, JobView, PositionIn, Sequence, job_view
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.queue.job import FINISHED, Job, JobState
from gouache.serve.queue.notify import changes
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
WATCH_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 15.0
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255, pattern=r"^[\x21-\x7e]+$")]
Limit = Annotated[int, Query(ge=1, le=200)]


def seen(studio: Studio, job: Job) -> JobView:
    """A job with its pictures and its place in the queue."""
    return job_view(job, studio.pictures.ids_of_jobs([job.id])[job.id], studio.jobs.position(job))


@router.post("", status_code=202)
def submit(body: JobIn, request: Request, response: Response, key: Key = None) -> JobView:
    """Hand in a job. It is on disk when this answers; a second call with the same key gives the same job."""
    studio, owner = studio_of(request), owner_of(request)
    wanted = studio.presets.laid_around(owner, body.request, body.styles) if body.styles else body.request
    each = _chosen(wanted, studio) if body.choices and has_choices(wanted.prompt) else [wanted]
    made = [
        studio.submit(
            one,
            owner=owner,
            source="v1",
            key=f"{key[:240]}/{number}" if key and number else key,
            label=body.label,
            priority=body.priority,
        )
        for number, one in enumerate(each)
    ]
    job, new = made[0]
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return seen(studio, job)


def _chosen(request: PaintRequest, studio: Studio) -> list[PaintRequest]:
    """A request for each picture, its prompt chosen by the picture's seed.

    Raises:
        InvalidInput: a wildcard without a file, or more pictures than this server allows.
    """
    most = studio.settings.limits.count
    if request.count > most:
        raise InvalidInput("count", given=f"{request.count} pictures", expected=f"at most {most} on this server")
    try:
        return with_choices(request, studio.settings.wildcards)
    except InvalidInput as error:
        cure = "Put it into the folder wildcards of the server's data, one choice a line."
        raise InvalidInput("prompt", given=error.where, expected=error.expected, cure=cure) from error


@router.get("")
def listing(
    request: Request,
    state: Annotated[list[JobState] | None, Query()] = None,
    limit: Limit = 50,
    before: Annotated[Sequence | None, Query()] = None,
) -> Jobs:
    """Your jobs, newest first."""
    studio = studio_of(request)
    found = studio.jobs.listing(owner=owner_of(request), states=state or (), limit=limit, before=before)
    pictures = studio.pictures.ids_of_jobs([job.id for job in found])
    return Jobs(jobs=tuple(job_view(job, pictures[job.id], studio.jobs.position(job)) for job in found))


@router.get("/{job_id}", response_model=JobView)
async def get(job_id: str, request: Request) -> Response:
    """One job."""
    studio, owner = studio_of(request), owner_of(request)
    # Pollers ask for this more than for anything else: a read that waits for nobody needs no thread.
    if studio.database.sqlite and not studio.database.away:
        view = studio.cached_view.at(job_id, owner)
    else:
        view = await asyncio.to_thread(studio.cached_view.at, job_id, owner)
    return Response(view, media_type="application/json")


@router.post("/{job_id}/cancel")
def cancel(job_id: str, request: Request) -> JobView:
    """Stop one job: at once if it waits, after its current step if it runs."""
    studio = studio_of(request)
    return seen(studio, studio.cancel(job_id, owner_of(request)))


@router.post("/{job_id}/retry")
def retry(job_id: str, request: Request) -> JobView:
    """Put a failed or cancelled job back into the queue."""
    studio = studio_of(request)
    return seen(studio, studio.retry(job_id, owner_of(request)))


@router.put("/{job_id}/position")
def move(job_id: str, body: PositionIn, request: Request) -> JobView:
    """Let one of your waiting jobs go directly before another of yours, or after all of them.

    Nobody else's jobs go earlier or later for it: your jobs share the places out anew that they have.
    """
    studio, owner = studio_of(request), owner_of(request)
    studio.order.move(job_id, owner, body.before)
    studio.notifier.notify(job_id)
    return seen(studio, studio.jobs.get(job_id, owner))


@router.get("/{job_id}/preview", response_class=Response)
def preview(job_id: str, request: Request) -> Response:
    """The newest preview as a JPEG; asking for it makes the worker draw more."""
    studio = studio_of(request)
    job = studio.jobs.get(job_id, owner_of(request))
    if job.state not in FINISHED:
        studio.jobs.watch(job.id, WATCH_SECONDS)
    found = studio.jobs.preview(job.id)
    if found is None:
        raise NotFound("preview", given="none yet", expected="a job that runs", cure="Ask again after a step.")
    return Response(found[1], media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def follow(
    job_id: str,
    request: Request,
    previews: Annotated[bool, Query()] = False,
    last_event_id: LastEvent = None,
) -> StreamingResponse:
    """Server-sent events until the job ends: what happened, and `progress` with the state as JSON.

    With `previews` also `preview`: the picture under way as a JPEG in base64. Drawing it takes the worker's time.
    """
    studio = studio_of(request)
    job = await asyncio.to_thread(studio.jobs.get, job_id, owner_of(request))
    check_streams(studio, job.owner)
    return CountedStream(studio.streams, job.owner, _events(studio, job.id, int(last_event_id or 0), previews))


async def _events(studio: Studio, job_id: str, after: int, previews: bool) -> AsyncIterator[str]:
    told, shown, quiet = "", -1, 0.0
    looks = changes(studio.notifier, job_id, lambda: _look(studio, job_id, after), every=0.5)
    async for news, state, done in looks:
        for seq, kind, detail in news:
            after = seq
            yield _sse(kind, {"job": job_id, "detail": detail}, seq)
        if state != told:
            told, quiet = state, 0.0
            yield f"event: progress\ndata: {state}\n\n"
        if done:
            return
        preview = await asyncio.to_thread(_preview, studio, job_id) if previews else None
        if preview is not None and preview[0] != shown:
            shown = preview[0]
            yield _sse("preview", {"job": job_id, "jpeg": base64.b64encode(preview[1]).decode("ascii")})
        quiet += 0.5
        if quiet >= KEEP_ALIVE_SECONDS:
            quiet = 0.0
            yield ": still here\n\n"


def _look(studio: Studio, job_id: str, after: int) -> tuple[list[tuple[int, str, str]], str, bool]:
    job = studio.jobs.get(job_id)
    news = [(event.seq, event.kind, event.detail) for event in studio.jobs.events(job_id, after)]
    view = seen(studio, job).model_dump(mode="json", exclude={"request", "eta_seconds"})
    return news, json.dumps(view), job.state in FINISHED


def _preview(studio: Studio, job_id: str) -> tuple[int, bytes] | None:
    """The newest one; who asks gets more of them."""
    studio.jobs.watch(job_id, WATCH_SECONDS)
    with contextlib.suppress(StoreAway):
        return studio.jobs.preview(job_id)
    return None


def _sse(kind: str, data: dict[str, str], seq: int | None = None) -> str:
    """One event; without a number it is not sent again to a client that comes back."""
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(data)}\n\n"
