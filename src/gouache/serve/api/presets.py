"""`/v1/presets`: styles and parts of requests that a user keeps under a name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, Field

from gouache.config import Config
from gouache.serve.api.views import PresetIn, plain_text
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.store.presets import Preset

router = APIRouter(prefix="/v1/presets", tags=["presets"])
Name = Annotated[str, Path(min_length=1, max_length=100), AfterValidator(plain_text)]
PresetText = Annotated[str, Field(max_length=10_000), AfterValidator(plain_text)]


class PresetBody(Config):
    """What is kept."""

    prompt: PresetText = ""
    """Laid around a prompt; `{prompt}` in it stands for that, else it follows behind a comma."""
    negative_prompt: PresetText = ""
    """The same for the negative prompt."""
    request: dict[str, Any] | None = None
    """Fields of a request, as many as are wanted; null for a style, which is texts alone."""


class PresetView(PresetBody):
    """A preset."""

    name: str


def _view(preset: Preset) -> PresetView:
    request = None if preset.request is None else dict(preset.request)
    return PresetView(name=preset.name, prompt=preset.prompt, negative_prompt=preset.negative_prompt, request=request)


@router.get("")
def presets(request: Request) -> list[PresetView]:
    """Your presets, by name; those without a request are styles."""
    return [_view(preset) for preset in studio_of(request).presets.all(owner_of(request))]


@router.put("")
def set_style(body: PresetIn, request: Request) -> PresetIn:
    """Store a style."""
    preset = Preset(body.name, body.prompt, body.negative_prompt)
    studio_of(request).presets.put(owner_of(request), preset)
    return body


@router.put("/{name:path}")
def set_preset(name: Name, body: PresetBody, request: Request) -> PresetView:
    """Store a preset; it replaces one of the same name."""
    preset = Preset(name, body.prompt, body.negative_prompt, body.request)
    return _view(studio_of(request).presets.put(owner_of(request), preset))


@router.delete("/{name:path}", status_code=204)
def delete_preset(name: Name, request: Request) -> None:
    """Forget a preset."""
    studio_of(request).presets.delete(owner_of(request), name)
