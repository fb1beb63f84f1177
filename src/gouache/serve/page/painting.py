"""The two tabs that hand in jobs, and the view of the job on its way that they share."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import gradio as gr
from PIL import Image

from gouache.diffusion.sampler_table import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import Conflict, GouacheError, NotFound
from gouache.pipeline.metadata import encode_picture
from gouache.pipeline.request import Request
from gouache.serve.job import FINISHED, Job
from gouache.serve.page.words import said
from gouache.serve.studio import Studio

AUTOMATIC = "-"
BAR = 24
Fields = dict[str, Any]


def owner_of(request: gr.Request) -> str:
    """Who looks at the page."""
    name = request.username
    if not name:
        raise gr.Error("not signed in")
    return str(name)


def request_of(fields: Fields) -> Request:
    """What the settings on the page ask for; 0, -1 and "-" leave the choice to the model."""
    values: Fields = {
        "prompt": fields["prompt"] or "",
        "negative_prompt": fields["negative"] or "",
        "model": _chosen(fields["model"]),
        "sampler": _chosen(fields["sampler"]),
        "schedule": _chosen(fields["schedule"]),
        "num_inference_steps": int(fields["steps"] or 0) or None,
        "guidance_scale": float(fields["guidance"] or 0) or None,
        "width": int(fields["width"] or 0) or None,
        "height": int(fields["height"] or 0) or None,
        "count": int(fields["count"] or 1),
        "seed": None if int(fields["seed"] or 0) < 0 else int(fields["seed"] or 0),
    }
    return Request.from_dict({key: value for key, value in values.items() if value is not None}, where="request")


def _chosen(value: str | None) -> str | None:
    return None if value in (None, "", AUTOMATIC) else value


def hand_in(studio: Studio, owner: str, request: Request) -> None:
    """Submit, or show the reason why not."""
    try:
        studio.submit(request, owner=owner, source="page")
    except GouacheError as error:
        raise gr.Error(str(error)) from error


def newest_job(studio: Studio, owner: str) -> Job | None:
    """The job that the page shows: the one that runs, else the newest."""
    running = studio.jobs.listing(owner=owner, states=["running"], limit=1)
    return next(iter(running or studio.jobs.listing(owner=owner, limit=1)), None)


def status(studio: Studio, request: gr.Request) -> tuple[str, Fields, list[str]]:
    """One look at the newest job: a line of text, a preview while it runs, and its pictures' files."""
    job = newest_job(studio, owner_of(request))
    if job is None:
        return said("nothing", request), gr.update(value=None, visible=False), []
    preview = None
    if job.state not in FINISHED:
        studio.jobs.watch(job.id, 5.0)
        found = studio.jobs.preview(job.id)
        preview = Image.open(io.BytesIO(found[1])) if found else None
    files = [str(studio.vault.path("pictures", picture.file)) for picture in studio.pictures.of_job(job.id)]
    return _line(studio, job, request), gr.update(value=preview, visible=preview is not None), files


def _line(studio: Studio, job: Job, request: gr.Request) -> str:
    if job.state == "queued":
        return said("waiting", request, studio.jobs.position(job))
    if job.state == "running":
        done, left = round(job.fraction * BAR), job.eta(time.time())
        verb = said("stopping" if job.cancel_requested else "painting", request)
        eta = "" if left is None else said("left", request, left)
        return f"{verb} `{'█' * done}{'░' * (BAR - done)}` {job.fraction:.0%}{eta}"
    if job.state == "failed":
        # Inside backquotes nothing is read as markup.
        return said("failed", request, (job.complaint() or {}).get("message", "").replace("`", "'"))
    if job.state == "cancelled":
        return said("cancelled", request)
    return said("done", request, (job.finished or 0) - (job.started or 0))


def cancel_newest(studio: Studio, owner: str) -> None:
    """Stop what the page shows."""
    job = newest_job(studio, owner)
    if job is not None:
        try:
            studio.cancel(job.id, owner)
        except (Conflict, NotFound):
            return  # It ended by itself a moment ago.


def last_seed(studio: Studio, owner: str) -> int:
    """Seed of the newest picture, -1 if there is none."""
    found = studio.pictures.search(owner=owner, limit=1)
    return found[0].seed if found else -1


def sampler_choices() -> list[tuple[str, str]]:
    """Label and name of each sampler."""
    return [(AUTOMATIC, AUTOMATIC)] + [(info.label, info.name) for info in SAMPLER_INFOS.values()]


def schedule_choices() -> list[tuple[str, str]]:
    """Label and name of each schedule."""
    infos = [info for info in SCHEDULE_INFOS.values() if info.name != "custom"]
    return [(AUTOMATIC, AUTOMATIC)] + [(info.label, info.name) for info in infos]


def edit_request(studio: Studio, fields: Fields, request: gr.Request) -> Request:
    """A request that starts from the picture on the canvas; what was brushed over is painted anew."""
    value = fields["canvas"]
    background = value.get("background") if isinstance(value, dict) else None
    if background is None:
        raise gr.Error(said("load_first", request))
    changes: Fields = {
        "init_image": studio.vault.attach(encode_picture(background.convert("RGBA"), "png")),
        "strength": float(fields["strength"]),
        "prompt": fields["prompt"] or "",
    }
    sides = {name: int(fields[name] or 0) for name in ("left", "right", "top", "bottom")}
    mask = _brushed(value.get("layers") or [], background.size)
    if any(sides.values()):
        changes["outpaint"] = sides
    elif mask is not None:
        changes["mask"] = {"image": studio.vault.attach(encode_picture(mask, "png"))}
    return Request.from_dict(changes, where="request")


def _brushed(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image | None:
    """White where any layer was brushed; None if nowhere."""
    mask = Image.new("L", size, 0)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size).point([0] + [255] * 255)
        mask.paste(255, (0, 0), alpha)
    return mask.convert("RGB") if mask.getextrema()[1] else None


def settings_of(recipe_json: str) -> Fields:
    """The fields on the page that a recipe fills."""
    request = json.loads(recipe_json)["request"]
    return {
        "prompt": request.get("prompt", ""), "negative": request.get("negative_prompt", ""),
        "sampler": request.get("sampler") or AUTOMATIC, "schedule": request.get("schedule") or AUTOMATIC,
        "steps": request.get("num_inference_steps") or 0, "guidance": request.get("guidance_scale") or 0,
        "width": request.get("width") or 0, "height": request.get("height") or 0, "seed": request.get("seed", -1),
    }  # fmt: skip
