"""`gouache edit`: change a picture, all of it or a part, or grow it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.options import option_specs, request_values, with_options
from gouache.cli.outcome import Outcome
from gouache.cli.paint import (
    AsJson,
    Device,
    Dtype,
    Force,
    Like,
    Open,
    Output,
    Quality,
    Size,
    build_request,
    paint_request,
)
from gouache.errors import InvalidInput

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
    prompt: Annotated[str | None, typer.Argument(help="What it should show.")] = None,
    *,
    output: Output = None,
    like: Like = None,
    size: Size = None,
    as_json: AsJson = False,
    force: Force = False,
    quality: Quality = 95,
    device: Device = None,
    dtype: Dtype = None,
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
    outcome = Outcome(output, force=force, as_json=as_json, quality=quality)
    paint_request(request, outcome, device=device, dtype=dtype, show=open_, attachments=attachments)


def read_input(picture: str) -> tuple[str, dict[str, bytes]]:
    """A picture's name for the request, and its bytes if they came from standard input."""
    if picture != "-":
        if not Path(picture).expanduser().is_file():
            from gouache.errors import PictureError

            given = "a folder" if Path(picture).expanduser().is_dir() else "no such file"
            raise PictureError(picture, given=given, expected="a picture", cure="Check the path.")
        return picture, {}
    from hashlib import sha256

    data = sys.stdin.buffer.read()
    if not data:
        raise InvalidInput("standard input", given="nothing", expected="a picture's bytes")
    digest = sha256(data).hexdigest()
    return f"sha256:{digest}", {digest: data}


edit = with_options(_edit, SPECS, "edit", HELP)
