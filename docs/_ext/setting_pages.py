"""Pages of the settings: every table of a training's TOML, of a data set's file, of the server; and the environment."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from api_pages import SOURCE, dotted, heading
from command_pages import code, escaped, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gouache.data.subsets.dataset_config import DatasetFile
from gouache.environment import Variable
from gouache.pipeline.request import Request
from gouache.serve.settings import Settings
from gouache.training.config import TrainConfig

Model = type[BaseModel]
COLUMNS = ("Key", "Type", "Default", "Meaning")


def models_in(annotation: object) -> list[Model]:
    """The tables that a type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in models_in(part)]


def kind_of(annotation: Any) -> str:
    """A type in a reader's words."""
    annotation = getattr(annotation, "__value__", annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(code(repr(part)) for part in parts)
    if origin in (tuple, list):
        if parts[-1:] == (Ellipsis,) or origin is list:
            return f"list of {kind_of(parts[0])}"
        return "[" + ", ".join(kind_of(part) for part in parts) + "]"
    if origin is dict:
        return f"table of {kind_of(parts[1])}"
    if hasattr(annotation, "__metadata__"):
        return kind_of(parts[0])
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return " or ".join(dict.fromkeys(kind_of(part) for part in parts if part is not type(None)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}
    name = getattr(annotation, "__name__", str(annotation))
    return words.get(name, escaped(name))


def limits_of(field: FieldInfo) -> str:
    """The range of a number."""
    signs = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
    inner = [
        one for part in (field.annotation, *get_args(field.annotation)) for one in getattr(part, "__metadata__", ())
    ]
    found = []
    for one in (*field.metadata, *inner):
        for single in (one, *getattr(one, "metadata", ())):
            found += [f"{sign} {getattr(single, name)}" for kind, name, sign in signs if isinstance(single, kind)]
    return ", ".join(dict.fromkeys(found))


def default_of(field: FieldInfo) -> str:
    """What holds without the key."""
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return "its defaults" if models_in(field.annotation) else "computed"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        return "its defaults" if any(isinstance(one, BaseModel) for one in value) else code(list(map(str, value)))
    return code({True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value))


def tables(model: Model, path: str, mark: str, seen: set[tuple[Model, str]] | None = None) -> str:
    """A table of keys for `model`, then one for every table inside it, each once."""
    seen = set() if seen is None else seen
    rows, inner = [], []
    for name, field in model.model_fields.items():
        limits = limits_of(field)
        kind = kind_of(field.annotation) + (f", {limits}" if limits else "")
        below = models_in(field.annotation)
        # A table that its key says nothing about speaks for itself.
        meaning = field.description or (inspect.cleandoc(below[0].__doc__ or "").partition("\n\n")[0] if below else "")
        rows.append((code(name), kind, default_of(field), escaped(meaning)))
        inner += [(one, f"{path}.{name}" if path else name) for one in below]
    about = escaped((model.__doc__ or "").partition("\n\nAttributes:")[0])
    text = heading(f"``[{path}]``", mark) if path else ""
    text += about + "\n\n" + table(COLUMNS, rows, "22 22 18 38")
    for one, where in inner:
        place = (one, where.rpartition(".")[2])
        if place in seen:
            continue
        seen.add(place)
        text += tables(one, where, "~" if "." in where else "-", seen)
    return text


def readers() -> dict[str, list[str]]:
    """Members of `Variable` -> the modules that read them."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "Variable." not in text:
            continue
        tree = ast.parse(text)
        # Messages name variables, and a parent process sets some: neither reads them.
        names = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)]
        names += [
            node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Variable" and node not in names:
                modules = found.setdefault(node.attr, [])
                if dotted(file) not in modules:
                    modules.append(dotted(file))
    return found


def environment() -> str:
    """The page of the environment variables."""
    read = readers()
    rows = [
        (
            code(str(one)),
            escaped(one.does),
            escaped(one.values),
            escaped(one.otherwise),
            ", ".join(f":py:mod:`{module.removeprefix('gouache.')} <{module}>`" for module in read[one.name]),
        )
        for one in Variable
    ]
    text = heading("Environment variables", "=")
    text += "What is empty counts as not set. On the command line an option stands above its variable.\n\n"
    return text + table(("Variable", "What it does", "Values", "Not set", "Read by"), rows, "22 30 18 18 12")


def pages() -> dict[str, str]:
    """Name of a page -> its text."""
    top: dict[str, tuple[str, Model, str]] = {
        "training": ("Training", TrainConfig, "The TOML file of ``gouache train --config FILE``, and its tables."),
        "datasets": ("Data sets of several folders", DatasetFile, "The file of ``--data FILE``, TOML or JSON."),
        "request": ("Request", Request, "What a picture is painted from, in Python, HTTP and recipes alike."),
        "server": ("Server", Settings, "What ``gouache serve`` is told, as options or from a program."),
    }
    found = {}
    for name, (title, model, about) in top.items():
        found[name] = heading(title, "=") + about + "\n\n" + tables(model, "", "-")
    found["environment"] = environment()
    index = heading("Settings", "=") + ".. toctree::\n   :maxdepth: 1\n\n"
    return found | {"index": index + "".join(f"   {name}\n" for name in found)}
