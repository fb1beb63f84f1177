"""`gouache eval`, `gouache card` and `gouache likelihood`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.options import RayActors, ray_option
from gouache.cli.output import rewrites
from gouache.errors import InvalidInput

if TYPE_CHECKING:
    from gouache.pipeline.likelihood import Likelihood
    from gouache.training.evaluation.figures import Evaluation
    from gouache.training.evaluation.suite import Painting


Ray = Annotated[str | None, ray_option("Paint a sticker set's prompts on a Ray cluster")]


def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of the model.")],
    data: Annotated[Path, typer.Option(help="Folder of captioned pictures, of a packed set, or of a sticker set.")],
    judge: Annotated[
        Path | None,
        typer.Option(
            help="Towers of `gouache train clip`, trained apart from the model's; for your own pictures also"
            " the folder of a published CLIP, or none."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file; - prints them.")] = None,
    sheet: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("eval.png"),
    limit: Annotated[int, typer.Option(min=2, help="Prompts of each group.")] = 100,
    steps: Annotated[
        str | None,
        typer.Option(help="Numbers of denoising steps, with commas. [default: 8,12; on your own pictures the model's]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture.")] = 0,
    scenes: Annotated[int, typer.Option(min=0, help="Composed scenes to check by rule; 0 leaves them out.")] = 250,
    chinese: Annotated[bool, typer.Option(help="Ask in Chinese too.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. Default: a GPU of CUDA, else cpu.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice to torch.")] = 0,
    runs: Annotated[int, typer.Option(min=0, help="Whole runs of gouache paint to time; 0 leaves times out.")] = 3,
    bf16: Annotated[bool, typer.Option("--bf16", help="Paint in bfloat16: quicker on some CPUs, less exact.")] = False,
    ray: Ray = None,
    ray_actors: RayActors = None,
) -> None:
    """Measure reconstruction, retrieval, style, scenes, KID and bits, each with a bootstrap interval.

    On pictures of your own, what only the sticker set knows is left out, and what needs a judge where none is given.
    Example: gouache eval models/tuned --data my-pictures --json eval.json --limit 20
    """
    from gouache.training.evaluation.measure import evaluate_files, evaluate_own_files
    from gouache.training.evaluation.own import OwnSettings, is_sticker_set
    from gouache.training.evaluation.suite import EvaluationSettings

    events: Iterator[str | Painting | Evaluation]
    if not is_sticker_set(data):
        if bf16 or ray is not None:
            flag = "--bf16" if bf16 else "--ray"
            raise InvalidInput(flag, given="for your own pictures", expected="a sticker set", cure="Leave it out.")
        chosen = {} if steps is None else {"steps": read_steps(steps)}
        own = OwnSettings.from_dict({"limit": limit, "seed": seed, **chosen})
        events = evaluate_own_files(model, data, judge, own, device=device, threads=threads, runs=runs)
    elif judge is None:
        raise InvalidInput(
            "--judge", given="none", expected="the file that `gouache train clip` left, for a sticker set"
        )
    else:
        settings = EvaluationSettings.from_dict(
            {"limit": limit, "steps": read_steps(steps or "8,12"), "seed": seed, "scenes": scenes, "chinese": chinese}
        )
        if ray is None:
            events = evaluate_files(model, data, judge, settings, device=device, threads=threads, runs=runs, bf16=bf16)
        else:
            from gouache.scale.evaluating import Spreading, evaluate_on_cluster

            spreading = Spreading(ray, ray_actors, device, bf16)
            events = evaluate_on_cluster(model, data, judge, settings, spreading, threads=threads, runs=runs)
    _follow(events, json, sheet)


def _follow(events: Iterator[str | Painting | Evaluation], json: Path | None, sheet: Path) -> None:
    from gouache.training.evaluation.suite import Painting

    for event in events:
        if isinstance(event, str):
            typer.echo(f"gouache: {event}", err=True)
        elif isinstance(event, Painting):
            _show(event)
        else:
            _finish(event, json, sheet)


def read_steps(text: str) -> tuple[int, ...]:
    """``4,8,16`` as numbers.

    Raises:
        InvalidInput: something else, or a number below 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise InvalidInput("--steps", given=repr(text), expected="whole numbers from 1 with commas, for example 4,8,16")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _show(event: Painting) -> None:
    if rewrites():
        end = "\n" if event.done >= event.total else ""
        sys.stderr.write(f"\r\x1b[2Kpainted {event.done:,}/{event.total:,}{end}")
        sys.stderr.flush()


