"""The recipes of `--preset`: each is a config without a mistake, and a run keeps what it became."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gouache.errors import ConfigError, UnknownName
from gouache.training.config import read_config, stage_config, stage_tables
from gouache.training.presets import ANY, Preset, preset_named, presets, write_preset


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_every_preset_is_a_config_for_its_stages(preset: Preset, tmp_path: Path) -> None:
    path = write_preset(preset, tmp_path / 'a "model"', tmp_path / "run")
    tables = tomllib.loads(preset.text)
    assert [name for name in tables if name in stage_tables()] == list(preset.stages)
    for stage in preset.stages:
        table = stage_config(read_config(path, stage), stage)
        assert getattr(table, "start", None) == (tmp_path / 'a "model"').resolve()
        assert table.loop.precision != "fp32", "nobody wants fp32 who asks for a recipe"
    assert preset.about.endswith(".")
    assert len(preset.about) < 160


def test_a_run_keeps_its_config(tmp_path: Path) -> None:
    preset = next(preset for preset in presets() if preset.start == ANY)
    path = write_preset(preset, tmp_path / "model", tmp_path / "run")
    path.write_text("# mine\n" + path.read_text())
    assert write_preset(preset, tmp_path / "model", tmp_path / "run") == path
    assert path.read_text().startswith("# mine")
    with pytest.raises(ConfigError, match=r"another config.*--config .*config\.toml"):
        write_preset(preset, tmp_path / "another model", tmp_path / "run")


def test_an_unknown_preset_gets_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'pocket-whole'"):
        preset_named("pocket-hole")
