"""`gouache doctor`: what this machine and installation have."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, processor features, devices, free memory and model folders.

    Example: gouache doctor --json
    """
    from gouache.pipeline.checkup import checkup

    found = checkup()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for section, values in found.items():
        typer.echo(f"{section}:")
        for key, value in values.items():
            typer.echo(f"  {key}: {value}")
