"""The settings of a picture as a request: of one of the gallery exactly as it was asked, of another as far as it can be
followed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gouache.checkpoints.adapters.controlnet_library import find_control
from gouache.checkpoints.adapters.ip_adapter_library import find_ip_adapter
from gouache.checkpoints.vae_library import find_vae
from gouache.diffusion.samplers.names import resolve, resolve_schedule
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, NotFound, UnknownName
from gouache.pipeline.output.recipe import RECIPE_VERSION, Recipe, package_versions
from gouache.pipeline.request import Request, Upscale
from gouache.serve.queue.admission import UPSCALERS
from gouache.serve.store.edited import EDITED_NOTE
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio

NoteKind = Literal["edited", "older", "no_job", "partial", "versions", "model", "picture", "left_out", "read"]
OWN_UPSCALER = "model"
LISTED = ("model", "refiner", "vae")
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Note:
    """What the settings don't say, or say otherwise.

    Attributes:
        kind: what it is about, for programs.
        about: the field or the name, as it is written.
        text: the sentence.
    """

    kind: NoteKind
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Recalled:
    """Settings.

    Attributes:
        request: what to paint.
        notes: what of it could not be kept.
    """

    request: Request
    notes: tuple[Note, ...]


def recalled(studio: Studio, picture: Picture) -> Recalled:
    """The request that paints one picture of the gallery again, byte for byte where nothing is noted.

    It is the request as it was asked, for this one picture: its own seed, one picture, one frame, and the model named.
    What was left open stays open, and is the same again by the same model.
    """
    recipe = picture.parsed()
    version = json.loads(picture.recipe).get("recipe")
    asked, notes = _asked(studio, picture, version)
    request = at_asked_size(recipe.request, (picture.width, picture.height)) if asked is None else asked
    painted = recipe.request
    request = request.replace(
        {
            "count": 1,
            "prompt": painted.prompt,
            "seed": painted.seed,
            "subseed": painted.subseed,
            "model": painted.model or recipe.model.name or None,
            "refiner": painted.refiner,
            "interpolation": painted.interpolation,
        }
    )
    if picture.id.endswith("p"):
        notes.append(Note("partial", "", "it was stopped before its last step; painted again it becomes whole"))
    notes += _drifted(studio, recipe)
    notes += [_gone(name) for name in request.pictures() if not _is_kept(studio, picture.owner, name)]
    return Recalled(request, tuple(notes))


def _asked(studio: Studio, picture: Picture, version: object) -> tuple[Request | None, list[Note]]:
    """What the picture's job asked for; None where that is unknown or meant something else when it was asked."""
    if any(note.startswith(EDITED_NOTE) for note in picture.parsed().notes):
        text = "it was edited by hand; the settings are those of the picture that it was made of"
        return None, [Note("edited", "", text)]
    size = f"its size of {picture.width}x{picture.height} is the picture's"
    if version != RECIPE_VERSION:
        text = f"an older gouache painted it (recipe {version}); the settings are those of its recipe, and {size}"
        return None, [Note("older", str(version), text)]
    try:
        return studio.jobs.get(picture.job, picture.owner).parsed(), []
    except (NotFound, InvalidInput):
        text = f"its job is no longer known; the settings are those of its recipe, and {size}"
        return None, [Note("no_job", picture.job, text)]


def at_asked_size(resolved: Request, size: tuple[int, int] | None) -> Request:
    """A resolved request with the size of its picture in place of a smaller one that the model's upscaler enlarged.

    Args:
        resolved: of a recipe.
        size: width and height of the picture's file, in pixels; None where there is no file.
    """
    upscale = resolved.upscale
    if size is None and upscale is not None:
        size = (round((resolved.width or 0) * upscale.factor), round((resolved.height or 0) * upscale.factor))
    if size is None or upscale is None or upscale.upscaler != OWN_UPSCALER or not resolved.width or not resolved.height:
        return resolved
    if (
        resolved.init_image
        or resolved.tiled
        or resolved.hires
        or resolved.outpaint
        or not _fits(resolved, upscale, size)
    ):
        return resolved
    return resolved.replace({"width": size[0], "height": size[1], "upscale": None})


def _fits(resolved: Request, upscale: Upscale, size: tuple[int, int]) -> bool:
    sides = zip((resolved.width, resolved.height), size, strict=True)
    return all(abs((side or 0) * upscale.factor - given) <= max(8.0, 8 * upscale.factor) for side, given in sides)


def _drifted(studio: Studio, recipe: Recipe) -> list[Note]:
    """What is no longer as it was when the picture was painted."""
    notes = []
    asked = {"model": recipe.request.model, "refiner": recipe.request.refiner}
    for field, ref in (("model", recipe.model), ("refiner", recipe.refiner)):
        if ref is None:
            continue
        name = asked[field] or ref.name
        try:
            entry = studio.catalog.find(name)
        except ModelNotFound:
            notes.append(Note("model", name, f"the {field} {name!r} is not on this server"))
            continue
        if entry.sha256 and ref.sha256 and entry.sha256 != ref.sha256:
            notes.append(Note("model", name, f"the {field} {name!r} was another file then"))
    here = package_versions()
    changed = [
        f"{name} {recipe.versions[name]} then, {here[name]} now"
        for name in ("gouache", "torch")
        if name in recipe.versions and name in here and recipe.versions[name] != here[name]
    ]
    if changed:
        notes.append(Note("versions", "", f"pixels may differ a little: {'; '.join(changed)}"))
    return notes


