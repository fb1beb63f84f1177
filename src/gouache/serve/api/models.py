"""`/v1/models`: which models there are and what each is, those that are fetched from the hub, and the one that requests
get that name none. Files and folders are added by `model_files`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.conditioning_files import ConditioningFile, bytes_at
from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
from gouache.checkpoints.adapters.library import AdapterFile, list_adapters
from gouache.checkpoints.vae_library import list_vaes
from gouache.config import Config
from gouache.models.family import UNKNOWN, family_label
from gouache.serve.api.views import ErrorView, Model, Plain
from gouache.serve.http.access import admin_of, owner_of, studio_of
from gouache.serve.models import facts as model_facts
from gouache.serve.models.adapter_words import words_of
from gouache.serve.models.catalog import MODEL, ModelEntry
from gouache.serve.models.downloads import DownloadState, Pull, checked_repo, offer_of
from gouache.serve.models.recommended import RECOMMENDED, Recommended
from gouache.serve.models.uploads import free_bytes

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelView(Model):
    """A model with what its headers tell."""

    name: str
    """A short one for people: the last part of the id without its suffix."""
    family: str
    """A key of families, as adapters name theirs; empty if the file can't be used."""
    family_label: str
    variant: str
    """What it is for: base (text to image), inpainting, instruct, depth, upscaler."""
    side: int
    """Edge of the pictures it was trained on, in pixels; 0 if that isn't known."""
    licence: str
    """As the file says it; empty if it doesn't."""
    description: str
    parameters: int
    """Of all networks."""
    styles: tuple[str, ...]
    prediction: str
    few_steps: str
    """The distillation that it is known as, in words; empty for none."""
    upscaler: bool
    """Whether it brings one of its own."""
    shipped: bool
    """Whether it came with the program."""
    default: bool
    """Whether your requests that name no model get it."""
    usable: bool
    problem: ErrorView | None
    """Why it can't be used."""
    thumbnail: str | None
    """Path of a small picture: of the newest that it painted for you."""


class Models(Config):
    """All models."""

    object: Literal["list"] = "list"
    data: tuple[ModelView, ...]


class ModelName(Config):
    """A model by name."""

    model: Annotated[Plain, Field(min_length=1)]


class PullIn(Config):
    """A model to fetch."""

    repo: Annotated[Plain, Field(min_length=3)]
    """OWNER/NAME on the hub."""
    revision: Plain | None = None
    """Branch, tag or commit."""
    variant: Plain | None = None
    """Which weights to prefer, for example fp16."""


class PullView(Config):
    """A model on its way."""

    repo: str
    state: DownloadState
    bytes: int
    """On the disk."""
    total: int
    """Known to be needed."""
    speed: int
    """Bytes a second, of the last seconds; 0 while that is unknown."""
    started: float
    """Seconds since 1970."""
    variant: str | None
    error: str
    problem: ErrorView | None
    """The same in its parts."""


class RecommendedView(Config):
    """A published model that a studio without any may fetch; what its repository says today, `about` tells."""

    repo: str
    variant: str
    """Which weights to ask for; empty for the plain ones."""
    title: str
    family: str
    family_label: str
    side: int
    licence: str
    licence_link: str
    bytes: int
    """About."""
    gated: bool
    mirror: bool
    """Its publisher withdrew it; others keep a copy."""
    commercial: bool | None
    """Whether its licence allows commercial use; null if under conditions."""
    here: bool
    """Whether it is on the disk."""


class OfferView(Config):
    """What a pull would fetch, and on which terms, as the hub says now."""

    repo: str
    licence: str
    """Its name; empty if neither the repository nor the list of recommended models says one."""
    licence_said: bool
    """Whether the repository says it; else it is from the list of recommended models."""
    licence_link: str
    page: str
    """The repository's own."""
    gated: bool
    """Whether a token of an account that accepted the licence is needed (the server's HF_TOKEN)."""
    commercial: bool | None
    files: dict[str, int]
    """Names and bytes."""
    bytes: int
    here: int
    """Bytes that are on the disk already."""
    free: int
    """Bytes that the disk has."""


