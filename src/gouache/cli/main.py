"""The `gouache` command: one sub-command a file, imported when it is run. Nothing here imports torch."""

from __future__ import annotations

import sys

import typer

from gouache.cli.lazy import LazyGroup
from gouache.errors import GouacheError, MissingDependency

LazyGroup.homes = {
    "paint": ("gouache.cli.paint:paint", "Paint pictures from words."),
    "edit": ("gouache.cli.edit:edit", "Change a picture: all of it, a part, or beyond its edges."),
    "vary": ("gouache.cli.vary:vary", "Paint variations of a picture."),
    "interpolate": ("gouache.cli.interpolate:interpolate", "Paint the way between two pictures."),
    "upscale": ("gouache.cli.upscale:upscale", "Make a picture larger."),
    "grid": ("gouache.cli.grid:grid", "Paint a table over two or three parameters."),
    "show": ("gouache.cli.show:show", "Print the recipe inside a picture."),
    "replay": ("gouache.cli.replay:replay", "Paint a picture again from its recipe and compare."),
    "samplers": ("gouache.cli.samplers:samplers", "List samplers and noise schedules with their aliases."),
    "data": ("gouache.cli.data:data", "Build and inspect data sets."),
    "train": ("gouache.cli.train:train", "Train one stage on captioned pictures."),
    "runs": ("gouache.cli.train:runs", "Show a training run."),
    "pack": ("gouache.cli.pack:pack", "Put the results of a training together as one model."),
    "card": ("gouache.cli.card:card", "Write a trained model's card."),
    "eval": ("gouache.cli.eval:evaluate", "Measure a model that paints stickers."),
    "likelihood": ("gouache.cli.likelihood:likelihood", "Bits of a picture with and without its caption."),
    "pull": ("gouache.cli.pull:pull", "Fetch a model from the Hugging Face hub."),
    "models": ("gouache.cli.models:models", "List the models on this machine."),
    "inspect": ("gouache.cli.inspect:inspect", "Say what a weight file or a model folder is."),
    "convert": ("gouache.cli.convert:convert", "Write a model in another layout."),
    "serve": ("gouache.cli.serve:serve", "Serve the web page and three APIs."),
    "jobs": ("gouache.cli.jobs:app", "List, cancel, retry and export the studio's jobs; back it up."),
    "doctor": ("gouache.cli.doctor:doctor", "Show versions, devices, memory and model folders."),
}

EXTRA_OF = {
    "accelerate": "train", "datasets": "data", "fastapi": "serve", "gradio": "serve", "imageio": "media",
    "multipart": "serve", "prometheus_client": "serve", "psycopg": "postgres", "resvg_py": "data",
    "sqlalchemy": "serve", "uvicorn": "serve", "vtracer": "media",
}  # fmt: skip

app = typer.Typer(
    name="gouache",
    cls=LazyGroup,
    help="Stable Diffusion, whole: paint, edit, train and serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from gouache import __version__

        typer.echo(f"gouache {__version__}")
        raise typer.Exit(0)


def main() -> None:
    """Run the command line. Errors of gouache become one message on stderr and their exit code."""
    try:
        app()
    except GouacheError as error:
        typer.echo(f"gouache: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        typer.echo(f"gouache: {_missing(error)}", err=True)
        sys.exit(MissingDependency.exit_code)


def _missing(error: ModuleNotFoundError) -> MissingDependency:
    """Which extra of gouache brings the package that an import did not find; any other is re-raised."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        raise error
    cure = f"pip install 'gouache[{EXTRA_OF[package]}]'"
    return MissingDependency("installation", given="no such package", expected=f"the package {package}", cure=cure)