def _is_kept(studio: Studio, owner: str, name: str) -> bool:
    try:
        studio.attachments.read(owner, name)
    except GouacheError:
        return False
    return True


def _gone(name: str) -> Note:
    return Note("picture", name, f"a picture that it starts from is not kept here: {name[:20]}")


def followed(studio: Studio, owner: str, request: Request, model_hash: str = "") -> Recalled:
    """Another picture's request with this server's names, and without what this server or user hasn't got.

    Args:
        studio: the server.
        owner: whose pictures it may name.
        request: as the picture says it.
        model_hash: the start of its model's sha256, where the picture says one.
    """
    notes: list[Note] = []
    changes = {**_sampling(request, notes), **_models(studio, request, model_hash, notes), **_enlarging(request, notes)}
    request = request.replace(changes)
    return Recalled(without_pictures(studio, owner, request, notes), tuple(notes))


def _sampling(request: Request, notes: list[Note]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    implied: str | None = None
    if request.sampler is not None:
        try:
            changes["sampler"], implied = resolve(request.sampler)
        except UnknownName:
            changes["sampler"] = None
            notes.append(_left_out("sampler", request.sampler))
    if request.schedule is not None:
        try:
            found = resolve_schedule(request.schedule)
            changes["schedule"] = None if found == "custom" and request.sigmas is None else found
        except UnknownName:
            changes["schedule"] = None
            notes.append(_left_out("schedule", request.schedule))
    elif implied is not None:
        changes["schedule"] = implied
    return changes


def _models(studio: Studio, request: Request, model_hash: str, notes: list[Note]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if request.model is not None:
        hashed = _or_none(lambda: studio.catalog.find(model_hash).name) if len(model_hash) == 10 else None
        changes["model"] = _or_none(lambda: studio.catalog.find(request.model).name) or hashed
    if request.refiner is not None:
        changes["refiner"] = _or_none(lambda: studio.catalog.find(request.refiner).name)
    vae = request.vae
    if vae is not None:
        changes["vae"] = vae if _or_none(lambda: find_vae(vae, paths=False)) else None
    notes += [_left_out(name, str(getattr(request, name))) for name in LISTED if changes.get(name, "") is None]
    return changes


def _enlarging(request: Request, notes: list[Note]) -> dict[str, Any]:
    """Upscalers by file are not offered here; the enlargement stays, by the usual one."""
    changes: dict[str, Any] = {}
    if request.hires is not None and request.hires.upscaler not in UPSCALERS:
        notes.append(_left_out("hires.upscaler", request.hires.upscaler))
        changes["hires"] = request.hires.model_copy(update={"upscaler": "latent"})
    if request.upscale is not None and request.upscale.upscaler not in (None, *UPSCALERS):
        notes.append(_left_out("upscale.upscaler", str(request.upscale.upscaler)))
        changes["upscale"] = request.upscale.model_copy(update={"upscaler": None})
    return changes


def _or_none(find: Callable[[], _Found]) -> _Found | None:
    try:
        return find()
    except GouacheError:
        return None


def _left_out(field: str, name: str) -> Note:
    return Note("left_out", field, f"{field} {name[:80]!r} is not on this server and was left out")


def without_pictures(studio: Studio, owner: str, request: Request, notes: list[Note]) -> Request:
    """A request without the pictures that this user hasn't got here, and without what needs them."""
    kept: Mapping[str | None, bool] = {name: _is_kept(studio, owner, name) for name in request.pictures()}
    notes += [_gone(str(name)) for name, there in kept.items() if not there]
    changes: dict[str, Any] = {}
    if request.init_image is not None and not kept[request.init_image]:
        changes |= dict.fromkeys(("init_image", "strength", "mask", "outpaint", "inversion", "image_guidance_scale"))
        if request.prior is not None and request.prior.keep is not None:
            changes["prior"] = request.prior.model_copy(update={"keep": None})
    elif request.mask is not None and not kept.get(request.mask.image, True):
        changes["mask"] = None
    if not kept.get(request.depth_image, True):
        changes["depth_image"] = None
    if request.interpolation is not None and not kept.get(request.interpolation.image, True):
        changes["interpolation"] = None
    controls = tuple(one for one in request.control if _has(find_control, one.model, notes) and kept[one.image])
    prompts = tuple(
        one
        for one in request.image_prompts
        if (one.adapter is None or _has(_ip_adapter, one.adapter, notes))
        and all(kept[name] for name in one.images)
        and kept.get(one.mask, True)
    )
    regions = tuple(one for one in request.regions if kept.get(one.mask, True))
    return request.replace({**changes, "control": controls, "image_prompts": prompts, "regions": regions})


def _ip_adapter(name: str) -> object:
    return find_ip_adapter(name, paths=False)


def _has(find: Callable[[str], object], name: str, notes: list[Note]) -> bool:
    there = _or_none(lambda: find(name)) is not None
    if not there:
        notes.append(_left_out("control", name))
    return there
