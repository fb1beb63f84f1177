"""`gouache paint`: pictures from words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gouache.cli.main import importing
from gouache.cli.options import EDITING, RayActors, option_specs, ray_option, request_values, with_options
from gouache.cli.output import STANDARD, OutputWriter, interrupted, shown
from gouache.errors import ClusterError, GouacheError, Interrupted, InvalidInput, RecipeError, StoreError
from gouache.pipeline.batch import (
    PromptLine,
    matrix,
    prompt_lines,
    prompts_in,
    read_prompts,
    read_text,
    requests_of,
    with_choices,
    with_steady_seeds,
)
from gouache.pipeline.engine.names import ENGINES, TORCH
from gouache.pipeline.request import Request
from gouache.scale.folders import is_address

if TYPE_CHECKING:
    from gouache.pipeline.generate.generation import Painted
    from gouache.pipeline.pipeline import Pipeline
    from gouache.pipeline.resolve import Resolved
    from gouache.scale.painting import Line, NotPainted, Painters

SPECS = option_specs(without=EDITING)
HELP = """Generate images from a prompt.

Each is written as SLUG-SEED.png with its recipe inside. Example:

gouache paint "a red fire engine, 3d style" --count 4 --seed 7
"""

OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="File or folder; - is standard output; s3://BUCKET/PREFIX with --from-file. Default: this folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps. Default: a GPU of CUDA, else cpu.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, float16, bfloat16 or auto (default): on cpu bfloat16 for large models where it is faster, else "
        "float32; on a GPU float16.",
    ),
]
EngineOption = Annotated[str, typer.Option("--engine", help=f"What runs the networks: {', '.join(ENGINES)}.")]
Sequential = Annotated[
    bool,
    typer.Option("--sequential", help="One network at a time in memory, read from its file when it is used: slower."),
]
Size = Annotated[str | None, typer.Option("--size", metavar="N|WxH", help="Width and height together.")]
Quality = Annotated[int, typer.Option("--quality", min=1, max=100, help="JPEG and WebP quality; WebP 100 is lossless.")]
Open = Annotated[bool, typer.Option("--open", help="Open the images when finished.")]
FromFile = Annotated[
    Path | None,
    typer.Option("--from-file", help="File of prompts: one prompt or one JSON object per line; - is standard input."),
]
MatrixOption = Annotated[
    bool, typer.Option("--matrix", help="Prompt matrix: every combination of the parts separated by |.")
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Resolve {a|b} at random, by the seed.")]
Wildcards = Annotated[Path | None, typer.Option("--wildcards", help="Folder of NAME.txt files for __NAME__.")]
Ray = Annotated[
    str | None, ray_option("Paint --from-file on a Ray cluster", " Pictures that are there already are kept.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep --from-file's pictures that are there already; paint the others.")
]
Like = Annotated[Path | None, typer.Option("--like", help="Start from the recipe stored in this image.")]


def _paint(
    prompt: Annotated[str | None, typer.Argument(help="Prompt; - reads standard input.")] = None,
    *,
    output: OutputOption = None,
    like: Like = None,
    size: Size = None,
    from_file: FromFile = None,
    ray: Ray = None,
    ray_actors: RayActors = None,
    resume: Resume = False,
    as_matrix: MatrixOption = False,
    dynamic: Dynamic = False,
    wildcards: Wildcards = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Also write a contact sheet, with the prompts if they differ.")
    ] = False,
    svg: Annotated[bool, typer.Option("--svg", help="Also trace each picture to SVG.")] = False,
    as_json: JsonOption = False,
    force: Force = False,
    quality: Quality = 95,
    device: Device = None,
    dtype: Dtype = None,
    sequential: Sequential = False,
    engine: EngineOption = TORCH,
    open_: Open = False,
    **options: object,
) -> None:
    if prompt == "-" and from_file == STANDARD:
        raise InvalidInput("--from-file", given="- beside a prompt -", expected="one thing from standard input")
    batch = ray is not None or resume or is_address(output)
    if batch:
        refuse_beside_batch(from_file, output, {"--grid": grid, "--svg": svg, "--open": open_})
    noted: list[str] = []
    request = build_request(prompt, size, request_values(SPECS, options), like, noted, prompts=from_file is not None)

    def several(one: Request) -> list[Request]:
        parts = [one.replace({"prompt": text}) for text in matrix(one.prompt)] if as_matrix else [one]
        chosen = dynamic or wildcards is not None
        return [each for part in parts for each in with_choices(part, wildcards)] if chosen else parts

    outcome = OutputWriter(output, force=force, as_json=as_json, quality=quality, svg=svg, noted=tuple(noted))
    if batch and from_file is not None:
        from gouache.scale.painting import Painters

        if ray is not None and engine != TORCH:
            raise InvalidInput(
                "--engine", given=f"{engine} beside --ray", expected="torch, which runs on every machine"
            )
        painters = None if ray is None else Painters(ray, ray_actors, device, dtype)
        loading = Loading(device, dtype, sequential, engine)
        paint_lines(request, from_file, several, outcome, painters, loading)
        return
    asked = [request] if from_file is None else from_lines(request, from_file)
    requests = [each for one in asked for each in several(one)]
    paint_requests(requests, outcome, Loading(device, dtype, sequential, engine), grid=grid, show=open_)


paint = with_options(_paint, SPECS, "paint", HELP)


def build_request(
    prompt: str | None,
    size: str | None,
    values: Mapping[str, Any],
    like: Path | None = None,
    noted: list[str] | None = None,
    *,
    prompts: bool = False,
) -> Request:
    """The request that a command line describes, on top of the recipe of a picture if one is given.

    Args:
        prompt: `-` reads standard input.
        size: as `read_size`.
        values: of the other options.
        like: a picture with a recipe, by whatever tool.
        noted: gets what that recipe holds and a request doesn't.
        prompts: prompts come from elsewhere, so the picture's may be unknown.

    Raises:
        ConfigError, InvalidInput: a value that can't be used.
        RecipeError: `like` has no recipe, or one whose prompt can't be followed and none is given.
    """
    fields = dict(values)
    if prompt is not None:
        fields["prompt"] = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    if size is not None:
        fields["width"], fields["height"] = read_size(size)
    if like is None:
        return Request.from_dict(fields, where="request")
    from gouache.pipeline.output.foreign import read_recipe

    found = read_recipe(like)
    if noted is not None:
        noted += [f"{like.name}: {note}" for note in found.notes]
    if not (found.prompt_known or prompts or fields.get("prompt")):
        raise RecipeError(
            str(like),
            given=f"a recipe by {found.tool} whose prompt can't be followed",
            expected="a prompt",
            cure="Give it on the command line; `gouache show` says what was found.",
        )
    return found.request.replace(fields)


def read_size(text: str) -> tuple[int, int]:
    """``512`` or ``512x768`` as width and height.

    Raises:
        InvalidInput: it is neither.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and (height.isdecimal() or not height)):
        raise InvalidInput("--size", given=repr(text), expected="a number or WIDTHxHEIGHT, for example 512x768")
    return int(width), int(height or width)


