"""`gouache models`: the models on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gouache.checkpoints.hub import OnDisk


def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the models on the disk: those in the models folder and those in the hub's cache.

    The models folder is GOUACHE_MODELS, else models in GOUACHE_DATA, else in the platform's folder for data.

    Example: gouache models --json
    """
    from gouache.checkpoints.hub import model_folders, on_disk

    listing = [_describe(model) for model in on_disk()]
    if as_json:
        typer.echo(json.dumps({"folders": [str(folder) for folder in model_folders()], "models": listing}))
        return
    for model in listing:
        typer.echo(f"{model['name']:<44} {_size(int(str(model['bytes']))):>9}  {model['is']}")
    if not listing:
        folders = " and ".join(str(folder) for folder in model_folders())
        typer.echo(f"No models yet in {folders}. Fetch one: gouache pull OWNER/NAME", err=True)


def _describe(model: OnDisk) -> dict[str, object]:
    """What a model is, or why it can't be used: one bad file must not hide the others."""
    from gouache.checkpoints.identify import identify
    from gouache.errors import GouacheError

    try:
        identity = identify(model.path)
        what = f"{identity.family} {identity.kind}" + ("" if identity.variant == "base" else f", {identity.variant}")
    except GouacheError as error:
        what = f"unusable: {error.given}"
    return {"name": model.name, "path": str(model.path), "bytes": model.bytes, "is": what}


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
