"""Recipes for common trainings: configs that are complete but for the model to start from. They lie in `presets/`."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

from gouache.errors import ConfigError, unknown_name
from gouache.files import write_bytes

ANY = "MODEL"
"""Stands in a preset as its start where a model must be given."""
WRITTEN = "config.toml"
"""Where a run's folder keeps the config that a preset became."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe.

    Attributes:
        name: as `--preset` takes it.
        stages: that it has tables for, in the order in which they are trained.
        about: one sentence for people.
        text: the TOML file.
        start: name of the model that it starts from; `ANY` if one must be given.
    """

    name: str
    stages: tuple[str, ...]
    about: str
    text: str
    start: str

    def filled(self, start: Path) -> str:
        """The config, for the model at `start`."""
        path = json.dumps(str(start.resolve()))  # a JSON string is a TOML string
        return self.text.replace(f'start = "{self.start}"', f"start = {path}")


def presets() -> list[Preset]:
    """All of them, by name."""
    folder = package_files("gouache") / "training" / "presets"
    found = [(entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir()]
    return [_preset(name.removesuffix(".toml"), text) for name, text in sorted(found) if name.endswith(".toml")]


def _preset(name: str, text: str) -> Preset:
    """Its first line reads `# stage, stage: what it is for`."""
    listed, _, about = text.partition("\n")[0].removeprefix("#").partition(":")
    stages = tuple(stage.strip() for stage in listed.split(","))
    return Preset(name, stages, about.strip(), text, str(tomllib.loads(text)[stages[0]]["start"]))


def preset_named(name: str) -> Preset:
    """One of them.

    Raises:
        UnknownName: there is none of this name; the nearest is offered.
    """
    every = {preset.name: preset for preset in presets()}
    if name not in every:
        raise unknown_name("preset", name, every)
    return every[name]


def write_preset(preset: Preset, start: Path, run: Path) -> Path:
    """Write a preset as `run`/config.toml, for this and all further sessions; gives its path.

    Raises:
        ConfigError: the run has a config that says something else.
    """
    path, text = run / WRITTEN, preset.filled(start)
    if path.exists():
        if tomllib.loads(path.read_text(encoding="utf-8")) != tomllib.loads(text):
            raise ConfigError(
                str(path),
                given="another config than the preset's, written before or changed since",
                expected=f"what preset {preset.name} makes of {start}",
                cure=f"Go on with --config {path}, or train into another folder.",
            )
        return path
    run.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())
    return path
