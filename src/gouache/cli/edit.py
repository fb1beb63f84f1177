"""`gouache edit` changes a picture, all of it, a part, or beyond its edges; `gouache vary` paints more like it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.options import option_specs, request_values, with_options
from gouache.cli.output import OutputWriter
from gouache.cli.paint import (
    Device,
    Dtype,
    EngineOption,
    Force,
    JsonOption,
    Like,
    Loading,
    Open,
    OutputOption,
    Quality,
    Size,
    build_request,
    paint_request,
)
from gouache.errors import InvalidInput, RecipeError
from gouache.files import existing
from gouache.pipeline.engine.names import TORCH
from gouache.pipeline.request import Request

SPECS = option_specs(without=("init_image", "interpolation"))
HELP = """Change a picture: all of it, the part under a mask, or beyond its edges.

Examples:

gouache edit photo.png "an oil painting" --strength 0.6

gouache edit photo.png "a red hat" --mask hat.png

gouache edit photo.png "a wide meadow" --outpaint-aspect 16:9

gouache edit photo.png "a dog" --inversion "a cat"
"""


def _edit(
    picture: Annotated[str, typer.Argument(help="The picture; - reads standard input.")],
    prompt: Annotated[str | None, typer.Argument(help="Prompt.")] = None,
    *,
    output: OutputOption = None,
    like: Like = None,
    size: Size = None,
    as_json: JsonOption = False,
    force: Force = False,
    quality: Quality = 95,
    device: Device = None,
    dtype: Dtype = None,
    engine: EngineOption = TORCH,
    open_: Open = False,
    **options: object,
) -> None:
    values = request_values(SPECS, options)
    if values.get("outpaint") == {}:
        raise InvalidInput(
            "--outpaint", given="no direction", expected="--outpaint-left 64, --outpaint-aspect 16:9 ..."
        )
    name, attachments = read_input(picture)
    request = build_request(prompt, size, {**values, "init_image": name}, like)
    outcome = OutputWriter(output, force=force, as_json=as_json, quality=quality)
    paint_request(request, outcome, Loading(device, dtype, engine=engine), show=open_, attachments=attachments)


def read_input(picture: str) -> tuple[str, dict[str, bytes]]:
    """A picture's name for the request, and its bytes if they came from standard input."""
    if picture != "-":
        place = existing(picture)
        if place is None or not place.is_file():
            from gouache.errors import PictureError

            given = "no such file" if place is None else "a folder"
            raise PictureError(picture, given=given, expected="a picture", cure="Check the path.")
        return picture, {}
    from hashlib import sha256

    data = sys.stdin.buffer.read()
    if not data:
        raise InvalidInput("standard input", given="nothing", expected="a picture's bytes")
    digest = sha256(data).hexdigest()
    return f"sha256:{digest}", {digest: data}


edit = with_options(_edit, SPECS, "edit", HELP)


DISTANCE = 0.25


def vary(
    picture: Annotated[str, typer.Argument(help="A picture; with a recipe its noise is varied, else its pixels.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Prompt. Default: the recipe's.")] = None,
    strength: Annotated[float, typer.Option("--strength", min=0.0, max=1.0, help="How far to go.")] = DISTANCE,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of variations.")] = 4,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the first variation. Default: random.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model. Default: the recipe's.")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Vary the pixels even if the image has a recipe.")] = False,
    output: OutputOption = None,
    as_json: JsonOption = False,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    engine: EngineOption = TORCH,
) -> None:
    """Generate variations of an image: from its recipe with slightly different noise, or from its pixels.

    Example: gouache vary a-red-fire-engine-7.png --count 4 --strength 0.2
    """
    name, attachments = read_input(picture)
    base = None if pixels else recipe_request(attachments.get(name.removeprefix("sha256:")) or Path(name))
    if base is not None and base.init_image is None:
        drafted = None if base.prior is None else {**base.prior.model_dump(), "variation": None}
        request = base.replace({"subseed": seed, "subseed_strength": strength, "count": count, "prior": drafted})
    else:
        request = (base or Request()).replace({"init_image": name, "strength": strength, "seed": seed, "count": count})
    if prompt is not None:
        request = request.replace({"prompt": prompt})
    if model is not None:
        request = request.replace({"model": model})
    outcome = OutputWriter(output, force=force, as_json=as_json)
    paint_request(request, outcome, Loading(device, dtype, engine=engine), attachments=attachments)


def recipe_request(source: Path | bytes) -> Request | None:
    """The request inside a picture, or None if it has no recipe, or one without a prompt that can be followed."""
    from gouache.pipeline.output.foreign import read_recipe

    try:
        found = read_recipe(source)
    except RecipeError:
        return None
    for note in found.notes if found.recipe is None else ():
        typer.echo(f"gouache: {note}", err=True)
    return found.request if found.prompt_known else None
