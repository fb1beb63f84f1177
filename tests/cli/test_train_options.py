"""`gouache train STAGE` without a config: options made from the stage's table, above a file's where both speak."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.training.test_from_packed import small_model
from tests.training.test_tuning_packed import squares
from typer.testing import CliRunner

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.save import write_model
from gouache.cli.main import app
from gouache.cli.train_options import SHARED, config_with, stage_options
from gouache.errors import InvalidInput
from gouache.training.config import read_config, stage_tables


def option(stage: str, flag: str) -> object:
    return next(one for one in stage_options(stage) if one.flag == flag)


def test_every_stage_has_options_with_words_of_their_own() -> None:
    for stage in stage_tables():
        options = stage_options(stage)
        assert len({one.flag for one in options}) == len(options)
        assert {key for keys in SHARED.values() for key in keys} <= {one.path[-1] for one in options}
    words = {one.flag: one.help for one in stage_options("lora")}
    assert words["--rank"].startswith("Of the changes of linear layers")
    assert words["--rank"].endswith("[default: 16]")


def test_options_stand_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'[data]\nsize = 64\n[lora]\nstart = "{tmp_path}"\nrank = 2\n[lora.loop]\nimages = 9\n')
    given = {option("lora", "--rank"): 5, option("lora", "--layers"): "a*, b*", option("lora", "--learning-rate"): 0.5}
    written = config_with(given, "lora", file, None, tmp_path / "run")  # type: ignore[arg-type]
    lora = read_config(written, "lora").lora
    assert lora is not None
    assert (lora.rank, lora.layers, lora.optimizer.learning_rate, lora.loop.images) == (5, ("a*", "b*"), 0.5, 9)
    assert tomllib.loads(written.read_text())["data"] == {"size": 64}
    assert config_with({}, "lora", file, None, tmp_path / "run") == file


@pytest.mark.slow
def test_the_command_trains_without_a_config(tmp_path: Path) -> None:
    write_model(small_model(), tmp_path / "small", "gouache")
    squares(tmp_path / "mine", 5)
    command = [sys.executable, "-m", "gouache", "train", "lora", "--model", "small", "--data", "mine", "--out", "run"]
    options = ["--rank", "3", "--size", "32", "--images", "8", "--no-flip", "--batch-size", "4"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = load_tensors(tmp_path / "run" / "lora" / "last.safetensors")
    assert max(value.shape[0] for name, value in saved.items() if name.endswith("lora_down.weight")) == 3
    wrong = subprocess.run([*command, "--rank", "0"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (wrong.returncode == 0, "rank" in wrong.stderr) == (False, True)


def test_dreambooth_wants_the_class(tmp_path: Path) -> None:
    command = ["train", "dreambooth", "--model", "small", "--data", "mine", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InvalidInput)
    assert result.exception.where == "--class-prompt"


@pytest.mark.slow
def test_dreambooth_paints_the_class_first_and_learns_both(tmp_path: Path) -> None:
    write_model(small_model(), tmp_path / "small", "gouache")
    for path in squares(tmp_path / "mine", 5).glob("*.txt"):
        path.unlink()
    command = [
        sys.executable,
        "-m",
        "gouache",
        "train",
        "dreambooth",
        "--model",
        "small",
        "--data",
        "mine",
        "--out",
        "run",
    ]
    options = ["--missing-caption", "a sks square", "--class-prompt", "a square", "--class-pictures", "2"]
    few = ["--rank", "3", "--size", "32", "--images", "8", "--no-flip", "--batch-size", "4"]
    done = subprocess.run([*command, *options, *few], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").glob("class-pictures-*/**/*.png"))) == 2
    tags = json.loads(read_header(tmp_path / "run" / "lora" / "last.safetensors").metadata["ss_tag_frequency"])
    assert tags == {"mine": {"a sks square": 5}}
