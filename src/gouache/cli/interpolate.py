"""`gouache interpolate`: the way from one picture to another, as a strip or a film."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gouache.cli.options import option_specs, request_values, with_options
from gouache.cli.output import OutputWriter, interrupted, shown
from gouache.cli.paint import Device, Dtype, EngineOption, Force, JsonOption, Loading, Size, build_request, load
from gouache.pipeline.engine.names import TORCH

if TYPE_CHECKING:
    from PIL import Image

SPECS = option_specs(without=("interpolation", "count", "outpaint", "inversion", "mask"))
HELP = """Interpolate between two prompts, two seeds or two images.

The suffix of the output decides: .gif, .webp or .mp4 is a film, .png a strip of all frames; - writes a GIF to
standard output.

Examples:

gouache interpolate "a cat" --to "a dog" --frames 12 -o morph.gif

gouache interpolate "a cat" --seed 1 --to-seed 2 -o strip.png
"""


def _interpolate(
    prompt: Annotated[str | None, typer.Argument(help="Prompt of the first frame.")] = None,
    *,
    to: Annotated[str | None, typer.Option("--to", help="Prompt of the last frame.")] = None,
    to_seed: Annotated[int | None, typer.Option("--to-seed", min=0, help="Seed of the last frame.")] = None,
    to_image: Annotated[str | None, typer.Option("--to-image", help="Image of the last frame.")] = None,
    frames: Annotated[int, typer.Option("--frames", min=2, help="Number of frames, both ends included.")] = 8,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Frames per second of a video.")] = 8.0,
    output: Annotated[Path, typer.Option("--output", "-o", help=".gif, .webp, .mp4 or .png")] = Path("way.gif"),
    size: Size = None,
    as_json: JsonOption = False,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    engine: EngineOption = TORCH,
    **options: object,
) -> None:
    from gouache.pipeline.generate.generation import Painted
    from gouache.pipeline.output.sheets import check_film, encode_film

    values: dict[str, Any] = request_values(SPECS, options)
    way = {"prompt": to, "seed": to_seed, "image": to_image, "frames": frames}
    values["interpolation"] = {key: value for key, value in way.items() if value is not None}
    request = build_request(prompt, size, values)
    outcome = OutputWriter(str(output), force=force, as_json=as_json)
    suffix = ".gif" if outcome.to_stdout else output.suffix
    check_film(suffix)
    outcome.check_single()
    pipeline = load(request.model, Loading(device, dtype, engine=engine))
    done: list[Image.Image] = []
    stopped = False
    try:
        for event in shown(pipeline.run(request), label="frames"):
            done += [event.image] if isinstance(event, Painted) else []
    except KeyboardInterrupt:
        stopped = True
    if done:
        outcome.write_single(encode_film(done, suffix, fps=fps))
    outcome.close(interrupted=stopped)
    if stopped:
        raise interrupted("interpolate", len(done), f"{frames} frames", outcome)


interpolate = with_options(_interpolate, SPECS, "interpolate", HELP)
