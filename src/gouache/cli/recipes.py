"""`gouache show` prints the recipe inside a picture; `gouache replay` paints it again and compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.output import shown
from gouache.errors import GouacheError


def show(
    picture: Annotated[
        Path,
        typer.Argument(help="By gouache, A1111, Forge, ComfyUI, InvokeAI, Fooocus ... (docs/files.md); - is stdin."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the generation parameters stored in an image.

    Example: gouache show a-red-fire-engine-7.png
    """
    from gouache.pipeline.output.foreign import read_recipe

    found = read_recipe(sys.stdin.buffer.read() if str(picture) == "-" else picture)
    request = found.request.model_dump(mode="json")
    if as_json:
        whole = None if found.recipe is None else found.recipe.model_dump(mode="json")
        values = {
            "tool": found.tool,
            "request": request,
            "recipe": whole,
            "texts": dict(found.texts),
            "notes": list(found.notes),
            "prompt_known": found.prompt_known,
        }
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    typer.echo(f"painted by: {found.tool}")
    plain = type(found.request)().model_dump(mode="json")
    for name, value in request.items():
        if value != plain[name]:
            typer.echo(f"{name}: {value}")
    if not found.prompt_known:
        typer.echo("prompt: not known")
    for note in found.notes:
        typer.echo(f"note: {note}")
    if found.recipe is not None:
        recipe = found.recipe
        typer.echo(f"model: {recipe.model.name} ({recipe.model.family}), sha256 {recipe.model.sha256 or 'unknown'}")
        for adapter in recipe.adapters:
            typer.echo(f"adapter: {adapter.name} ({adapter.kind}), sha256 {adapter.sha256}")
        machine = recipe.machine
        typer.echo(f"machine: {machine.device}, {machine.dtype}, {machine.threads} threads, {machine.processor}")
        typer.echo(f"engine: {machine.engine}")
        for note in recipe.notes:
            typer.echo(f"note: {note}")


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture painted by gouache.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Path of its model. Default: the recipe's.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Device to run on. Default: the recipe's.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Engine to run it. Default: the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the regenerated image here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Paint a picture again from its recipe and compare: exit code 0 same, 1 different, 2 can't.

    Example: gouache replay a-red-fire-engine-7.png
    """
    from gouache.files import check_target, write_bytes
    from gouache.pipeline.replay import replay as run

    try:
        if output is not None:
            check_target(output)
        result = run(
            picture, model=model, device=device, engine=engine, show=lambda events: shown(events, label=picture.name)
        )
    except GouacheError as error:
        # A missing model, too, means here that nothing could be compared.
        typer.echo(f"gouache: {error}", err=True)
        raise typer.Exit(2) from error
    if output is not None:
        write_bytes(output, result.painted.encode("png"))
    values = {
        "same": result.same,
        "first_different_step": result.first_step,
        "largest_difference": result.largest,
        "reasons": list(result.reasons),
    }
    if as_json:
        typer.echo(json.dumps(values))
    else:
        typer.echo(_sentence(result.same, result.first_step, result.largest))
        for reason in result.reasons:
            typer.echo(f"  {reason}")
    raise typer.Exit(0 if result.same else 1)


def _sentence(same: bool, first_step: int | None, largest: int) -> str:
    if same:
        return "identical, bit for bit"
    place = (
        "no step differs, only what comes after" if first_step is None else f"first differs at step {first_step + 1}"
    )
    return f"different: {place}; largest difference of a pixel {largest} of 255"
