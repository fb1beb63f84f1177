"""The `gouache` command: one sub-command a file. Nothing here, nor at the top of those files, imports torch."""

from __future__ import annotations

import sys

import typer

from gouache import __version__
from gouache.cli.samplers import samplers
from gouache.errors import GouacheError

app = typer.Typer(
    name="gouache",
    help="Stable Diffusion, whole: paint, edit, train and serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        typer.echo(f"gouache {__version__}")
        raise typer.Exit(0)


app.command()(samplers)


def main() -> None:
    """Run the command line. Errors of gouache become one message on stderr and their exit code."""
    try:
        app()
    except GouacheError as error:
        typer.echo(f"gouache: {error}", err=True)
        sys.exit(error.exit_code)
