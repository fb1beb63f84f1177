"""`/sdapi/v1`: painting, progress, settings."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from gouache.errors import Conflict, InvalidInput
from gouache.serve.api.a1111.answers import current_job, generation_answer, progress_answer
from gouache.serve.api.a1111.control import in_words_of_units
from gouache.serve.api.a1111.fields import Img2Img, TaskProgress, Txt2Img
from gouache.serve.api.a1111.mapping import NAMES, Order, order_of
from gouache.serve.api.a1111.options import options_of, set_options
from gouache.serve.api.views import raise_unless_painted
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.http.errors import in_words_of
from gouache.serve.queue.job import FINISHED, Ending, Job
from gouache.serve.studio import Studio

router = APIRouter(tags=["a1111"])
PREFIX = "/sdapi/v1"


@router.post(f"{PREFIX}/txt2img")
async def txt2img(body: Txt2Img, request: Request) -> dict[str, Any]:
    """Paint, and answer when it is done. The job goes on if the client leaves; its pictures are in the gallery."""
    return await _generate(body, request)


@router.post(f"{PREFIX}/img2img")
async def img2img(body: Img2Img, request: Request) -> dict[str, Any]:
    """Paint over a picture, or over the masked part of it."""
    return await _generate(body, request)


async def _generate(body: Txt2Img | Img2Img, request: Request) -> dict[str, Any]:
    studio, owner = studio_of(request), owner_of(request)
    order, job = await asyncio.to_thread(_hand_in, body, studio, owner)
    job = await studio.wait_for(job.id, studio.settings.wait)
    with in_words_of(NAMES), in_words_of_units():
        raise_unless_painted(job)
    return await asyncio.to_thread(generation_answer, studio, body, order, job)


def _hand_in(body: Txt2Img | Img2Img, studio: Studio, owner: str) -> tuple[Order, Job]:
    order = order_of(body, studio, owner)
    with in_words_of(NAMES):
        job, _ = studio.submit(order.request, owner=owner, source="a1111", label=body.force_task_id or "")
    return order, job


@router.get(f"{PREFIX}/progress")
def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the caller's own job is; nobody else's."""
    return progress_answer(studio_of(request), owner_of(request), with_image=not skip_current_image)


@router.post(f"{PREFIX}/interrupt")
def interrupt(request: Request) -> dict[str, Any]:
    """Stop the caller's own current job after its step, and keep the picture as it stands. Nobody else's is hit."""
    _stop_current(studio_of(request), owner_of(request), "keep")
    return {}


@router.post(f"{PREFIX}/skip")
def skip(request: Request) -> None:
    """Keep the picture that is being painted as it stands, and go on with the job's next one."""
    _stop_current(studio_of(request), owner_of(request), "skip")


def _stop_current(studio: Studio, owner: str, ending: Ending) -> None:
    job = current_job(studio, owner)
    if job is not None:
        try:
            studio.cancel(job.id, owner, ending=ending)
        except Conflict:
            return  # It ended by itself a moment ago.


@router.post("/internal/progress")
def task_progress(body: TaskProgress, request: Request) -> dict[str, Any]:
    """Progress of the task with this id (`force_task_id`)."""
    studio, owner = studio_of(request), owner_of(request)
    found = studio.jobs.listing(owner=owner, label=body.id_task, limit=1) if body.id_task else []
    job = found[0] if found else None
    preview = studio.jobs.preview(job.id) if job and body.live_preview else None
    data = f"data:image/jpeg;base64,{base64.b64encode(preview[1]).decode('ascii')}" if preview else None
    return {
        "active": job is not None and job.state == "running",
        "queued": job is not None and job.state == "queued",
        "completed": job is not None and job.state in FINISHED,
        "progress": job.fraction if job else None,
        "eta": None,
        "live_preview": data,
        "id_live_preview": preview[0] if preview else -1,
        "textinfo": "Waiting..." if job is None or job.state == "queued" else None,
    }


@router.get("/internal/pending-tasks")
def pending(request: Request) -> dict[str, Any]:
    """The caller's tasks that wait."""
    waiting = studio_of(request).jobs.listing(owner=owner_of(request), states=["queued"])
    return {"size": len(waiting), "tasks": [job.label or job.id for job in waiting]}


@router.get(f"{PREFIX}/options")
def get_options(request: Request) -> dict[str, Any]:
    """The caller's settings."""
    studio = studio_of(request)
    return options_of(studio, owner_of(request)).listing(studio)


@router.post(f"{PREFIX}/options")
def post_options(values: Annotated[dict[str, Any], Body()], request: Request) -> None:
    """Change settings; they are kept."""
    if len(values) > 100:
        raise InvalidInput("options", given=f"{len(values)} keys", expected="at most 100")
    set_options(studio_of(request), owner_of(request), values)
