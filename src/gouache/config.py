"""Frozen, keyword-only configs. An unknown key is an error that offers the nearest known key."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from gouache.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

LONGEST = 200
"""Characters of a wrong value that an error repeats."""


class Config(BaseModel):
    """Base of every config: immutable, keyword only, strict about its keys, JSON both ways.

    A network's config travels inside its weight file, so a config holds plain values only
    (numbers, strings, booleans, tuples and other configs). The docstring below a field is its description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Names of other tools, each with a sentence on what says the same here; asked where a key is unknown."""

    def __init__(self, **values: Any) -> None:
        """Validate keyword arguments.

        Raises:
            ConfigError: as in `from_dict`.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            place = type(self).__name__
            raise _unknown_below(place, error, type(self)) or config_error(place, error) from error

    # pydantic would call a constructor of ours for every config inside another one, and lose the way to it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        # pydantic's own `use_attribute_docstrings` reads every class by itself: two fifths of their import.
        for key, text in _descriptions(cls.__module__).get(cls.__qualname__, {}).items():
            if key in cls.model_fields and cls.model_fields[key].description is None:
                cls.model_fields[key].description = text

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for key, field in cls.model_fields.items():
            if field.description is not None and key in properties:
                properties[key].setdefault("description", field.description)
        return schema

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str = "") -> Self:
        """Validate plain values.

        Args:
            values: the keys and values, as read from JSON or TOML.
            where: the file they came from, for the error.

        Raises:
            ConfigError: an unknown key (with the nearest known one) or a value out of range.
        """
        place = where or cls.__name__
        for key in values:
            if key not in cls.model_fields:
                raise _unknown_key(f"{place}: key {key!r}", key, values[key], cls, cls.elsewhere)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _unknown_below(place, error, cls) or config_error(place, error) from error

    @classmethod
    def from_json(cls, text: str, *, where: str = "") -> Self:
        """Parse and validate a JSON object; errors as in `from_dict`."""
        import json

        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(where or cls.__name__, given=str(error), expected="a JSON object") from error
        if not isinstance(values, dict):
            raise ConfigError(where or cls.__name__, given=type(values).__name__, expected="a JSON object")
        return cls.from_dict(values, where=where)

    def to_json(self) -> str:
        """The config as one line of JSON; `from_json` gives an equal config back."""
        return self.model_dump_json()


@cache
def _descriptions(module: str) -> Mapping[str, Mapping[str, str]]:
    """Class of a module, by its qualified name -> field -> the docstring below it. Nothing where there is no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    return dict(_described(tree, ""))


def _described(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The classes below a node of a module, each with its fields."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield from _described(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name, dict(_fields(node))
            yield from _described(node, f"{prefix}{node.name}.")


def _fields(config: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for one, below in zip(config.body, config.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield one.target.id, inspect.cleandoc(text)


def _unknown_key(
    where: str, key: str, value: object, config: type[Config], elsewhere: Mapping[str, str]
) -> ConfigError:
    """The error for a key that a config doesn't have: what another tool's name means here, else the nearest name."""
    if key in elsewhere:  # What to do is known, and would be hard to find behind all the keys.
        expected, cure = f"a key of {config.__name__}", elsewhere[key]
    else:
        expected = f"one of the keys of {config.__name__}: {', '.join(config.model_fields)}"
        cure = unknown_name("key", key, config.model_fields).cure
    return ConfigError(where, given=_shown(value), expected=expected, cure=cure)


def _unknown_below(place: str, error: ValidationError, root: type[Config]) -> ConfigError | None:
    """The same for the first unknown key of a table inside the config; None if something else is wrong."""
    for found in error.errors():
        if found["type"] == "extra_forbidden":
            *way, key = found["loc"]
            config, names = _table_at(root, way)
            where = f"{place}: {'.'.join(names)}: key {str(key)!r}" if names else f"{place}: key {str(key)!r}"
            return _unknown_key(where, str(key), found["input"], config, root.elsewhere)
    return None


def _table_at(root: type[Config], way: list[Any]) -> tuple[type[Config], list[str]]:
    """The class of the table at `way` and the keys that lead there; pydantic's way also names the kind of a union."""
    kinds, names = [root], list[str]()
    for part in way:
        if inner := [one for kind in kinds if part in kind.model_fields for one in _inside(kind, part)]:
            kinds = inner
            names.append(str(part))
    return kinds[0], names


def _inside(config: type[Config], key: str) -> list[type[Config]]:
    return _configs(config.model_fields[key].annotation)


def _configs(annotation: object) -> list[type[Config]]:
    """The configs that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in get_args(annotation) for found in _configs(part)]


def config_error(place: str, error: ValidationError) -> ConfigError:
    """Turn pydantic's first complaint into a `ConfigError` that says where and what was expected."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if str(part).strip())  # blank: a tag of one of several kinds
    return ConfigError(
        f"{place}: {path}" if path else place,
        given=_shown(first.get("input")),
        expected=expectation(first["msg"]),
        cure=f"{error.error_count() - 1} more values are wrong." if error.error_count() > 1 else "",
    )


def expectation(message: str) -> str:
    """What a message of pydantic asks for, as the noun phrase that stands behind "expected": "a valid integer"."""
    message = message.removeprefix("Value error, ")
    if message == "Field required":
        return "a value"
    if message.startswith("Extra inputs"):
        return "no such key"
    phrase = re.sub(r"^[A-Z][a-z]+ should (?:be |have )?", "", message).partition(" or instance of ")[0]
    if phrase.startswith(("greater than", "less than")):
        return f"a number {phrase}"
    return phrase[:1].lower() + phrase[1:] if phrase[1:2].islower() else phrase


def _shown(value: object) -> str:
    """A value as an error repeats it."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
