"""From fields on the page to requests, and back from recipes to fields."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from PIL import Image

from gouache.diffusion.samplers.names import SAMPLER_INFOS, SCHEDULE_INFOS, resolve, resolve_schedule
from gouache.errors import GouacheError, UnknownName
from gouache.pipeline.output.metadata import encode_picture
from gouache.pipeline.request import Request
from gouache.serve.page.words import said
from gouache.serve.store.wanted import Wanted
from gouache.serve.studio import Studio

AUTOMATIC = "-"
DRAFT = "page_draft"
ON_THE_PAGE = ("prompt", "negative_prompt", "style", "model", "sampler", "schedule", "seed", "width", "height", "count",
               "num_inference_steps", "guidance_scale")  # fmt: skip
"""Fields of a request that the page shows."""
NAMES = (
    "prompt",
    "negative",
    "style",
    "model",
    "sampler",
    "schedule",
    "steps",
    "guidance",
    "width",
    "height",
    "count",
    "seed",
)
"""The fields of the Paint tab, in order."""
SIDES = ("left", "right", "top", "bottom")
Fields = dict[str, Any]
Choices = list[tuple[Any, str]]


def owner_of(request: gr.Request) -> str:
    """Who looks at the page."""
    name = request.username
    if not name:
        raise gr.Error("not signed in")
    return str(name)


def request_of(fields: Mapping[str, Any]) -> Request:
    """What the settings on the page ask for; 0, -1 and "-" leave the choice to the model.

    Raises:
        ConfigError: a value out of range.
    """
    values: Fields = {
        "prompt": fields["prompt"] or "",
        "negative_prompt": fields["negative"] or None,
        "style": _chosen(fields["style"]),
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


def settings_of(recipe_json: str) -> Fields:
    """The fields on the page that a recipe fills; the model stays as it is chosen."""
    request = json.loads(recipe_json)["request"]
    sampler, schedule = _offered(request.get("sampler"), request.get("schedule"))
    return {
        "prompt": request.get("prompt", ""),
        "negative": request.get("negative_prompt") or "",
        "style": request.get("style") or AUTOMATIC,
        "sampler": sampler or AUTOMATIC,
        "schedule": schedule or AUTOMATIC,
        "steps": request.get("num_inference_steps") or 0,
        "guidance": request.get("guidance_scale") or 0,
        "width": request.get("width") or 0,
        "height": request.get("height") or 0,
        "count": 1,
        "seed": request.get("seed", -1),
    }


def _offered(sampler: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """Our names for another tool's, as the page lists them; None for one that isn't offered."""
    named = implied = found = None
    with contextlib.suppress(UnknownName):
        named, implied = resolve(sampler) if sampler else (None, None)
    with contextlib.suppress(UnknownName):
        found = resolve_schedule(schedule) if schedule else None
    return named, found or implied


def names_not_offered(request: Request) -> list[str]:
    """A sentence for each name of a sampler or schedule that the page has no choice for."""
    names = {"sampler": request.sampler, "schedule": request.schedule}
    known = dict(zip(names, _offered(request.sampler, request.schedule), strict=True))
    missing = [f"{field} {name!r} isn't offered" for field, name in names.items() if name and not known[field]]
    plain = Request()
    given = [name for name in Request.model_fields if name not in ON_THE_PAGE]
    others = [name for name in given if getattr(request, name) != getattr(plain, name)]
    return [*missing, *([f"no field here for {', '.join(others)}"] if others else [])]


def filled(values: Mapping[str, Any]) -> list[Any]:
    """The values in the fields' order; fields without one keep theirs."""
    return [values.get(name, gr.skip()) for name in NAMES]


def keep_draft(studio: Studio, owner: str, values: Mapping[str, Any]) -> None:
    """Store what stands in the fields, so that a reload or a second tab finds it."""
    studio.set_options(owner, {DRAFT: json.dumps({name: values[name] for name in NAMES})})


def draft(studio: Studio, owner: str) -> Fields:
    """What stood in the fields last."""
    stored = json.loads(studio.options(owner).get(DRAFT, "{}"))
    return {name: value for name, value in stored.items() if name in NAMES}


def hand_in(studio: Studio, owner: str, request: Request) -> None:
    """Submit; a refusal is shown as it is."""
    try:
        studio.submit(request, owner=owner, source="page")
    except GouacheError as error:
        raise gr.Error(studio.told(error)) from error


def last_seed(studio: Studio, owner: str) -> int:
    """Seed of the newest picture, -1 if there is none."""
    found = studio.pictures.find(Wanted(owner=owner), 1)
    return found[0].seed if found else -1


def model_choices(studio: Studio, own: Any) -> Choices:
    """Every model, the default one first."""
    return [(own, AUTOMATIC), *((entry.name, entry.name) for entry in studio.catalog.models())]


def sampler_choices(own: Any) -> Choices:
    """Label and name of each sampler."""
    return [(own, AUTOMATIC), *((info.label, info.name) for info in SAMPLER_INFOS.values())]


def schedule_choices(own: Any) -> Choices:
    """Label and name of each schedule."""
    infos = [info for info in SCHEDULE_INFOS.values() if info.name != "custom"]
    return [(own, AUTOMATIC), *((info.label, info.name) for info in infos)]


def edit_request(studio: Studio, fields: Mapping[str, Any], request: gr.Request) -> Request:
    """A request that starts from the picture on the canvas; what was brushed over is painted anew.

    Raises:
        ConfigError: a value out of range.
    """
    value = fields["canvas"]
    background = value.get("background") if isinstance(value, dict) else None
    if background is None:
        raise gr.Error(said("load_first", request))
    changes: Fields = {
        "init_image": studio.attachments.keep(owner_of(request), encode_picture(background.convert("RGBA"), "png")),
        "strength": float(fields["strength"]),
        "prompt": fields["prompt"] or "",
    }
    sides = {name: int(fields[name] or 0) for name in SIDES}
    mask = _brushed(value.get("layers") or [], background.size)
    if any(sides.values()):
        changes["outpaint"] = sides
    elif mask is not None:
        changes["mask"] = {"image": studio.attachments.keep(owner_of(request), encode_picture(mask, "png"))}
    return Request.from_dict(changes, where="request")


def _brushed(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image | None:
    """White where any layer was brushed; None if nowhere."""
    mask = Image.new("L", size, 0)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").resize(size).point([0] + [255] * 255)
        mask.paste(255, (0, 0), alpha)
    return mask.convert("RGB") if mask.getextrema()[1] else None
