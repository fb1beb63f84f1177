"""`/v1/queue`: one's own open jobs in order, others' as counts; pause, resume, cancel what waits."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from gouache.config import Config
from gouache.serve.api.views import JobFacts
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.live.news import open_jobs, recent_jobs
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1/queue", tags=["jobs"])


class QueuedJob(JobFacts):
    """A job in the queue: as `JobView`, with the beginning of its prompt in place of the request."""

    position: int | None
    """Jobs that go before it, anybody's; null unless it waits."""
    eta_seconds: float | None
    """Until it is done, at the pace of the last jobs; null if that isn't known or the queue is paused."""
    prompt: str


class Queue(Config):
    """The queue as one user may know it."""

    mine_waiting: int
    mine_running: int
    others_waiting: int
    others_running: int
    paused: bool
    """Whether your waiting jobs are left alone."""
    jobs: tuple[QueuedJob, ...]
    """Your open ones in the order in which they run, at most 200 of those that wait."""
    ended: tuple[QueuedJob, ...]
    """Your last ones, the newest first."""


class Pause(Config):
    """What to do with your waiting jobs."""

    paused: bool


class Cancelled(Config):
    """How many jobs were cancelled."""

    cancelled: int


@router.get("")
def queue(request: Request, ended: Annotated[int, Query(ge=0, le=100)] = 20) -> Queue:
    """Your open jobs in the order in which they run, and your last ended ones; of others only how many."""
    return _queue(studio_of(request), owner_of(request), ended)


@router.patch("")
def pause(body: Pause, request: Request) -> Queue:
    """Pause your queue, or go on: what runs is finished, what waits keeps its place and is not begun.

    It holds for all your jobs, by whatever interface they come, until you say otherwise.
    """
    studio, owner = studio_of(request), owner_of(request)
    studio.pause(owner, body.paused)
    return _queue(studio, owner, 20)


@router.post("/cancel")
def cancel(request: Request) -> Cancelled:
    """Cancel every job of yours that waits; what runs goes on."""
    return Cancelled(cancelled=studio_of(request).cancel_waiting(owner_of(request)))


def _queue(studio: Studio, owner: str, ended: int) -> Queue:
    found = open_jobs(studio.database, studio.order, owner)
    load = found["queue"]
    etas = {place["id"]: place["eta_seconds"] for place in load.pop("order")}
    jobs = [view | {"eta_seconds": etas.get(view["id"], view["eta_seconds"])} for view in found["jobs"]]
    return Queue.model_validate({**load, "jobs": jobs, "ended": recent_jobs(studio.database, owner, ended)})
