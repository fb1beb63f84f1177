"""`gouache vary`: more like this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.edit import read_input
from gouache.cli.outcome import Outcome
from gouache.cli.paint import AsJson, Device, Dtype, Force, Output, paint_request
from gouache.errors import RecipeError
from gouache.pipeline.request import Request

DISTANCE = 0.25


def vary(
    picture: Annotated[str, typer.Argument(help="A picture; with a recipe its noise is varied, else its pixels.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Instead of the recipe's words.")] = None,
    strength: Annotated[float, typer.Option("--strength", min=0.0, max=1.0, help="How far to go.")] = DISTANCE,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of variations.")] = 4,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the first variation.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model; the recipe's without it.")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Vary the pixels even if there is a recipe.")] = False,
    output: Output = None,
    as_json: AsJson = False,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Paint variations of a picture: its recipe with noise a little different, or from its pixels.

    Example: gouache vary a-red-fire-engine-7.png --count 4 --strength 0.2
    """
    name, attachments = read_input(picture)
    base = None if pixels else recipe_request(attachments.get(name.removeprefix("sha256:")) or Path(name))
    if base is not None and base.init_image is None:
        request = base.replace({"subseed": seed, "subseed_strength": strength, "count": count})
    else:
        request = (base or Request()).replace({"init_image": name, "strength": strength, "seed": seed, "count": count})
    if prompt is not None:
        request = request.replace({"prompt": prompt})
    if model is not None:
        request = request.replace({"model": model})
    outcome = Outcome(output, force=force, as_json=as_json)
    paint_request(request, outcome, device=device, dtype=dtype, attachments=attachments)


def recipe_request(source: Path | bytes) -> Request | None:
    """The request inside a picture, or None if it has no recipe."""
    from gouache.pipeline.foreign import read_recipe

    try:
        return read_recipe(source).request
    except RecipeError:
        return None
