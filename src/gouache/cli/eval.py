"""`gouache eval`: measure a model that paints stickers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.errors import InvalidInput

if TYPE_CHECKING:
    from gouache.training.evaluation import Painting
    from gouache.training.evaluation_figures import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of the model.")],
    data: Annotated[Path, typer.Option(help="Folder of a built sticker set.")],
    judge: Annotated[Path, typer.Option(help="Towers of `gouache train clip`, trained apart from the model's.")],
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file; - prints them.")] = None,
    sheet: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("eval.png"),
    limit: Annotated[int, typer.Option(min=2, help="Prompts of each group.")] = 100,
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps, with commas.")] = "8,12",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scenes: Annotated[int, typer.Option(min=0, help="Composed scenes to check by rule; 0 leaves them out.")] = 250,
    chinese: Annotated[bool, typer.Option(help="Ask in Chinese too.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice to torch.")] = 0,
    runs: Annotated[int, typer.Option(min=0, help="Whole runs of gouache paint to time; 0 leaves times out.")] = 3,
    bf16: Annotated[bool, typer.Option("--bf16", help="Paint in bfloat16: quicker on some CPUs, less exact.")] = False,
) -> None:
    """Measure reconstruction, retrieval, style, scenes, KID and bits, each with a bootstrap interval.

    Example: gouache eval pocket --data stickers --judge judge.safetensors --json eval.json --limit 50
    """
    from gouache.training.evaluation import EvaluationSettings, Painting
    from gouache.training.evaluation_run import evaluate_files

    settings = EvaluationSettings.from_dict(
        {"limit": limit, "steps": read_steps(steps), "seed": seed, "scenes": scenes, "chinese": chinese}
    )
    for event in evaluate_files(model, data, judge, settings, device=device, threads=threads, runs=runs, bf16=bf16):
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
    if sys.stderr.isatty():
        end = "\n" if event.done >= event.total else ""
        sys.stderr.write(f"\r\x1b[2Kpainted {event.done:,}/{event.total:,}{end}")
        sys.stderr.flush()


def _finish(found: Evaluation, json: Path | None, sheet: Path) -> None:
    from io import BytesIO

    from gouache.pipeline.files import write_bytes

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
