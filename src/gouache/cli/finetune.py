"""`gouache finetune`: teach a model one's own pictures, with everything chosen."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gouache.cli.output import rewrites
from gouache.cli.train import stop_on_signals

if TYPE_CHECKING:
    from gouache.training.stage import Preparing
    from gouache.training.tuning.session import Finetuning, Learning


def finetune(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] FOLDER", help="A model by name or path, the shipped one without; and pictures."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Name of the result, as <lora:NAME:1> or --model finds it; or a path.")
    ],
    minutes: Annotated[
        float, typer.Option(min=0.001, help="Training time, over all sessions; preparing comes on top.")
    ] = 5.0,
    method: Annotated[
        Literal["lora", "whole"],
        typer.Option(help="lora: a small file beside the model, used in prompts. whole: a model of its own."),
    ] = "lora",
    caption: Annotated[
        str, typer.Option(help='What pictures without a caption show, such as "a photo of sks dog".')
    ] = "",
    caption_from: Annotated[
        Literal["names", "folder"] | None,
        typer.Option(help="Take what pictures without a caption show from their files' names, or their folder's."),
    ] = None,
    trigger: Annotated[str, typer.Option(help="A word in front of every caption, by which prompts call for it.")] = "",
    flip: Annotated[
        bool | None,
        typer.Option(help="Mirror half of the pictures; by default where no caption speaks of left or right."),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
) -> None:
    """Teach a model a style or a thing from your own pictures; stop at any time and go on with the same command.

    Example: gouache finetune pictures -o mystyle --minutes 5
    """
    from gouache.errors import InvalidInput
    from gouache.pipeline.pipeline import find_model
    from gouache.training.tuning.session import plan_finetuning, run_finetuning

    if len(given) > 2:
        raise InvalidInput("finetune", given=" ".join(given)[:200], expected="a model and a folder of pictures")
    model, folder = ("" if len(given) == 1 else given[0]), Path(given[-1]).expanduser()
    start = find_model(model or None)
    planned = plan_finetuning(
        model, start, folder, out, minutes=minutes, method=method, caption=caption,
        caption_from=caption_from, trigger=trigger, flip=flip,
    )  # fmt: skip
    for line in planned.choices():
        typer.echo(line, err=True)
    stopped = stop_on_signals()
    lines = _Lines()
    for event in run_finetuning(planned, threads=threads, stop=lambda: bool(stopped)):
        lines.show(event)
    lines.end()
    _tell(planned, stopped=bool(stopped))
    if stopped:
        raise typer.Exit(130)


def _tell(planned: Finetuning, *, stopped: bool) -> None:
    """Where the result is and how to paint with it."""
    path = planned.target.path
    if not path.exists():
        typer.echo("stopped before anything was learned; the same command goes on", err=True)
        return
    if stopped:
        typer.echo("stopped; this is what is learned so far, and the same command goes on", err=True)
    typer.echo(path)
    prompt, model = planned.request()
    words = ["gouache", "paint", prompt, *(["--model", model] if model else [])]
    if not planned.target.is_found and planned.tuning.method == "lora":
        from gouache.checkpoints.hub import models_folder

        typer.echo(f"Put it into {models_folder() / 'lora'}, then:", err=True)
    typer.echo(shlex.join(words))


class _Lines:
    """Progress on stderr: rewritten in place on a terminal, a line every tenth elsewhere."""

    def __init__(self) -> None:
        self.terminal, self.last, self.tenth = rewrites(), "", -1

    def show(self, event: Preparing | Learning) -> None:
        from gouache.training.loop import spoken_time
        from gouache.training.stage import Preparing

        if isinstance(event, Preparing):
            if event.note:
                self._keep(event.note)
            else:
                self._rewrite(f"reading pictures, {event.done:,} of {event.total:,}")
            return
        percent = int(100 * event.done)
        if self.terminal or percent // 10 != self.tenth:
            self.tenth = percent // 10
            self._rewrite(f"learning {percent} %, {spoken_time(event.seconds_left)} left")
        if event.sheet is not None:
            self._keep(f"sample pictures: {event.sheet}")

    def end(self) -> None:
        if self.terminal and self.last:
            sys.stderr.write("\n")

    def _rewrite(self, text: str) -> None:
        if text == self.last:
            return
        self.last = text
        sys.stderr.write(f"\r\x1b[2K{text}" if self.terminal else f"{text}\n")
        sys.stderr.flush()

    def _keep(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}\n" if self.terminal else f"{text}\n")
        sys.stderr.flush()
        self.last = ""
