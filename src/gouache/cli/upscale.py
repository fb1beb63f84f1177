"""`gouache upscale`: make a finished picture larger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.edit import read_input
from gouache.cli.paint import AsJson, Force


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
    from gouache.pipeline.metadata import OWN, PARAMETERS, encode_picture, kind_of, read_texts
    from gouache.pipeline.references import References

    name, attachments = read_input(picture)
    data = References(attachments).data(name)
    from gouache.pipeline.pixels import read_picture

    larger = enlarge_picture(read_picture(data, where=picture), factor, upscaler)
    texts = {key: text for key, text in read_texts(data).items() if key in (PARAMETERS, OWN)}
    stem = "picture" if picture == "-" else Path(picture).stem
    path = output or Path(f"{stem}-{factor:g}x.png")
    write_bytes(path, encode_picture(larger, kind_of(path), texts), force=force)
    values = {"path": str(path), "width": larger.width, "height": larger.height}
    typer.echo(json.dumps(values) if as_json else str(path))
