"""`gouache finetune` as a user meets it: from a folder to the line that paints, stopped, gone on with, and refused."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.test_train import run_here
from tests.training.test_from_packed import small_model

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.save import write_model
from gouache.models.configs import GenerationDefaults
from gouache.training.config import read_config

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def pictures(folder: Path, count: int, *, captioned: bool = True) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        picture = Image.new("RGB", (40, 32), (30 * i, 90, 200))
        picture.paste((255, 20 * i, 0), (8, 8, 24, 16 + i))
        picture.save(folder / f"red-box {i}.png")
        if captioned:
            (folder / f"red-box {i}.txt").write_text(f"a red box number {i}\n")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder but for a small model named "small", and an empty folder to be in."""
    model = replace(small_model(), defaults=GenerationDefaults(width=32, height=32))
    write_model(model, tmp_path / "data" / "models" / "small", "gouache")
    monkeypatch.setenv("GOUACHE_DATA", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def test_five_pictures_become_a_lora_and_the_printed_line_paints_with_it(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 5)
    code, out, said = run_here("finetune", "small", mine, "-o", "boxes", "--minutes", "0.01")
    assert code == 0, said
    place = home / "models" / "lora" / "boxes.safetensors"
    path, line = out.splitlines()
    assert path == str(place)
    assert "pictures: 5; mirrored half of the time" in said
    assert "learning 100 %" in said
    (sheet,) = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("sample pictures")]
    assert Image.open(sheet).size[0] > 32
    command = shlex.split(line)
    assert command == ["gouache", "paint", "a red box number 0 <lora:boxes:1>", "--model", "small"]
    code, out, said = run_here(*command[1:])
    assert code == 0, said
    painted = Image.open(out.split()[-1])
    assert "boxes" in str(painted.info)


def test_one_picture_and_a_whole_model(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 1)
    code, out, said = run_here("finetune", "small", mine, "-o", "boxed", "--minutes", "0.01", "--method", "whole")
    assert code == 0, said
    path, line = out.splitlines()
    assert path == str(home / "models" / "boxed")
    assert line == "gouache paint 'a red box number 0' --model boxed"
    assert (home / "finetune" / "boxed" / "prior" / "last.safetensors").is_file()
    code, _, said = run_here(*shlex.split(line)[1:], "--steps", "2")
    assert code == 0, said


def test_a_path_as_target(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 1)
    code, out, said = run_here("finetune", "small", mine, "-o", tmp_path / "here" / "x", "--minutes", "0.001")
    assert code == 0, said
    assert out.splitlines()[0] == str(tmp_path / "here" / "x.safetensors")
    assert str(home / "models" / "lora") in said


def test_the_same_command_goes_on_and_another_is_refused(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 3)
    place = home / "models" / "lora" / "boxes.safetensors"
    for minutes in ("0.005", "0.02"):
        code, _, said = run_here("finetune", "small", mine, "-o", "boxes", "--minutes", minutes)
        assert code == 0, said
    assert load_tensors(place)
    seen = sorted((home / "finetune" / "boxes" / "lora" / "samples").iterdir())
    assert len(seen) == 2
    (mine / "red-box 9.txt").write_text("nothing")
    code, _, said = run_here("finetune", "small", mine, "-o", "boxes")
    assert code == 2
    assert "started with other pictures" in said
    place.with_name("taken.safetensors").write_bytes(place.read_bytes())
    code, _, said = run_here("finetune", "small", mine, "-o", "taken")
    assert code == 2
    assert "taken.safetensors, which is there already" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--caption", "a photo of sks dog"), "a photo of sks dog"),
        (("--caption-from", "names"), "red box"),
        (("--caption-from", "folder"), "my dog"),
        (("--caption-from", "names", "--trigger", "sks"), "sks, red box"),
    ],
)
def test_pictures_without_captions_are_given_some(
    home: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    mine = pictures(tmp_path / "my_dog", 2, captioned=False)
    code, out, said = run_here("finetune", "small", mine, "-o", "dog", "--minutes", "0.001", *options)
    assert code == 0, said
    assert f"{expected} <lora:dog:1>" in out
    records = (home / "finetune" / "dog" / "pictures-32" / "records.jsonl").read_text()
    assert records.count(f'"{expected}"') == 2
    assert not list(mine.glob("*.txt"))


@pytest.mark.usefixtures("home")
def test_what_cant_be_learned_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    silent = pictures(tmp_path / "silent", 2, captioned=False)
    (tmp_path / "empty").mkdir()
    refused = {
        ("small", silent, "-o", "x"): "2 pictures, no caption, expected captions. Say what they show: --caption",
        (tmp_path / "empty", "-o", "x"): "nothing in it, expected pictures",
        (tmp_path / "nowhere", "-o", "x"): "no such folder",
        ("nomodel", silent, "-o", "x"): "model 'nomodel'",
        ("small", silent, "-o", "a:b", "--caption", "x"): "out: given 'a:b'",
        ("small", silent, "-o", "x", "--caption", "y", "--caption-from", "names"): "expected one of the two",
        ("a", "b", "c", "-o", "x"): "expected a model and a folder of pictures",
    }
    for arguments, sentence in refused.items():
        code, _, said = run_here("finetune", *arguments)
        assert code in (2, 3), said
        assert sentence in said
    assert not (tmp_path / "data" / "finetune").exists()


def test_a_caption_that_speaks_of_left_and_right_forbids_mirror_images(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 2)
    (mine / "red-box 1.txt").write_text("a red box at the left")
    code, _, said = run_here("finetune", "small", mine, "-o", "x", "--minutes", "0.001")
    assert code == 0, said
    assert "never mirrored" in said
    assert not read_config(home / "finetune" / "x" / "config.toml", "lora").data.flip


@pytest.mark.slow
def test_ctrl_c_leaves_a_lora_and_the_same_command_goes_on(home: Path, tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 2)
    command = [sys.executable, "-m", "gouache", "finetune", "small", str(mine), "-o", "x", "--minutes", "0.5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("learning"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped; this is what is learned so far" in said
    assert out.splitlines()[0] == str(home / "models" / "lora" / "x.safetensors")
    before = load_tensors(home / "models" / "lora" / "x.safetensors")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    after = load_tensors(home / "models" / "lora" / "x.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)
