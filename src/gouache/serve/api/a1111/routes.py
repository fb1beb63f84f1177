"""The routes of A1111's API that make images: txt2img, img2img and the extras, and what they answer."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from PIL import Image

from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.errors import Conflict, InvalidInput, PictureError
from gouache.pipeline.output.a1111_text import infotext_of
from gouache.pipeline.output.infotext import format_infotext
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import MAX_PIXELS
from gouache.serve.api.a1111.fields import (
    ExtraBatch,
    Extras,
    ExtraSingle,
    GenerationBody,
    Img2Img,
    TaskProgress,
    Txt2Img,
    decoded,
)
from gouache.serve.api.a1111.mapping import NAMES, MappedRequest, order_of
from gouache.serve.api.a1111.server_options import kept_of, options_of, set_options
from gouache.serve.api.a1111.tolerance import NOTHING, extra_notes
from gouache.serve.api.a1111.units import in_words_of_units
from gouache.serve.api.views import raise_unless_painted
from gouache.serve.decoding.operations import Answer
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.http.replies import in_words_of
from gouache.serve.models.facts import facts_of
from gouache.serve.queue.job import FINISHED, Ending, Job
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio


def generation_answer(studio: Studio, body: GenerationBody, order: MappedRequest, job: Job) -> dict[str, Any]:
    """The reply to txt2img and img2img."""
    found = studio.pictures.of_job(job.id)
    recipes = [picture.parsed() for picture in found]
    send = body.send_images is not False
    echo = body.model_dump(exclude=set(body.model_extra or {}))
    if isinstance(body, Img2Img) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None}
    return {
        "images": [_encoded(studio, picture, order) for picture in found] if send else [],
        "parameters": echo,
        "info": json.dumps(_info(body, order, job, found, recipes), ensure_ascii=False),
    }


def _encoded(studio: Studio, picture: Picture, order: MappedRequest) -> str:
    return base64.b64encode(studio.encoded(picture, order.kind, order.quality)).decode("ascii")


def _info(
    body: GenerationBody, order: MappedRequest, job: Job, found: Sequence[Picture], recipes: Sequence[Recipe]
) -> dict[str, Any]:
    first = recipes[0] if recipes else None
    request = first.request if first else order.request
    count = len(recipes)
    sampler = SAMPLER_INFOS.get(request.sampler or "")
    infotexts = [format_infotext(infotext_of(recipe)) for recipe in recipes]
    subseed = -1 if request.subseed is None else request.subseed
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt or "",
        "all_negative_prompts": [request.negative_prompt or ""] * count,
        "seed": request.seed,
        "all_seeds": [recipe.request.seed for recipe in recipes],
        "subseed": subseed,
        "all_subseeds": [-1 if r.request.subseed is None else r.request.subseed for r in recipes],
        "subseed_strength": request.subseed_strength,
        "width": found[0].width if found else request.width,
        "height": found[0].height if found else request.height,
        "sampler_name": sampler.label if sampler else request.sampler,
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model.name if first else None,
        "sd_model_hash": (first.model.sha256 or "")[:10] if first else None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": _strength(request),
        "extra_generation_params": {"Job": job.id},
        "notes": [*order.notes, *dict.fromkeys(note for recipe in recipes for note in recipe.notes)],
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": list(body.styles or []),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created)),
        "clip_skip": request.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"gouache {first.versions.get('gouache', '')}" if first else "gouache",
    }


def _strength(request: Any) -> float | None:
    if request.init_image is not None:
        return float(request.strength)
    return float(request.hires.strength) if request.hires is not None else None


def current_job(studio: Studio, owner: str) -> Job | None:
    """The user's job that runs, or else the oldest that waits."""
    running = studio.jobs.listing(owner=owner, states=["running"], limit=1)
    return running[0] if running else next(iter(studio.jobs.listing(owner=owner, states=["queued"])[::-1]), None)