class AdapterView(Config):
    """An adapter on the disk."""

    name: str
    """What a prompt calls it: `<lora:name:0.8>`, or the bare word of a textual inversion."""
    aliases: tuple[str, ...]
    kind: str
    family: str
    """Of the models it belongs to."""
    family_label: str
    label: str
    bytes: int
    usable: bool
    triggers: tuple[str, ...]
    """Words that call it forth: those that its maker names, else those that most of its training captions had."""
    triggers_named: bool
    """Whether its maker named them."""
    title: str
    description: str
    author: str
    licence: str
    base: str
    """The model that it was trained on, as its file says."""


class VaeView(Config):
    """An autoencoder on the disk."""

    name: str
    """What a request calls it."""
    bytes: int


class ControlView(Config):
    """A ControlNet or an IP-Adapter on the disk."""

    name: str
    """What a request calls it: `control` a ControlNet, `image_prompts` an IP-Adapter."""
    family: str
    """Of the models it belongs to."""
    family_label: str
    label: str
    bytes: int


@router.get("")
def models(
    request: Request, unusable: Annotated[bool, Query(description="Also files that can't be used.")] = False
) -> Models:
    """Every model that a request may name."""
    studio, owner = studio_of(request), owner_of(request)
    entries = studio.catalog.entries() if unusable else studio.catalog.models()
    default, painted = studio.default_model(owner), studio.pictures.newest_by_model(owner)
    return Models(data=tuple(_model_view(entry, default, painted) for entry in entries))


def _model_view(entry: ModelEntry, default: str, painted: Mapping[str, str]) -> ModelView:
    found = model_facts.facts_of(entry)
    newest = painted.get(entry.name)
    return ModelView(
        id=entry.name,
        created=int(entry.modified),
        title=entry.title,
        size=entry.size,
        sha256=entry.sha256,
        name=entry.stem,
        family=found.family_name,
        family_label=found.family,
        variant=found.variant,
        side=found.trained_side,
        licence=found.licence[:300],
        description=found.description[:1000],
        parameters=found.parameters,
        styles=found.styles,
        prediction=found.prediction,
        few_steps=found.few_steps,
        upscaler=found.upscaler,
        shipped=entry.path is None,
        default=entry.name == default,
        usable=entry.kind == MODEL and not found.problem,
        problem=_problem(found.problem),
        thumbnail=f"/v1/pictures/{newest}/thumbnail" if newest else None,
    )


def _problem(parts: Mapping[str, str]) -> ErrorView | None:
    return ErrorView(**parts) if parts else None


@router.get("/inspect")
def inspect(
    request: Request, model: Annotated[Plain, Query(description="Name, stem, title or hash.")]
) -> dict[str, Any]:
    """What a model's headers say; nothing of it is loaded."""
    owner_of(request)
    return model_facts.inspect(studio_of(request).catalog.find(model))


@router.get("/default")
def default(request: Request) -> ModelName:
    """The model of your requests that name none."""
    return ModelName(model=studio_of(request).default_model(owner_of(request)))


@router.put("/default")
def set_default(body: ModelName, request: Request) -> ModelName:
    """Choose it."""
    return ModelName(model=studio_of(request).set_default_model(owner_of(request), body.model))


@router.post("/refresh", status_code=204)
def refresh(request: Request) -> None:
    """Look again which models there are."""
    owner_of(request)
    studio_of(request).catalog.refresh()


@router.get("/adapters")
def adapters(request: Request) -> list[AdapterView]:
    """LoRA files and textual inversions that a prompt may name."""
    owner_of(request)
    return [_adapter_view(found) for found in list_adapters()]


def _adapter_view(found: AdapterFile) -> AdapterView:
    words = words_of(found.path)
    return AdapterView(
        name=found.name,
        aliases=found.aliases,
        kind=found.kind,
        family=found.family,
        family_label=_family_label(found.family),
        label=found.label,
        bytes=found.bytes,
        usable=not found.label.startswith("unusable"),
        triggers=words.triggers,
        triggers_named=words.named,
        title=words.title,
        description=words.description,
        author=words.author,
        licence=words.licence,
        base=words.base,
    )


