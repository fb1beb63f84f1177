"""`gouache show`: the recipe inside a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def show(
    picture: Annotated[
        Path,
        typer.Argument(help="By gouache, A1111, sd.cpp, InvokeAI, ComfyUI, NovelAI; - is stdin."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the recipe inside a picture.

    Example: gouache show a-red-fire-engine-7.png
    """
    from gouache.pipeline.foreign import read_recipe

    found = read_recipe(sys.stdin.buffer.read() if str(picture) == "-" else picture)
    request = found.request.model_dump(mode="json")
    if as_json:
        whole = None if found.recipe is None else found.recipe.model_dump(mode="json")
        values = {"tool": found.tool, "request": request, "recipe": whole, "texts": dict(found.texts)}
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    typer.echo(f"painted by: {found.tool}")
    plain = type(found.request)().model_dump(mode="json")
    for name, value in request.items():
        if value != plain[name]:
            typer.echo(f"{name}: {value}")
    if found.recipe is not None:
        recipe = found.recipe
        typer.echo(f"model: {recipe.model.name} ({recipe.model.family}), sha256 {recipe.model.sha256 or 'unknown'}")
        for adapter in recipe.adapters:
            typer.echo(f"adapter: {adapter.name} ({adapter.kind}), sha256 {adapter.sha256}")
        machine = recipe.machine
        typer.echo(f"machine: {machine.device}, {machine.dtype}, {machine.threads} threads, {machine.processor}")
        for note in recipe.notes:
            typer.echo(f"note: {note}")
