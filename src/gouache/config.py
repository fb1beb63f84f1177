"""Frozen, keyword-only configs. An unknown key is an error that offers the nearest known key."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gouache.errors import ConfigError, unknown_name


class Config(BaseModel):
    """Base of every config: immutable, keyword only, strict about its keys, JSON both ways.

    A network's config travels inside its weight file, so a config holds plain values only
    (numbers, strings, booleans, tuples and other configs).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

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
                raise ConfigError(
                    f"{place}: key {key!r}",
                    given=repr(values[key]),
                    expected=f"one of the keys of {cls.__name__}: {', '.join(cls.model_fields)}",
                    cure=unknown_name("key", key, cls.model_fields).cure,
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise config_error(place, error) from error

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


def config_error(place: str, error: ValidationError) -> ConfigError:
    """Turn pydantic's first complaint into a `ConfigError` that says where and what was expected."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(
        f"{place}: {path}" if path else place,
        given=repr(first.get("input")),
        expected=message[:1].lower() + message[1:],
        cure=f"{error.error_count() - 1} more values are wrong." if error.error_count() > 1 else "",
    )
