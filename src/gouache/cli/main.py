"""The `gouache` command.

Sub-commands are imported when they are run, so that `gouache --help` stays quick and needs no torch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from gouache.environment import sleep_where_crowded
from gouache.errors import GouacheError, MissingDependency

VALUE_LEFT_OUT = {"--ray": "auto"}
"""Options whose value may be left out -> what it is then. Typer has no such options."""
LASTING = ("serve", "worker")
"""Commands that stay while the load of the machine comes and goes."""


def with_values(args: list[str]) -> list[str]:
    """Arguments in which each of these options has a value.

    >>> with_values(["paint", "--ray", "-o", "out"])
    ['paint', '--ray', 'auto', '-o', 'out']
    """
    found: list[str] = []
    for one, after in zip(args, [*args[1:], "-"], strict=True):
        found.append(one)
        if one in VALUE_LEFT_OUT and after.startswith("-"):
            found.append(VALUE_LEFT_OUT[one])
    return found


class LazyGroup(TyperGroup):
    """A group whose help comes from a table, and whose commands are imported only to be run or completed.

    The home of a command is a module and the name of a plain function or of a `typer.Typer` in it.
    """

    homes: ClassVar[dict[str, tuple[str, str]]] = {}
    """Command -> (module:attribute, one line of help)."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Every command, in the order of the table."""
        return list(self.homes)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """A stand-in that knows its line of help; None for an unknown name."""
        home = self.homes.get(cmd_name)
        return None if home is None else TyperCommand(cmd_name, help=home[1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is really run."""
        name, command, rest = super().resolve_command(ctx, with_values(args))
        if name not in LASTING:
            sleep_where_crowded()
        return (name, command if name is None else load_command(name, self.homes[name][0]), rest)


@contextmanager
def importing() -> Iterator[None]:
    """Import without a look for garbage meanwhile: what modules make stays, and torch's make so much of it that looking
    through it again and again would be a tenth of the start."""
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        gc.enable()


def load_command(name: str, home: str) -> Any:
    """Import a command from `module:attribute`."""
    module, _, attribute = home.partition(":")
    with importing():
        found = getattr(import_module(module), attribute)
    values: dict[str, int] = getattr(found, "values", {})
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        single.command(name, cls=getattr(found, "command_class", None))(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    for option in command.params:
        if option.name in values:
            option.nargs = values[option.name]
    return command


LazyGroup.homes = {
    "paint": ("gouache.cli.paint:paint", "Generate images from a prompt."),
    "edit": ("gouache.cli.edit:edit", "Edit an image: img2img, inpainting or outpainting."),
    "vary": ("gouache.cli.edit:vary", "Generate variations of an image."),
    "interpolate": ("gouache.cli.interpolate:interpolate", "Interpolate between two prompts, seeds or images."),
    "upscale": ("gouache.cli.upscale:upscale", "Upscale an image."),
    "grid": ("gouache.cli.grid:grid", "Generate an X/Y/Z plot of two or three parameters."),
    "explain": ("gouache.cli.explain:explain", "Write a page about how an image was painted."),
    "show": ("gouache.cli.recipes:show", "Print the generation parameters stored in an image."),
    "replay": ("gouache.cli.recipes:replay", "Regenerate an image from its recipe and compare."),
    "samplers": ("gouache.cli.info:samplers", "List samplers and noise schedules with their aliases."),
    "data": ("gouache.cli.data:data", "Build and inspect data sets."),
    "finetune": ("gouache.cli.finetune:finetune", "Teach a model a style or a thing from your own pictures."),
    "train": ("gouache.cli.train:train", "Train one stage on captioned images."),
    "runs": ("gouache.cli.train:runs", "Show a training run."),
    "pack": ("gouache.cli.train:pack", "Package the results of a training run as one model."),
    "card": ("gouache.cli.evaluate:card", "Write a trained model's card."),
    "eval": ("gouache.cli.evaluate:evaluate", "Evaluate a sticker model."),
    "likelihood": ("gouache.cli.evaluate:likelihood", "Bits of an image with and without its caption."),
    "pull": ("gouache.cli.models:pull", "Download a model from the Hugging Face Hub."),
    "models": ("gouache.cli.models:models", "List the models on this machine."),
    "inspect": ("gouache.cli.inspect:inspect", "Identify a weight file or a model folder."),
    "convert": ("gouache.cli.inspect:convert", "Convert a model to another layout."),
    "merge": ("gouache.cli.merge:merge", "Merge models, LoRA files, or write a difference as a LoRA."),
    "serve": ("gouache.cli.serving.serve:serve", "Serve the web page and three APIs."),
    "worker": ("gouache.cli.serving.serve:worker", "Paint a studio's jobs on this machine, or on a cluster of Ray."),
    "accounts": ("gouache.cli.serving.accounts:app", "Add, list and revoke the studio's users and their tokens."),
    "jobs": ("gouache.cli.serving.jobs:app", "List, cancel, retry and export the studio's jobs; back it up."),
    "doctor": ("gouache.cli.info:doctor", "Show versions, devices, memory and model folders."),
}

EXTRA_OF = {
    "accelerate": "train",
    "datasets": "data",
    "fastapi": "serve",
    "imageio": "media",
    "multipart": "serve",
    "prometheus_client": "serve",
    "psycopg": "postgres",
    "ray": "scale",
    "resvg_py": "data",
    "s3fs": "scale",
    "sqlalchemy": "serve",
    "uvicorn": "serve",
    "vtracer": "media",
}

app = typer.Typer(
    name="gouache",
    cls=LazyGroup,
    help="Stable Diffusion: generate, edit, train and serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
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
