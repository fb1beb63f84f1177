"""`gouache upscale`: make a finished picture larger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.edit import read_input
from gouache.cli.paint import AsJson, Force
from gouache.errors import GouacheError

if TYPE_CHECKING:
    from PIL import Image


def upscale(
    picture: Annotated[str, typer.Argument(help="The picture; - reads standard input.")],
    factor: Annotated[float, typer.Option("--factor", "-f", min=0.01, max=16.0, help="On each side.")] = 2.0,
    upscaler: Annotated[str, typer.Option("--upscaler", "-u", help="lanczos, or an ESRGAN weight file.")] = "lanczos",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; NAME-2x.png without it.")] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Make a picture larger, by Lanczos or by an ESRGAN file. The picture's recipe stays with it.

    Example: gouache upscale a-red-fire-engine-7.png --factor 4 --upscaler RealESRGAN_x4plus.pth
    """
    import json

    from gouache.pipeline.enlarge import enlarge_picture
    from gouache.pipeline.files import write_bytes
    from gouache.pipeline.metadata import encode_picture, kind_of
    from gouache.pipeline.pixels import read_picture
    from gouache.pipeline.references import References

    name, attachments = read_input(picture)
    data = References(attachments).data(name)
    larger = enlarge_picture(read_picture(data, where=picture), factor, upscaler)
    stem = "picture" if picture == "-" else Path(picture).stem
    path = output or Path(f"{stem}-{factor:g}x.png")
    write_bytes(path, encode_picture(larger, kind_of(path), _texts(data, larger, factor, upscaler)), force=force)
    values = {"path": str(path), "width": larger.width, "height": larger.height}
    typer.echo(json.dumps(values) if as_json else str(path))


def _texts(data: bytes, larger: Image.Image, factor: float, upscaler: str) -> dict[str, str]:
    """The recipe of the larger picture, if the small one has a recipe that was not enlarged yet."""
    from gouache.pipeline.foreign import read_recipe
    from gouache.pipeline.infotext import format_infotext
    from gouache.pipeline.metadata import OWN, PARAMETERS
    from gouache.pipeline.recipe import pixels_digest
    from gouache.pipeline.recipe_text import infotext_of
    from gouache.pipeline.request import Upscale

    try:
        recipe = read_recipe(data).recipe
    except GouacheError:
        recipe = None
    if recipe is None or recipe.request.upscale is not None:
        return {}
    request = recipe.request.replace({"upscale": Upscale(factor=factor, upscaler=upscaler)})
    own = recipe.model_copy(update={"request": request, "pixels": pixels_digest(larger)})
    return {PARAMETERS: format_infotext(infotext_of(own)), OWN: own.to_json()}
