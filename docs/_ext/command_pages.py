"""Pages of the command line: one for every command, from the command itself."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from api_pages import heading
from pydantic.fields import FieldInfo

from gouache.cli.main import LazyGroup, load_command
from gouache.cli.options import option_specs
from gouache.models.configs import GenerationDefaults
from gouache.pipeline.request import Request

KINDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
TOLD = re.compile(r" ?(?:\[default: ([^]]+)\]|Default: (.+?)\.(?=\s|$))")
"""A default at the end of a help text: it moves into the column."""
AMONG = re.compile(r"\b[Bb]y default (?:they lie )?([^.;]+)")
"""One in the middle of a sentence: it stands in both places."""
REQUEST = {spec.name: spec for spec in option_specs()}
"""Options that stand for fields of a request."""


def escaped(text: str) -> str:
    """Plain text as reStructuredText: code between backticks stays code."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    return " ".join("".join(parts).split())


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]], widths: str) -> str:
    """A table whose cells are reStructuredText."""
    text = f".. list-table::\n   :header-rows: 1\n   :widths: {widths}\n   :class: reference\n\n"
    for row in (columns, *rows):
        text += "".join(f"   {'* -' if at == 0 else '  -'} {cell}\n" for at, cell in enumerate(row))
    return text + "\n"


def code(text: object) -> str:
    """Text as code; nothing for nothing."""
    words = " ".join(str(text).split())
    return f"``{words}``" if words else ""


def values_of(param: Any) -> str:
    """What an option takes."""
    if getattr(param, "is_flag", False):
        return "switch"
    annotation = param.type_descriptor.annotation
    choices = (
        get_args(annotation) if get_origin(annotation) is Literal else getattr(annotation, "__members__", {}).values()
    )
    if choices:
        return ", ".join(code(getattr(one, "value", one)) for one in choices)
    kind = code(param.metavar or KINDS.get(annotation, "VALUE"))
    least, most = param.min, param.max
    if least is not None or most is not None:
        kind += f" {least} to {most}" if None not in (least, most) else f" ≤ {most}" if least is None else f" ≥ {least}"
    return kind + (", repeatable" if getattr(param, "multiple", False) else "")


def default_of(param: Any, told: str) -> str:
    """What holds if an option isn't given.

    Args:
        param: the option.
        told: the default that its help tells, if any.
    """
    if param.required:
        return "required"
    shown, value = getattr(param, "show_default", None), param.default
    if isinstance(shown, str) or told:
        return escaped(shown if isinstance(shown, str) else told)
    if value is None and (field := of_request(param)) is not None:
        value = field.default
        if value is None and param.name in GenerationDefaults.model_fields:
            return "the model's"
    if isinstance(value, bool) or (value is None and getattr(param, "is_flag", False)):
        return "on" if value else "off"
    return (code(value) if isinstance(value, str | int | float | Path) else "") or "none"


def of_request(param: Any) -> FieldInfo | None:
    """The field of a request that an option stands for."""
    spec = REQUEST.get(param.name)
    if spec is None or (param.help or "") != spec.help:
        return None
    found = Request.model_fields[spec.path[0]]
    for name in spec.path[1:]:
        [group] = [kind for kind in get_args(found.annotation) if kind is not type(None)]
        found = group.model_fields[name]
    return found


def option_row(param: Any) -> tuple[str, ...]:
    """The row of one option or argument."""
    if param.param_type_name == "argument":
        names = code(param.metavar or param.name.upper())
    else:
        names = ", ".join(code(one) for one in (*param.opts, *param.secondary_opts))
    text, told = getattr(param, "help", None) or "", ""
    if found := TOLD.search(text):
        text, told = f"{text[: found.start()]}{text[found.end() :]}", found[1] or found[2]
    elif found := AMONG.search(text):
        told = found[1]
    if variable := getattr(param, "envvar", None):
        text += f" Environment variable: `{variable}`."
    return names, values_of(param), default_of(param, told), escaped(text)


def help_text(text: str) -> str:
    """The help with its examples as blocks: a paragraph that is indented, or that begins with `gouache` or `$`."""
    found = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\b", ""))):
        lines = [line for line in paragraph.splitlines() if line.strip()]
        if lines and (lines[0].startswith((" ", "gouache ", "$ "))):
            found += ".. code-block:: text\n\n" + "".join(f"   {line.strip()}\n" for line in lines) + "\n"
        else:
            found += escaped(paragraph) + "\n\n"
    return found


def section(command: Any, words: list[str], mark: str) -> str:
    """One command with its options, by panel; then the commands inside it."""
    name = " ".join(words)
    text = heading(name, mark) + help_text(command.help or "")
    inner = getattr(command, "commands", {})
    if not inner:
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        forms = [one.metavar or (one.name.upper() if one.required else f"[{one.name.upper()}]") for one in arguments]
        given = "".join(
            f" {form}" + ("..." if one.nargs == -1 else "") for form, one in zip(forms, arguments, strict=True)
        )
        text += f".. code-block:: text\n\n   {name} [OPTIONS]{given}\n\n"
    panels: dict[str, list[tuple[str, ...]]] = {}
    for param in command.params:
        if getattr(param, "hidden", False) or param.name in ("help", "install_completion", "show_completion"):
            continue
        usual = "Arguments" if param.param_type_name == "argument" else "Options"
        panels.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(option_row(param))
    columns = ("Name", "Value", "Default", "What it does")
    for panel, rows in panels.items():
        text += f".. rubric:: {panel}\n\n" + table(columns, rows, "26 22 14 38")
    for inside, one in inner.items():
        if not one.hidden:
            text += section(one, [*words, inside], "-" if mark == "=" else "~")
    return text


def pages() -> dict[str, str]:
    """Name of a command -> its page; `index` lists them."""
    found = {}
    rows = []
    for name, (home, line) in LazyGroup.homes.items():
        found[name] = section(load_command(name, home), ["gouache", name], "=")
        rows.append((f":doc:`gouache {name} <{name}>`", escaped(line)))
    index = heading("Commands", "=") + "``gouache COMMAND --help`` prints the same.\n\n"
    index += table(("Command", "What it does"), rows, "30 70")
    index += ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in found)
    return found | {"index": index}