def progress_answer(studio: Studio, owner: str, *, with_image: bool) -> dict[str, Any]:
    """The reply to GET /progress; all zero when nothing of the user's is on its way."""
    job = current_job(studio, owner)
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if job is None:
        return {
            "progress": 0.0,
            "eta_relative": 0.0,
            "state": state,
            "current_image": None,
            "textinfo": None,
        }
    state |= {
        "interrupted": job.cancel_requested,
        "stopping_generation": job.cancel_requested,
        "job": job.id,
        "job_count": job.pictures,
        "job_no": job.picture,
        "sampling_step": job.step,
        "sampling_steps": job.steps,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created)),
    }
    preview = None
    if with_image:
        studio.jobs.watch(job.id, 5.0)
        preview = studio.jobs.preview(job.id)
    return {
        "progress": min(1.0, 0.01 + 0.99 * job.fraction),
        "eta_relative": job.eta(time.time()) or 0.0,
        "state": state,
        "current_image": base64.b64encode(preview[1]).decode("ascii") if preview else None,
        "textinfo": "waiting" if job.state == "queued" else None,
    }


router = APIRouter(tags=["a1111"])
PREFIX = "/sdapi/v1"
OWN = "model"
"""The upscaler that the caller's model brings."""
NONE = "None"
FILTERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
NOTED = ("gfpgan_visibility", "codeformer_visibility")


@router.get(f"{PREFIX}/upscalers")
def upscalers(request: Request) -> list[dict[str, Any]]:
    """Upscalers of the extras calls; `model` is the one that the caller's model brings, if it does."""
    studio = studio_of(request)
    model = studio.default_model(owner_of(request))
    own = {OWN: model} if _has_upscaler(studio, model) else {}
    names: dict[str, str | None] = {NONE: None, **dict.fromkeys(FILTERS), **own}
    return [
        {"name": name, "model_name": of, "model_path": None, "model_url": None, "scale": 4}
        for name, of in names.items()
    ]


@router.post(f"{PREFIX}/extra-single-image")
async def extra_single(body: ExtraSingle, request: Request) -> dict[str, str]:
    """Enlarge one picture."""
    return {"html_info": _ignored(body), "image": await _enlarged(body, "image", body.image, request)}


@router.post(f"{PREFIX}/extra-batch-images")
async def extra_batch(body: ExtraBatch, request: Request) -> dict[str, Any]:
    """Enlarge several pictures."""
    made = [await _enlarged(body, "imageList", item.data, request) for item in body.imageList]
    return {"html_info": _ignored(body), "images": made}


def _ignored(body: Extras) -> str:
    """What is told of fields that were ignored, as HTML."""
    notes = [f"{name}: ignored, this server restores no faces" for name in NOTED if getattr(body, name)]
    return "".join(f"<p>{html.escape(note)}</p>" for note in [*notes, *extra_notes(body)])


def _has_upscaler(studio: Studio, model: str) -> bool:
    return facts_of(studio.catalog.find(model)).upscaler