@dataclass(frozen=True, slots=True)
class Loading:
    """How a command line wants its model: as `open_pipeline`, with the dtype by its name."""

    device: str | None = None
    dtype: str | None = None
    sequential: bool = False
    engine: str = TORCH


def load(model: str | None, how: Loading) -> Pipeline:
    """Load the model of a request; anything odd about it is told on standard error."""
    with importing():
        from gouache.pipeline.pipeline import open_pipeline

    pipeline, note = open_pipeline(
        model, device=how.device, dtype=how.dtype, sequential=how.sequential, engine=how.engine
    )
    if note:
        typer.echo(f"gouache: {note}", err=True)
    return pipeline


def from_lines(base: Request, path: Path) -> list[Request]:
    """One request for each line of a file, on top of what the command line says."""
    shared = {name: getattr(base, name) for name in base.model_fields_set}
    return requests_of(shared, read_prompts(path) if path != STANDARD else prompts_in(_standard_text(), where="stdin"))


def refuse_beside_batch(from_file: Path | None, output: str | None, switches: Mapping[str, bool]) -> None:
    """What a batch can't be asked for, before anything is loaded.

    Raises:
        InvalidInput: there is no file of prompts, or something that is made of all pictures at the end.
    """
    if from_file is None:
        raise InvalidInput(
            "--ray, --resume or an s3:// address",
            given="no --from-file",
            expected="a file of prompts",
            cure="Write the prompts into a file, one a line.",
        )
    asked = [name for name, value in switches.items() if value] + (["-o -"] if output == "-" else [])
    if asked:
        raise InvalidInput(asked[0], given="--ray, --resume or an s3:// address", expected="pictures alone")