def _family_label(name: str) -> str:
    """Empty where the file doesn't tell."""
    return "" if name == UNKNOWN.name else family_label(name)


@router.get("/vaes")
def vaes(request: Request) -> list[VaeView]:
    """Autoencoders that a request may name."""
    owner_of(request)
    return [VaeView(name=name, bytes=bytes_at(path)) for name, path in list_vaes().items()]


def _control_view(file: ConditioningFile) -> ControlView:
    label = _family_label(file.family)
    return ControlView(name=file.name, family=file.family, family_label=label, label=file.label, bytes=file.bytes)


@router.get("/controls")
def controls(request: Request) -> list[ControlView]:
    """ControlNets that a request may name."""
    owner_of(request)
    return [_control_view(found) for found in usable_controls()]


@router.get("/ip-adapters")
def ip_adapters(request: Request) -> list[ControlView]:
    """IP-Adapters that an image prompt may name."""
    owner_of(request)
    return [_control_view(found) for found in list_ip_adapters()]


@router.get("/recommended")
def recommended(request: Request) -> list[RecommendedView]:
    """Published weights for a studio that has none."""
    owner_of(request)
    here = {entry.name for entry in studio_of(request).catalog.models()}
    return [_recommended_view(one, one.repo in here) for one in RECOMMENDED]


def _recommended_view(one: Recommended, here: bool) -> RecommendedView:
    return RecommendedView(
        repo=one.repo,
        variant=one.variant,
        title=one.title,
        family=one.family,
        family_label=family_label(one.family),
        side=one.side,
        licence=one.licence,
        licence_link=one.licence_link,
        bytes=one.bytes,
        gated=one.gated,
        mirror=one.mirror,
        commercial=one.commercial,
        here=here,
    )


@router.get("/pulls/about")
def about(
    request: Request,
    repo: Annotated[Plain, Query(description="OWNER/NAME on the hub.")],
    variant: Annotated[Plain | None, Query(description="Which weights to prefer.")] = None,
    revision: Annotated[Plain | None, Query(description="Branch, tag or commit.")] = None,
) -> OfferView:
    """What a pull would fetch, under which licence; the hub is asked, and nothing is fetched. For administrators."""
    admin_of(request)
    repo = checked_repo(repo, revision=revision, variant=variant or None)
    offer = offer_of(repo, revision=revision, variant=variant or None)
    known = next((one for one in RECOMMENDED if one.repo == repo), None)
    return OfferView(
        repo=offer.repo,
        licence=offer.licence or (known.licence if known else ""),
        licence_said=bool(offer.licence),
        licence_link=offer.licence_link or (known.licence_link if known else ""),
        page=offer.page,
        gated=offer.gated,
        commercial=known.commercial if known else None,
        files=dict(offer.files),
        bytes=offer.bytes,
        here=offer.here,
        free=free_bytes(hub.hub_cache()),
    )


@router.get("/pulls")
def pulls(request: Request) -> list[PullView]:
    """What is and was fetched since the server started, the newest first. For administrators."""
    admin_of(request)
    return [pull_view(pull) for pull in studio_of(request).pulls.listing()]


@router.post("/pulls", status_code=202)
def pull(body: PullIn, request: Request) -> PullView:
    """Fetch a model from the Hugging Face hub: weights, configs and vocabulary, never code. For administrators."""
    admin_of(request)
    return pull_view(studio_of(request).pulls.start(body.repo, revision=body.revision, variant=body.variant))


@router.delete("/pulls", status_code=204)
def cancel(request: Request) -> None:
    """Stop what is on its way. For administrators."""
    admin_of(request)
    studio_of(request).pulls.cancel()


def pull_view(pull: Pull) -> PullView:
    """A download for the native interface."""
    return PullView(
        repo=pull.repo,
        state=pull.state,
        bytes=pull.here,
        total=pull.total,
        speed=round(pull.speed),
        started=pull.started,
        variant=pull.variant,
        error=pull.error,
        problem=_problem(pull.problem),
    )
