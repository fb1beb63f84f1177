"""`gouache upscale`: make a finished picture larger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.edit import read_input
from gouache.cli.paint import Force, JsonOption
from gouache.errors import GouacheError

if TYPE_CHECKING:
    from PIL import Image

    from gouache.pipeline.generate.upscaler_files import PictureUpscaler
    from gouache.pipeline.output.recipe import Recipe


def upscale(
    picture: Annotated[str, typer.Argument(help="The picture; - reads standard input.")],
    factor: Annotated[float, typer.Option("--scale", "--factor", "-f", min=0.01, max=16.0, help="On each side.")] = 2.0,
    upscaler: Annotated[
        str | None,
        typer.Option(
            "--upscaler",
            "-u",
            help="model (its own), lanczos, or an upscaler's file. Default: the model's if any, else lanczos.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model whose upscaler is used. Default: the shipped one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File. Default: NAME-2x.png.")] = None,
    as_json: JsonOption = False,
    force: Force = False,
) -> None:
    """Upscale any image: with the model's upscaler, with Lanczos, or with an upscaler's file.

    The image keeps its recipe.

    Example: gouache upscale a-red-fire-engine-7.png --scale 4
    """
    import json

    from gouache.files import check_target, write_bytes
    from gouache.pipeline.generate.enlarge import enlarge_picture
    from gouache.pipeline.inputs.images import References, read_picture
    from gouache.pipeline.output.metadata import encode_picture, kind_of

    name, attachments = read_input(picture)
    data = References(attachments).data(name)
    stem = "picture" if picture == "-" else Path(picture).stem
    path = output or Path(f"{stem}-{factor:g}x.png")
    check_target(path, force=force)
    recipe = _recipe(data)
    called, network = _upscaler(upscaler, model, recipe)
    larger = enlarge_picture(read_picture(data, where=picture), factor, network)
    write_bytes(path, encode_picture(larger, kind_of(path), _texts(recipe, larger, factor, called)), force=force)
    values = {"path": str(path), "width": larger.width, "height": larger.height, "upscaler": called}
    typer.echo(json.dumps(values) if as_json else str(path))


def _upscaler(wanted: str | None, model: str | None, recipe: Recipe | None) -> tuple[str, PictureUpscaler | None]:
    """What to call the upscaler in a recipe, and its network; None is Lanczos."""
    from gouache.checkpoints.identify import identify, known_sha256
    from gouache.pipeline.generate.enlarge import find_upscaler
    from gouache.pipeline.generate.upscaler_files import LANCZOS, OWN, load_part
    from gouache.pipeline.output.recipe import model_sha256
    from gouache.pipeline.pipeline import find_model, shipped_model

    if wanted not in (None, OWN):
        return wanted, find_upscaler(wanted)
    if wanted is None and model is None and shipped_model() is None:
        return LANCZOS, None
    path = find_model(model)
    identity = identify(path)
    if wanted is None and model is None and "upscaler" not in identity.parts:
        return LANCZOS, None
    # In a recipe "model" is the model that painted the picture; another one's upscaler goes by its path.
    painted = recipe is not None and recipe.model.sha256 == (known_sha256(identity) or model_sha256(path))
    return OWN if painted else str(path), load_part(path, identity)


def _recipe(data: bytes) -> Recipe | None:
    """The picture's own recipe, if it has one that was not enlarged yet."""
    from gouache.pipeline.output.foreign import read_recipe

    try:
        recipe = read_recipe(data).recipe
    except GouacheError:
        return None
    return None if recipe is None or recipe.request.upscale is not None else recipe


def _texts(recipe: Recipe | None, larger: Image.Image, factor: float, upscaler: str) -> dict[str, str]:
    """The recipe of the larger picture."""
    from gouache.pipeline.output.a1111_text import infotext_of
    from gouache.pipeline.output.infotext import format_infotext
    from gouache.pipeline.output.metadata import OWN, PARAMETERS
    from gouache.pipeline.output.recipe import pixels_digest
    from gouache.pipeline.request import Upscale

    if recipe is None:
        return {}
    request = recipe.request.replace({"upscale": Upscale(factor=factor, upscaler=upscaler)})
    own = recipe.model_copy(update={"request": request, "pixels": pixels_digest(larger)})
    return {PARAMETERS: format_infotext(infotext_of(own)), OWN: own.to_json()}
