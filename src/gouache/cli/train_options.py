"""Options of `gouache train STAGE` made from the fields of the stage's table, so that most trainings need no config.

A field `caption_dropout` becomes ``--caption-dropout``; of the tables that all stages share, the keys in `SHARED`
have an option too. What is given on the command line stands above the config's file.
"""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from gouache.config import Config
from gouache.errors import InvalidInput

CONFIG = "options.toml"
"""Where a run's folder keeps the config that the options became."""
SHARED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("data",): ("size", "flip", "seed", "missing_caption"),
    ("STAGE", "loop"): ("batch_size", "images", "precision", "seed", "patience"),
    ("STAGE", "optimizer"): ("learning_rate", "schedule", "accumulation"),
}
"""Keys outside a stage's own table that have an option; a name that was there before is left out."""
META = "gouache.train.options"
"""Where the context of the command holds what was given of a stage's options."""
DREAMBOOTH, ITS_STAGE, ITS_OPTION = "dreambooth", "lora", "class_prompt"
"""DreamBooth (Ruiz et al. 2023) is a stage with pictures of the class beside those to learn."""
WITHOUT = ("start",)
"""Fields whose option the command itself has."""


@dataclass(frozen=True, slots=True)
class StageOption:
    """One option.

    Attributes:
        path: of its key in the config, such as ("lora", "rank").
        kind: what one value is read as.
        many: whether several are given, with commas between.
        help: the field's own words.
        metavar: what help shows for the value.
    """

    path: tuple[str, ...]
    kind: type
    many: bool
    help: str
    metavar: str | None = None

    @property
    def name(self) -> str:
        """The option's variable, which no option of the command itself has."""
        return f"of_table_{self.path[-1]}"

    @property
    def flag(self) -> str:
        """``--caption-dropout``."""
        return "--" + self.path[-1].replace("_", "-")

    def parameter(self) -> inspect.Parameter:
        """It, as a parameter of a command."""
        flag = f"{self.flag}/--no-{self.flag[2:]}" if self.kind is bool and not self.many else self.flag
        panel = "Of this stage" if len(self.path) == 2 and self.path[0] != "data" else "Of all stages"
        option = typer.Option(flag, help=self.help, metavar=self.metavar, show_default=False, rich_help_panel=panel)
        kind: Any = str if self.many else self.kind
        annotation = Annotated[kind | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def stage_options(stage: str) -> list[StageOption]:
    """Every option that the tables of a stage give."""
    from gouache.training.config import TrainConfig

    tables = [kind for kind in get_args(TrainConfig.model_fields[stage].annotation) if kind is not type(None)]
    table: type[Config] = tables[0]
    found = {one.path[-1]: one for one in _of_table(table, (stage,), tuple(table.model_fields))}
    for way, keys in SHARED.items():
        owner: type[Config] = TrainConfig
        path = tuple(stage if part == "STAGE" else part for part in way)
        for part in way:
            owner = table if part == "STAGE" else _table(owner.model_fields[part])
        for one in _of_table(owner, path, keys):
            found.setdefault(one.path[-1], one)
    return list(found.values())


def _of_table(table: type[Config], path: tuple[str, ...], keys: tuple[str, ...]) -> Iterator[StageOption]:
    for key in keys:
        if key in WITHOUT:
            continue
        field = table.model_fields[key]
        kind, many, metavar = _kind(field.annotation)
        if kind is not None:
            silent = field.is_required() or field.default in (None, "", ()) or isinstance(field.default, bool)
            usual = "" if silent else f" [default: {field.default}]"
            yield StageOption((*path, key), kind, many, (field.description or "") + usual, metavar)


def _table(field: FieldInfo) -> type[Config]:
    kind = field.annotation
    assert isinstance(kind, type), "SHARED names tables only"
    assert issubclass(kind, Config), "SHARED names tables only"
    return kind


def _kind(annotation: Any) -> tuple[type | None, bool, str | None]:
    """How the command line reads a value, whether there are several, and what help shows; None where it can't."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (Union, types.UnionType):
        return _kind(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return str, False, "|".join(map(str, parts))
    if origin is tuple:
        return _kind(parts[0])[0], True, "VALUE[,VALUE]"
    plain = {str: str, int: int, float: float, bool: bool, Path: str}
    return plain.get(annotation), False, None


class StageCommand(TyperCommand):
    """The command `train`, which has the options of the stage that it is given as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; those of the stage's table go into the context, for `config_with`."""
        from gouache.training.config import stage_tables

        is_dreambooth = DREAMBOOTH in args
        args = [ITS_STAGE if arg == DREAMBOOTH else arg for arg in args]
        stage = next((arg for arg in args if arg in stage_tables()), None)
        taken = {name for param in self.params for name in param.opts}
        options = [one for one in stage_options(stage) if one.flag not in taken] if stage is not None else []
        self.params = [*self.params, *_params(options)]
        rest = super().parse_args(ctx, args)
        values = {one: ctx.params.pop(one.name, None) for one in options}
        given = {one: value for one, value in values.items() if value is not None}
        if is_dreambooth and ITS_OPTION not in {one.path[-1] for one in given}:
            raise InvalidInput(
                "--class-prompt",
                given="none",
                expected='what such things are called, for example "a photo of a dog"',
                cure="Pictures of it are painted first, so that the model keeps its other dogs. Without: train lora.",
            )
        ctx.meta[META] = given
        return rest


def _params(options: list[StageOption]) -> list[Any]:
    """The options as typer makes them."""

    def _nothing(**values: object) -> None:
        del values

    parameters = [one.parameter() for one in options]
    _nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    _nothing.__annotations__ = {one.name: one.annotation for one in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(_nothing)
    own = {one.name for one in options}
    return [param for param in typer.main.get_command(app).params if param.name in own]


def config_with(
    options: Mapping[StageOption, Any], stage: str, config: Path | None, start: Path | None, out: Path
) -> Path:
    """A config's file for what the command line says, above what `config` says; `config` itself if it says nothing.

    Args:
        options: of the stage's tables that were given.
        stage: to train.
        config: a TOML file, if there is one.
        start: the model that is named with --start.
        out: folder of the run, where the config is written.

    Raises:
        InvalidInput: a list can't be read.
    """
    if not options and start is None:
        assert config is not None, "one of both is given"
        return config
    from gouache.training.tuning.planner import to_toml, traits_of

    tables: dict[str, Any] = {} if config is None else tomllib.loads(config.read_text(encoding="utf-8"))
    if start is not None:
        tables.setdefault(stage, {})["start"] = str(start.resolve())
    if config is None and start is not None:
        tables["data"] = {"size": traits_of(start).side}
    for option, value in options.items():
        table = tables
        for part in option.path[:-1]:
            table = table.setdefault(part, {})
        table[option.path[-1]] = _values(option, value) if option.many else value
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{stage}-{CONFIG}"
    path.write_text(to_toml(_flat(tables)), encoding="utf-8")
    return path


def _values(option: StageOption, text: str) -> list[Any]:
    try:
        return [option.kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidInput(option.flag, given=repr(text), expected="values with commas between") from error


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Tables by their dotted names, each with its plain values only."""
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        found[f"{prefix}{name}"] = plain
        found |= _flat(inner, f"{prefix}{name}.")
    return found
