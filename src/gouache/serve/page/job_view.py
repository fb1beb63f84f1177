"""How the newest job stands, on the Paint and the Edit tab alike: all of it is read from the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from gouache.errors import Conflict, NotFound
from gouache.serve.page import parts
from gouache.serve.page.requests import owner_of
from gouache.serve.page.words import said
from gouache.serve.queue.job import FINISHED, Job
from gouache.serve.studio import Studio

WATCH_SECONDS = 5.0
BUSY_SECONDS, QUIET_SECONDS = 1.0, 5.0


@dataclass(frozen=True, slots=True)
class View:
    """A part of the page that shows the newest job.

    Attributes:
        line: the status.
        stage: previews and pictures.
        nothing: key of the words for a studio without a job.
    """

    line: gr.HTML
    stage: gr.HTML
    nothing: str


def newest_job(studio: Studio, owner: str) -> Job | None:
    """The job that the page shows: the one that runs, else the newest."""
    running = studio.jobs.listing(owner=owner, states=["running"], limit=1)
    return next(iter(running or studio.jobs.listing(owner=owner, limit=1)), None)


def cancel_newest(studio: Studio, owner: str) -> None:
    """Stop what the page shows."""
    job = newest_job(studio, owner)
    if job is not None:
        try:
            studio.cancel(job.id, owner)
        except (Conflict, NotFound):
            return  # It ended by itself a moment ago.


def status(studio: Studio, request: gr.Request, nothing: str) -> tuple[str, str]:
    """One look: the line, and the pictures below it.

    Args:
        nothing: key of the words for a studio without a job, with `_hint`.
    """
    owner = owner_of(request)
    job = newest_job(studio, owner)
    if job is None:
        return "", parts.empty(said(nothing, request), said(f"{nothing}_hint", request))
    pictures = studio.pictures.of_job(job.id)
    stage = parts.shots(pictures) if pictures else ""
    if job.state not in FINISHED:
        studio.jobs.watch(job.id, WATCH_SECONDS)
        found = studio.jobs.preview(job.id)
        if found is not None and job.state == "running":
            stage = parts.unfinished(found[1], said("preview", request)) + stage
    return _line(studio, job, request), stage


def _line(studio: Studio, job: Job, request: gr.Request) -> str:
    if job.state == "queued":
        before = studio.jobs.position(job)
        place = said("before", request, before) if before else said("next", request)
        return parts.progress(said("waiting", request), [place], None)
    if job.state == "running":
        return _running(studio, job, request)
    if job.state == "failed":
        return parts.trouble(said("failed", request), _reason(studio, job))
    if job.state == "cancelled":
        return parts.notice(said("cancelled", request))
    took = said("took", request, (job.finished or 0) - (job.started or 0))
    seed = said("seed_is", request, job.parsed().seed)
    return parts.notice(said("done", request), took, seed)


def _reason(studio: Studio, job: Job) -> str:
    return studio.settings.hide_places((job.error_parts() or {}).get("message", ""))


def _running(studio: Studio, job: Job, request: gr.Request) -> str:
    left = job.eta(time.time())
    waiting = len(studio.jobs.listing(owner=job.owner, states=["queued"], limit=99))
    details = [
        said("picture_of", request, min(job.picture + 1, job.pictures), job.pictures) if job.pictures > 1 else "",
        said("step_of", request, job.step, job.steps) if job.steps else "",
        "" if left is None else said("left", request, parts.time_of(left, request)),
        said("more_wait", request, waiting) if waiting else "",
    ]
    verb = "stopping" if job.cancel_requested else "painting" if job.steps else "loading"
    return parts.progress(said(verb, request), details, job.fraction if job.steps else None)


def job_view(name: str, nothing: str) -> View:
    """Build the view; `follow` fills it."""
    return View(gr.HTML(elem_id=f"{name}-status"), gr.HTML(elem_id=f"{name}-stage"), nothing)


def pace(studio: Studio, owner: str) -> float:
    """Seconds until the page looks again: often while a job is open, seldom while nothing happens."""
    job = newest_job(studio, owner)
    return QUIET_SECONDS if job is None or job.state in FINISHED else BUSY_SECONDS


def follow(studio: Studio, page: gr.Blocks, timer: gr.Timer, views: Sequence[View]) -> None:
    """Fill the views whenever the timer ticks, so that a reload or a second tab shows the same."""
    seen = gr.State([])

    def look(before: list[object], request: gr.Request) -> list[object]:
        texts = [text for view in views for text in status(studio, request, view.nothing)]
        wait = pace(studio, owner_of(request))
        now: list[object] = [*texts, wait]
        if now == before:
            return [gr.skip()] * (len(now) + 1)
        old = before or [None] * len(now)
        shown = [gr.skip() if text == other else text for text, other in zip(texts, old, strict=False)]
        return [*shown, gr.skip() if wait == old[-1] else gr.Timer(wait), now]

    shown = [part for view in views for part in (view.line, view.stage)]
    gr.on([page.load, timer.tick], look, seen, [*shown, timer, seen], **parts.QUIET)
