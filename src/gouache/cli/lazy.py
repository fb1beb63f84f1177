"""Sub-commands that are imported when they are run, so that `gouache --help` stays quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


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
        name, command, rest = super().resolve_command(ctx, args)
        return (name, command if name is None else load_command(name, self.homes[name][0]), rest)


def load_command(name: str, home: str) -> Any:
    """Import a command from `module:attribute`."""
    module, _, attribute = home.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command
