"""`/v1/models/...`: what a model is, fetching one from the hub, and the one that requests get that name none."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from gouache.checkpoints.adapters.conditioning_files import ConditioningFile
from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
from gouache.checkpoints.adapters.library import list_adapters
from gouache.config import Config
from gouache.serve.api.views import Plain
from gouache.serve.http.access import admin_of, owner_of, studio_of
from gouache.serve.models import facts as model_facts
from gouache.serve.models.downloads import DownloadState, Pull

router = APIRouter(prefix="/v1/models", tags=["models"])


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
    error: str


class AdapterView(Config):
    """An adapter on the disk."""

    name: str
    """What a prompt calls it: `<lora:name:0.8>`, or the bare word of a textual inversion."""
    aliases: tuple[str, ...]
    kind: str
    family: str
    """Of the models it belongs to."""
    label: str
    bytes: int


class ControlView(Config):
    """A ControlNet or an IP-Adapter on the disk."""

    name: str
    """What a request calls it: `control` a ControlNet, `image_prompts` an IP-Adapter."""
    family: str
    """Of the models it belongs to."""
    label: str
    bytes: int


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
    return [
        AdapterView(
            name=found.name,
            aliases=found.aliases,
            kind=found.kind,
            family=found.family,
            label=found.label,
            bytes=found.bytes,
        )
        for found in list_adapters()
    ]


def _control_view(file: ConditioningFile) -> ControlView:
    return ControlView(name=file.name, family=file.family, label=file.label, bytes=file.bytes)


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
    return PullView(repo=pull.repo, state=pull.state, bytes=pull.here, total=pull.total, error=pull.error)
