"""What A1111's clients read: pictures in base64, the `info` text, progress."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.output.a1111_text import format_infotext, infotext_of
from gouache.pipeline.output.metadata import encode_picture, read_texts
from gouache.pipeline.output.recipe import Recipe
from gouache.serve.api.a1111.fields import Generation, Img2Img
from gouache.serve.api.a1111.mapping import Order
from gouache.serve.queue.job import Job
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio


def generation_answer(studio: Studio, body: Generation, order: Order, job: Job) -> dict[str, Any]:
    """The reply to txt2img and img2img."""
    found = studio.pictures.of_job(job.id)
    recipes = [picture.parsed() for picture in found]
    send = body.send_images is not False
    echo = body.model_dump()
    if isinstance(body, Img2Img) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None}
    return {
        "images": [_encoded(studio, picture, order) for picture in found] if send else [],
        "parameters": echo,
        "info": json.dumps(_info(body, order, job, found, recipes), ensure_ascii=False),
    }


def _encoded(studio: Studio, picture: Picture, order: Order) -> str:
    data = studio.file_store.read("pictures", picture.file)
    if order.kind != "png":
        data = encode_picture(read_picture(data), order.kind, read_texts(data), quality=order.quality)
    return base64.b64encode(data).decode("ascii")


def _info(
    body: Generation, order: Order, job: Job, found: Sequence[Picture], recipes: Sequence[Recipe]
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
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
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
            "current_task": None,
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
        "current_task": job.label or job.id,
    }