async def _enlarged(body: Extras, field: str, text: str, request: Request) -> str:
    studio, owner = studio_of(request), owner_of(request)
    model = studio.default_model(owner)
    upscaler = await asyncio.to_thread(_checked, body, studio, model)
    return await _resized(body, field, decoded(field, text), upscaler, Caller(studio, owner, model))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for an enlarged picture, and whose upscaler is theirs."""

    studio: Studio
    owner: str
    model: str


async def _resized(body: Extras, field: str, data: bytes, upscaler: str, caller: Caller) -> str:
    """Nothing is decoded here: each step has its turn in a process of its own."""
    studio, owner, most = caller.studio, caller.owner, caller.studio.upload_pixels

    async def run(operation: str, source: bytes, wanted: dict[str, Any]) -> Answer:
        try:
            return await studio.decoding.beside(studio.decoding.run, owner, operation, source, wanted)
        except PictureError as error:
            raise InvalidInput(field, given=error.given, expected=error.expected, cure=error.cure) from error

    facts, _ = await run("check", data, {"where": field, "max_pixels": most})
    width, height = facts["width"], facts["height"]
    size = (width, height) if upscaler == NONE else _size(body, width, height)
    factor = max(size[0] / width, size[1] / height)
    texts: dict[str, str] | None = None
    if upscaler == OWN and factor > 1:
        facts, png = await run("encode", data, {"kind": "png", "quality": 95, "max_pixels": most})
        texts, most = facts["texts"], MAX_PIXELS
        data = await studio.upscale_tasks.make(png, {"model": caller.model, "factor": factor}, owner)
    wanted = {"width": size[0], "height": size[1], "texts": texts, "max_pixels": most}
    crops = body.resize_mode == 1 and bool(body.upscaling_crop)
    resample = int(FILTERS.get(upscaler, FILTERS["Lanczos"]))
    _, made = await run("resize", data, {**wanted, "crops": crops, "resample": resample})
    return base64.b64encode(made).decode("ascii")


def _checked(body: Extras, studio: Studio, model: str) -> str:
    if body.upscaler_2 not in (None, *NOTHING) and body.extras_upscaler_2_visibility:
        raise InvalidInput("upscaler_2", given=repr(body.upscaler_2), expected=NONE)
    asked = body.upscaler_1 or NONE
    names = [NONE, *FILTERS, *([OWN] if _has_upscaler(studio, model) else [])]
    upscaler = {name.casefold(): name for name in names}.get(asked.strip().casefold())
    if upscaler is None:
        raise InvalidInput("upscaler_1", given=repr(asked), expected=f"one of {', '.join(names)}")
    return upscaler


def _size(body: Extras, own_width: int, own_height: int) -> tuple[int, int]:
    """Width and height that are asked for."""
    factor = body.upscaling_resize or 2
    width, height = round(own_width * factor), round(own_height * factor)
    if body.resize_mode == 1:
        width, height = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
        if not body.upscaling_crop:
            scale = min(width / own_width, height / own_height)
            width, height = max(1, round(own_width * scale)), max(1, round(own_height * scale))
    if width * height > MAX_PIXELS or min(width, height) < 1:
        raise InvalidInput("upscaling_resize", given=f"{width}x{height} pixels", expected=f"1 to {MAX_PIXELS} pixels")
    return width, height


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
    order, job = await studio.decoding.beside(_hand_in, body, studio, owner)
    job = await studio.wait_for(job.id, studio.settings.wait)
    with in_words_of(NAMES), in_words_of_units():
        raise_unless_painted(job)
    return await studio.decoding.beside(generation_answer, studio, body, order, job)


def _hand_in(body: Txt2Img | Img2Img, studio: Studio, owner: str) -> tuple[MappedRequest, Job]:
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


@router.get("/queue/status")
def queue_status(request: Request) -> dict[str, Any]:
    """The caller's queue, as the page of A1111 tells it, by which clients see that it runs."""
    waiting = studio_of(request).jobs.listing(owner=owner_of(request), states=["queued"])
    times = {"avg_event_process_time": None, "avg_event_concurrent_process_time": None, "rank_eta": None}
    return {"msg": "estimation", "rank": None, "queue_size": len(waiting), "queue_eta": 0, **times}


@router.get(f"{PREFIX}/options")
def get_options(request: Request) -> dict[str, Any]:
    """The caller's settings."""
    studio = studio_of(request)
    owner = owner_of(request)
    return {**options_of(studio, owner).listing(studio), **kept_of(studio, owner)}


@router.post(f"{PREFIX}/options")
def post_options(values: Annotated[dict[str, Any], Body()], request: Request) -> None:
    """Change settings; they are kept."""
    if len(values) > 100:
        raise InvalidInput("options", given=f"{len(values)} keys", expected="at most 100")
    set_options(studio_of(request), owner_of(request), values)
