"""`gouache replay`: paint a picture again and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.outcome import shown
from gouache.errors import GouacheError


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture painted by gouache.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where its model is now.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Paint there; else where it was painted.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the second picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Paint a picture again from its recipe and compare: exit code 0 same, 1 different, 2 can't.

    Example: gouache replay a-red-fire-engine-7.png
    """
    from gouache.pipeline.files import check_target, write_bytes
    from gouache.pipeline.replay import replay as run

    try:
        if output is not None:
            check_target(output)
        result = run(picture, model=model, device=device, show=lambda events: shown(events, label=picture.name))
    except GouacheError as error:
        # A missing model, too, means here that nothing could be compared.
        typer.echo(f"gouache: {error}", err=True)
        raise typer.Exit(2) from error
    if output is not None:
        write_bytes(output, result.painted.encode("png"))
    values = {
        "same": result.same, "first_different_step": result.first_step, "largest_difference": result.largest,
        "reasons": list(result.reasons),
    }  # fmt: skip
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