def paint_lines(
    base: Request,
    path: Path,
    several: Callable[[Request], list[Request]],
    outcome: OutputWriter,
    painters: Painters | None,
    how: Loading,
) -> None:
    """Paint a file of prompts as a batch that can be begun again: here, or on a cluster.

    Args:
        base: what the command line says.
        path: of the file.
        several: the requests that one line's becomes.
        outcome: tells what was written.
        painters: the cluster, if it isn't to be painted here.
        how: the model is loaded here.

    Raises:
        InvalidInput, ClusterError: at the end, if lines could not be painted; everything else was.
        StoreError, PictureError: the folder can't be used.
        Interrupted: Ctrl-C; what was finished is kept.
    """
    from gouache.scale.folders import open_folder
    from gouache.scale.painting import Kept, paint_batch

    folder = open_folder(outcome.output)
    folder.check()
    text = read_text(path) if path != STANDARD else _standard_text()
    written = prompt_lines(text, where=str(path) if path != STANDARD else "stdin")
    failed: list[NotPainted] = []
    asked = list(_read_lines(base, written, failed))
    if len(models := {request.model for _, request in asked} or {base.model}) != 1:
        raise InvalidInput("requests", given=f"{len(models)} models", expected="one model for all lines")
    # A cluster's machines hold the networks; here they are only asked what they can do.
    here = how if painters is None else replace(how, device="cpu", sequential=True)
    pipeline = load(models.pop(), here)
    lines = list(_planned_lines(pipeline, asked, several, failed))
    for one in failed:
        tell_failed(one)
    there = 0
    try:
        for event in paint_batch(pipeline, lines, folder, painters=painters, noted=outcome.noted, force=outcome.force):
            if isinstance(event, Kept):
                there += not event.painted
                outcome.note_picture(
                    folder.address(event.name), event.recipe, (event.width, event.height), event.painted
                )
            else:
                failed.append(event)
                tell_failed(event)
    except KeyboardInterrupt as stop:
        outcome.close(interrupted=True)
        raise interrupted("paint", len(outcome.pictures), f"all pictures of {path}", outcome) from stop
    except (ClusterError, StoreError) as error:
        asked_for = {folder.address(name): line.where for line in lines for name in line.names}
        raise _ended_early(error, outcome, asked_for) from error
    if there and not outcome.as_json:
        typer.echo(f"gouache: {there} pictures were there already", err=True)
    outcome.close(not_painted=[{"line": one.where, **one.error.to_dict()} for one in failed])
    if failed:
        raise _not_all(path, failed, len(written))


def tell_failed(one: NotPainted) -> None:
    """Name a line that could not be painted, at once."""
    line = "" if one.error.where.startswith(one.where) else f"{one.where}: "
    typer.echo(f"gouache: {line}{one.error}", err=True)


def _not_all(path: Path, failed: Sequence[NotPainted], lines: int) -> GouacheError:
    numbers = list(dict.fromkeys(one.where.rpartition(":")[2] for one in failed))
    kinds = [type(one.error) for one in failed if not isinstance(one.error, InvalidInput)]
    return (kinds[0] if kinds else InvalidInput)(
        str(path),
        given=f"{len(numbers)} of {lines} lines not painted: {', '.join(numbers[:20])}{', ...' * (len(numbers) > 20)}",
        expected="a picture for every line",
        cure="The others are painted. Correct these lines and run the same command again.",
    )


def _ended_early(error: ClusterError | StoreError, outcome: OutputWriter, asked_for: Mapping[str, str]) -> GouacheError:
    """The same error, with what there is and what is missing; the JSON too, if it was asked for.

    Args:
        error: what ended the batch.
        outcome: knows what was written.
        asked_for: every picture's address, and the line that it is of.
    """
    written = {picture["path"] for picture in outcome.pictures}
    missing = [address for address in asked_for if address not in written]
    outcome.close(not_painted=[{"line": asked_for[address], **error.to_dict()} for address in missing])
    numbers = ", ".join(dict.fromkeys(asked_for[address].rpartition(":")[2] for address in missing[:20]))
    given = f"{error.given}, with {len(written)} of {len(asked_for)} pictures in the folder"
    if missing:
        given += f"; missing are pictures of lines {numbers}{', ...' * (len(missing) > 20)}"
    return type(error)(error.where, given=given, expected=error.expected, cure=error.cure)


