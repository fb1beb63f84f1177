"""`gouache grid`: one sheet over any two or three parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.options import option_specs, request_values, with_options
from gouache.cli.output import OutputWriter, interrupted, shown
from gouache.cli.paint import Device, Dtype, EngineOption, Force, JsonOption, Loading, Size, build_request, load
from gouache.pipeline.engine.names import TORCH

if TYPE_CHECKING:
    from PIL import Image

SPECS = option_specs(without=("count", "interpolation"))
HELP = """Generate an X/Y/Z plot of two or three parameters on one labelled sheet.

An axis is FIELD=VALUE,VALUE with any field of a request; prompt=old>new swaps words.

Example: gouache grid "a cat" --x steps=5,10,20 --y "sampler=euler,DPM++ 2M" -o grid.png
"""
SHORT_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale", "negative": "negative_prompt"}


def _grid(
    prompt: Annotated[str | None, typer.Argument(help="Prompt.")] = None,
    *,
    x: Annotated[str, typer.Option("--x", help="Columns: FIELD=VALUE,VALUE.")],
    y: Annotated[str | None, typer.Option("--y", help="Rows.")] = None,
    z: Annotated[str | None, typer.Option("--z", help="Further plots, one below the other.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Output file; - is standard output.")] = Path(
        "grid.png"
    ),
    size: Size = None,
    as_json: JsonOption = False,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    engine: EngineOption = TORCH,
    **options: object,
) -> None:
    from gouache.pipeline.batch import read_axis, table
    from gouache.pipeline.generate.generation import Painted
    from gouache.pipeline.output.metadata import encode_picture, kind_of
    from gouache.pipeline.output.sheets import left_out

    request = build_request(prompt, size, {"seed": 0, **request_values(SPECS, options)})
    axes = [read_axis(text) for text in (z, y, x) if text is not None]
    axes = [(SHORT_NAMES.get(name, name), values) for name, values in axes]
    cells = table(request, axes)
    outcome = OutputWriter(str(output), force=force, as_json=as_json)
    outcome.check_single()
    kind = "png" if outcome.to_stdout else kind_of(output)
    pipeline = load(request.model, Loading(device, dtype, engine=engine))
    pictures: list[Image.Image] = []
    stopped = False
    try:
        for _, one in cells:
            label = f"{len(pictures) + 1}/{len(cells)}"
            pictures += [event.image for event in shown(pipeline.run(one), label=label) if isinstance(event, Painted)]
    except KeyboardInterrupt:
        stopped = True
    if pictures:
        sheet = _sheet(pictures, axes, request.prompt)
        outcome.write_single(encode_picture(sheet, kind, {"gouache-grid": request.to_json()}))
        outcome.tell_left_out(left_out([request.prompt, *(value for _, values in axes for value in values)]))
    outcome.close(interrupted=stopped)
    if stopped:
        raise interrupted("grid", len(pictures), f"{len(cells)} pictures", outcome)


def _sheet(pictures: list[Image.Image], axes: list[tuple[str, list[str]]], title: str) -> Image.Image:
    from gouache.pipeline.output.sheets import labelled_sheet

    *outer, (x_name, x_values) = axes
    # A sheet that was stopped has fewer rows, and perhaps a last one that is not full.
    rows = [pictures[k : k + len(x_values)] for k in range(0, len(pictures), len(x_values))]
    down = [""]
    for name, values in outer:
        down = [", ".join(filter(None, (label, f"{name}={value}"))) for label in down for value in values]
    return labelled_sheet(rows, [f"{x_name}={value}" for value in x_values], down[: len(rows)], title=title)


grid = with_options(_grid, SPECS, "grid", HELP)
