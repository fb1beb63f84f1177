"""`gouache train`, `gouache runs` and `gouache pack`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gouache.cli.output import rewrites
from gouache.cli.train_options import META, StageCommand, StageOption, config_with
from gouache.errors import InvalidInput
from gouache.models.family import POCKET

if TYPE_CHECKING:
    from gouache.training.loop import TrainingProgress
    from gouache.training.stage import Preparing


def _list(asked: bool) -> None:
    """Print the presets and leave."""
    if not asked:
        return
    from gouache.training.presets import ANY, presets

    for preset in presets():
        typer.echo(f"{preset.name}: gouache train {'|'.join(preset.stages)}")
        typer.echo(f"    {preset.about}{' Needs --start MODEL.' if preset.start == ANY else ''}")
    raise typer.Exit


def train(
    ctx: typer.Context,
    stage: Annotated[
        str,
        typer.Argument(
            help="vae, clip, tokens, prior, denoiser, lora, dreambooth, inversion, controlnet, instruct or upscaler."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of captioned pictures, or of a built recipe.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an existing run is resumed.")],
    config: Annotated[Path | None, typer.Option(help="TOML file with a table for every stage.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A recipe by name in place of --config; it is written to OUT/config.toml.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", "--model", "-m", help="The model to start from, by path or name.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time after which to stop, over all sessions.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    from_packed: Annotated[
        str | None,
        typer.Option(help="Packed model, by path or name: first weights, and results that the run lacks."),
    ] = None,
    list_presets: Annotated[
        bool, typer.Option("--presets", help="List the recipes for --preset, and exit.", is_eager=True, callback=_list)
    ] = False,
) -> None:
    """Train one stage on captioned pictures; stop at any time and resume with the same command.

    A stage's help lists the options that stand for the keys of its table: gouache train lora --help

    Example: gouache train vae --config recipes/pocket.toml --data stickers --out runs/pocket --minutes 60
    """
    from gouache.pipeline.pipeline import find_model
    from gouache.training.run import train_stage

    del list_presets
    config = _config(ctx.meta[META], stage, config, preset, start, out)
    packed = None if from_packed is None else find_model(from_packed)
    stopped = stop_on_signals()
    lines = _Lines()
    for event in train_stage(
        stage, config, data, out, minutes=minutes, threads=threads, from_packed=packed, stop=lambda: bool(stopped)
    ):
        lines.show(event)
    if stopped:
        raise typer.Exit(130)


train.command_class = StageCommand  # type: ignore[attr-defined]


def _config(
    options: Mapping[StageOption, Any],
    stage: str,
    config: Path | None,
    preset: str | None,
    start: str | None,
    out: Path,
) -> Path:
    """The config's file: the one that is given, what a preset is written to, or what options and a model say.

    Raises:
        InvalidInput: nothing is given, or a config and a preset, or a preset without the model that it needs.
    """
    from gouache.pipeline.pipeline import find_model

    if preset is None and (config is not None or start is not None):
        return config_with(options, stage, config, None if start is None else find_model(start), out)
    if (config is None) == (preset is None):
        raise InvalidInput(
            "--config, --preset",
            given="neither" if config is None else "both",
            expected="a TOML file, or the name of a recipe, or the model to start from (--start)",
            cure="See `gouache train --presets`.",
        )
    assert preset is not None, "one of both is given"
    from gouache.training.presets import ANY, preset_named, write_preset

    recipe = preset_named(preset)
    if stage not in recipe.stages:
        raise InvalidInput(
            "--preset", given=f"{preset} for stage {stage}", expected=f"stage {', '.join(recipe.stages)}"
        )
    if recipe.start == ANY and start is None:
        raise InvalidInput("--start", given="none", expected=f"the model that preset {preset} starts from")
    written = write_preset(recipe, find_model(start or recipe.start), out)
    return config_with(options, stage, written, None, out)


def runs(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to --out.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Summarise the stages of a run and draw their loss curves to RUN/<stage>/losses.png.

    Example: gouache runs runs/pocket
    """
    from json import dumps

    from gouache.training.runlog import summarise

    summaries = summarise(run)
    if json:
        typer.echo(dumps(summaries))
        return
    for summary in summaries:
        typer.echo(f"{summary['stage']}: {summary['images_seen']:,} images")
        for name, value in summary["figures"].items():
            typer.echo(f"  {name:32} {value:.4g}")
        typer.echo(f"  curves: {summary['curves']}")


def stop_on_signals() -> list[int]:
    """A list that receives the signal once SIGINT or SIGTERM asks to stop."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, _frame: received.append(signum))
    return received


class _Lines:
    """Progress on stderr: rewritten in place on a terminal, one line per log entry elsewhere."""

    def __init__(self) -> None:
        self.terminal = rewrites()

    def show(self, event: Preparing | TrainingProgress) -> None:
        from gouache.training.loop import spoken_time
        from gouache.training.stage import Preparing

        if isinstance(event, Preparing):
            if event.note:
                self._print(event.note, keep=True)
            elif self.terminal or event.done == event.total:
                self._print(f"{event.what} {event.done:,}/{event.total:,}", event.done == event.total)
            return
        text = (
            f"{event.images_seen:,}/{event.images:,} images, {event.images_per_second:.1f}/s"
            f" ({event.flops_share:.0%} of the matrix peak), {spoken_time(event.seconds_left)} left"
        )
        figures = {**event.losses, **{f"validation {name}": value for name, value in event.figures.items()}}
        if self.terminal or figures or event.checkpoint:
            text += "".join(f", {name} {value:.4g}" for name, value in figures.items())
            text += f", saved {event.checkpoint.name}" if event.checkpoint else ""
            self._print(text, bool(figures or event.checkpoint))

    def _print(self, text: str, keep: bool) -> None:
        start = "\r\x1b[2K" if self.terminal else ""
        sys.stderr.write(f"{start}{text}" + ("\n" if keep or not self.terminal else ""))
        sys.stderr.flush()


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to gouache train --out.")],
    out: Annotated[Path, typer.Argument(help="Folder of the model to write; must not exist yet.")],
    config: Annotated[Path, typer.Option(help="TOML file that the run was trained with.")],
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    int8: Annotated[
        str, typer.Option(help="Comma-separated parts whose matrices are stored in int8, such as text_encoder,prior.")
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name.")] = POCKET.name,
    styles: Annotated[str, typer.Option(help="Comma-separated styles that requests may name.")] = "",
    synonyms: Annotated[
        Path | None,
        typer.Option(help="Folder of the built recipe trained on: its keywords say what else the things are called."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, as an SPDX identifier.")] = "",
    ema: Annotated[
        float | None,
        typer.Option(help="Width of the denoiser's EMA, one of those tracked; else the config's."),
    ] = None,
) -> None:
    """Combine the results of all stages into one model, for gouache paint --model.

    Example: gouache pack runs/pocket models/mine --config recipes/pocket.toml
    """
    from gouache.training.config import read_config
    from gouache.training.pack import pack as pack_run

    written = pack_run(
        read_config(config, None),
        run,
        out,
        dtype=dtype,
        int8=_words(int8),
        name=name,
        styles=_words(styles),
        synonyms=synonyms,
        licence=licence,
        ema=ema,
    )
    typer.echo(written)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