def _finish(found: Evaluation, json: Path | None, sheet: Path) -> None:
    from io import BytesIO

    from gouache.files import write_bytes

    if found.sheet is not None:
        buffer = BytesIO()
        found.sheet.save(buffer, "PNG")
        write_bytes(sheet, buffer.getvalue(), force=True)
    if json is not None and str(json) == "-":
        typer.echo(found.to_json())
        return
    if json is not None:
        write_bytes(json, found.to_json().encode(), force=True)
    _print(found)


def _print(found: Evaluation) -> None:
    """A table in plain text, so that it can be read, searched and cut anywhere."""
    head = ("figure", "on", "steps", "prior", "value", "95 % interval", "n")
    rows = [head, *(figure.row() for figure in found.figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def card(
    model: Annotated[Path, typer.Argument(help="Folder that gouache pack wrote.")],
    data: Annotated[Path, typer.Option(help="Folder of the pictures it learnt from, or of the sticker set.")],
    run: Annotated[list[Path] | None, typer.Option(help="Folder of its training; may be given several times.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file of the training, shown whole.")] = None,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="JSON that gouache eval wrote.")] = None,
    words: Annotated[Path | None, typer.Option(help="Markdown to begin with: purpose, limits, more credits.")] = None,
) -> None:
    """Write README.md and CREDITS.md beside a model's weights: figures, data, training, credits.

    Example: gouache card models/mine --data stickers --run runs/pocket --eval eval.json --words recipes/pocket_card.md
    """
    from gouache.training.evaluation.card import write_model_card

    typer.echo(write_model_card(model, data=data, runs=run or (), config=config, evaluation=evaluation, words=words))


def likelihood(
    picture: Annotated[Path, typer.Argument(help="The picture.")],
    caption: Annotated[str, typer.Argument(help="Its caption.")],
    model: Annotated[
        str | None, typer.Option(help="Path or name of the model. Default: the model shipped with gouache.")
    ] = None,
    levels: Annotated[int, typer.Option(min=1, help="Noise levels of the estimate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. Default: a GPU of CUDA, else cpu.")] = None,
) -> None:
    """Estimate the bits of an image under the prior and under the diffusion model, with and without its caption.

    The difference is an alignment score: how much the caption helps to predict the image.
    Example: gouache likelihood apple.png "a red apple, 3d style"
    """
    from json import dumps

    from gouache.pipeline.inputs.images import read_picture
    from gouache.pipeline.likelihood import picture_likelihood
    from gouache.pipeline.pipeline import open_pipeline

    image = read_picture(picture, where=str(picture))
    pipeline, note = open_pipeline(model, device=device)
    if note:
        typer.echo(f"gouache: {note}", err=True)
    found = picture_likelihood(pipeline.bundle, image, caption, levels=levels, seed=seed)
    if as_json:
        typer.echo(dumps({"picture": str(picture), "caption": caption, **found.to_dict()}, ensure_ascii=False))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Likelihood) -> list[str]:
    lines = [
        f"diffusion: {found.diffusion:.1f} bits with the caption, {found.diffusion_without:.1f} without "
        f"({found.diffusion / found.dimensions:.3f} a dimension of {found.dimensions})",
        f"diffusion alignment: {found.diffusion_alignment:+.1f} bits",
    ]
    if found.prior is not None and found.prior_without is not None:
        lines.append(
            f"prior: {found.prior:.1f} bits with the caption, {found.prior_without:.1f} without "
            f"({found.prior / found.tokens:.3f} a token of {found.tokens})"
        )
        lines.append(f"prior alignment: {found.prior_alignment:+.1f} bits")
    return lines