def _read_lines(base: Request, lines: Sequence[PromptLine], failed: list[NotPainted]) -> Iterator[tuple[str, Request]]:
    """Where each line stands, and its request; each has a seed."""
    from gouache.scale.painting import NotPainted

    shared = {name: getattr(base, name) for name in base.model_fields_set}
    found: list[tuple[str, Request]] = []
    for line in lines:
        try:
            found.append((line.where, Request.from_dict({**shared, **line.read()}, where=line.where)))
        except GouacheError as error:
            failed.append(NotPainted(line.where, error))
    requests = with_steady_seeds([request for _, request in found])
    yield from zip((where for where, _ in found), requests, strict=True)


def _planned_lines(
    pipeline: Pipeline,
    asked: Sequence[tuple[str, Request]],
    several: Callable[[Request], list[Request]],
    failed: list[NotPainted],
) -> Iterator[Line]:
    from gouache.scale.painting import Line, NotPainted

    naming = OutputWriter(None)
    for where, request in asked:
        try:
            plans = [pipeline.plan(each) for each in several(request)]
        except GouacheError as error:
            failed.append(NotPainted(where, error))
            continue
        for plan in plans:
            names = (naming.free_path(plan.request, k).name for k in range(plan.request.count))
            yield Line(where, plan, tuple(names))


def _standard_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input", given=str(error), expected="prompts in UTF-8") from error


def paint_request(
    request: Request,
    outcome: OutputWriter,
    how: Loading,
    *,
    show: bool = False,
    attachments: Mapping[str, bytes] | None = None,
) -> None:
    """Paint one request; see `paint_requests`."""
    paint_requests([request], outcome, how, show=show, attachments=attachments)


def paint_requests(
    requests: Sequence[Request],
    outcome: OutputWriter,
    how: Loading,
    *,
    grid: bool = False,
    show: bool = False,
    attachments: Mapping[str, bytes] | None = None,
) -> None:
    """Load, paint, write; a picture is written as soon as it is finished.

    Raises:
        InvalidInput: several models, or several pictures for standard output.
        Interrupted: Ctrl-C; what was finished is kept and named.
    """
    models = {request.model for request in requests}
    if len(models) != 1 or (outcome.to_stdout and len(requests) > 1):
        given = f"{len(requests)} requests for {len(models)} models"
        raise InvalidInput("requests", given=given, expected="one model, and one picture for standard output")
    pipeline = load(requests[0].model, how)
    plans = [pipeline.plan(request, attachments) for request in requests]
    for plan in plans:
        outcome.check(plan.request)
    done: list[Painted] = []
    try:
        for plan in plans:
            done += _painted(pipeline, plan, outcome, attachments)
    except KeyboardInterrupt as stop:
        outcome.close(interrupted=True)
        raise Interrupted(
            "paint",
            given="an interrupt",
            expected=f"{sum(plan.request.count for plan in plans)} pictures",
            cure=f"{len(outcome.files)} finished and kept: {', '.join(outcome.files) or 'none'}.",
        ) from stop
    if grid and not outcome.to_stdout:
        _write_grid(done, outcome, plans[0].request)
    outcome.close()
    if show:
        for name in outcome.files:
            typer.launch(name)


def _painted(
    pipeline: Pipeline, plan: Resolved, outcome: OutputWriter, attachments: Mapping[str, bytes] | None
) -> list[Painted]:
    from gouache.pipeline.generate.generation import Painted

    done = []
    for event in shown(pipeline.run(plan, attachments), label=f"seed {plan.request.seed}"):
        if isinstance(event, Painted):
            done.append(event)
            outcome.keep(event, plan.request)
    return done


def _write_grid(done: list[Painted], outcome: OutputWriter, request: Request) -> None:
    from gouache.files import write_bytes
    from gouache.pipeline.output.metadata import encode_picture, kind_of
    from gouache.pipeline.output.sheets import captioned_sheet, contact_sheet, left_out

    first = outcome.path_for(request.replace({"count": 1}), 0)
    path = first.with_stem(f"{first.stem}-grid")
    pictures, prompts = [painted.image for painted in done], [painted.recipe.request.prompt for painted in done]
    captions = prompts if len(set(prompts)) > 1 else []
    sheet = captioned_sheet(pictures, captions) if captions else contact_sheet(pictures)
    outcome.tell_left_out(left_out(captions))
    write_bytes(path, encode_picture(sheet, kind_of(path), quality=outcome.quality), force=outcome.force)
    outcome.note_file(path)
