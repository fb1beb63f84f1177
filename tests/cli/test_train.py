"""`gouache train`, `runs` and `pack` as a user meets them: progress, stopping, going on, bad input."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.cli.main import app
from gouache.errors import GouacheError
from gouache.training.run import train_stage
from gouache.training.runlog import read_log
from gouache.training.stage import Preparing
from gouache.training.state import checkpoints

CONFIG = """
[data]
size = 16
[vae.network]
image_channels = 4
latent_channels = 4
channels = [8, 16]
layers_per_level = 1
norm_groups = 4
patch_size = 2
middle_attention = false
scale = 1.0
[vae.loop]
batch_size = 4
images = 16
log_images = 8
"""


def run_here(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process, which is quicker; gives exit code, standard output and standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = CliRunner().invoke(app, [*map(str, arguments)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(result.exception, GouacheError):
        return result.exception.exit_code, result.stdout, f"{result.stderr}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def gouache(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gouache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed data set of eight pictures and a config."""
    folder = tmp_path_factory.mktemp("train")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(8):
        pixels = np.full((16, 16, 4), 255, np.uint8)
        pixels[4:12, 2 : 4 + i] = (30 * i, 90, 200 - 20 * i, 255)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"a bar of length {i}")
    code, _, said = run_here("data", "build", "pictures", folder / "set", "--from", pictures, "--size", "16")
    assert code == 0, said
    (folder / "config.toml").write_text(CONFIG)
    return folder


def test_a_stage_trains_is_summed_up_and_goes_on(place: Path) -> None:
    arguments = ("train", "vae", "--config", place / "config.toml", "--data", place / "set", "--out", place / "run")
    first = gouache(*arguments, "--minutes", "1e-9")
    assert first.returncode == 0, first.stderr
    assert "4/16 images" in first.stderr
    assert not first.stdout
    code, _, said = run_here(*arguments)
    assert code == 0, said
    assert "16/16 images" in said
    assert "saved 000000000016.safetensors" in said
    summary = json.loads(run_here("runs", place / "run", "--json")[1])[0]
    assert summary["stage"] == "vae"
    assert summary["images_seen"] == 16
    with Image.open(summary["curves"]) as curves:
        assert curves.width == 900


def test_presets_are_listed_and_one_takes_the_place_of_a_config(place: Path) -> None:
    code, listed, _ = run_here("train", "--presets")
    assert code == 0
    assert "pocket-whole: gouache train prior|denoiser" in listed
    data = ("--data", place / "set", "--out", place / "preset")
    for arguments, expected in (
        ((), r"given neither, expected a TOML file, or the name of a recipe"),
        (("--preset", "sd15-whole", "--config", place / "config.toml"), "given both"),
        (("--preset", "sd15-whole"), "--start: given none"),
        (("--preset", "pocket-whole", "--start", place / "nothing"), "nothing"),
    ):
        code, _, said = run_here("train", "denoiser", *data, *arguments)
        assert code in (2, 3)
        assert expected in said
    assert run_here("train", "vae", *data, "--preset", "sd15-whole")[2].endswith("expected stage denoiser.")
    assert not (place / "preset").exists()


@pytest.mark.slow
def test_the_shipped_model_is_trained_by_a_preset_alone(place: Path) -> None:
    arguments = ("--preset", "pocket-whole", "--data", place / "pictures", "--out", place / "pocket")
    done = gouache("train", "denoiser", *arguments, "--minutes", "0.001")
    assert done.returncode == 0, done.stderr
    assert "16/100,000,000 images" in done.stderr
    packed = gouache("pack", place / "pocket", place / "tuned", "--config", place / "pocket" / "config.toml")
    assert packed.returncode == 0, packed.stderr
    painted = gouache("paint", "a bar", "--model", place / "tuned", "-o", place / "bar.png", "--steps", "1")
    assert painted.returncode == 0, painted.stderr


@pytest.mark.slow
def test_of_several_processes_one_tells_how_it_goes(place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    arguments = (
        "train",
        "vae",
        "--config",
        place / "config.toml",
        "--data",
        place / "pictures",
        "--out",
        place / "two",
    )
    command = [*launcher, f"--master_port={port}", "-m", "gouache", *map(str, arguments)]
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " images" in line or "pictures" in line]
    assert [line.partition(" ")[0] for line in lines] == [f"{place / 'two' / 'pictures-16'}:", "8/16", "16/16"]
    assert not done.stdout


@pytest.mark.parametrize("moments", [(120,), pytest.param((24, 120), marks=pytest.mark.slow)], ids=["once", "twice"])
def test_a_run_killed_at_any_moment_ends_as_the_one_that_was_not(place: Path, moments: tuple[int, ...]) -> None:
    """Kill -9 between or amid the checkpoints that follow every step; the end is the same, bit for bit."""
    data, place = place / "set", place / f"killed {len(moments)}"
    place.mkdir()
    config = place / "often.toml"
    config.write_text(CONFIG.replace("images = 16", "images = 240\ncheckpoint_minutes = 1e-9"))
    arguments = ("train", "vae", "--config", config, "--data", data, "--out")
    command = [sys.executable, "-m", "gouache", *map(str, arguments), str(place / "killed")]
    saved = place / "killed" / "vae" / "checkpoints"
    for images in moments:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if max((int(path.stem) for path in saved.glob("*.safetensors")), default=0) >= images:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the last run ended before it was killed"
    assert run_here(*arguments, place / "killed")[0] == 0
    assert run_here(*arguments, place / "whole")[0] == 0
    last = "vae/checkpoints/000000000240.safetensors"
    killed, whole = (load_tensors(place / run / last) for run in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT,), pytest.param((signal.SIGTERM, signal.SIGINT), marks=pytest.mark.slow)]
)
def test_signals_leave_a_checkpoint_of_the_last_step(place: Path, signals: tuple[signal.Signals, ...]) -> None:
    """Asked to end by SIGTERM or by Ctrl-C: each session keeps every step that it took."""
    config, run = place / "endless.toml", place / f"signalled {len(signals)}"
    config.write_text(CONFIG.replace("images = 16", "images = 1000000000"))
    arguments = ("train", "vae", "--config", config, "--data", place / "set", "--out", run)
    command, before = [sys.executable, "-m", "gouache", *map(str, arguments)], 0
    for number in signals:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if any(line["images_seen"] > before for line in read_log(run / "vae")):
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        saved = int(checkpoints(run / "vae")[-1].stem)
        assert saved >= max(line["images_seen"] for line in read_log(run / "vae")) > before
        before = saved


def test_a_signal_while_data_are_encoded_is_heard(place: Path) -> None:
    config = place / "encoding.toml"
    config.write_text(CONFIG + "[tokens.network]\nlatent_channels = 4\nlatent_size = 4\nscales = [1, 2, 4]\n")
    run = place / "encoding"
    assert run_here("train", "vae", "--config", config, "--data", place / "set", "--out", run)[0] == 0
    events = list(train_stage("tokens", config, place / "set", run, stop=lambda: True))
    assert [type(event) for event in events] == [Preparing]
    assert not (run / "tokens").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "vea"}, "Did you mean 'vae'?"),
        ({"stage": "tokens"}, "no table for it, expected a table [tokens]"),
        ({"--data": "nowhere"}, "no such folder"),
        ({"--config": "nothing.toml"}, "no such file"),
        ({"text": "[vae.network]\nlatent_chanels = 4"}, "latent_chanels"),
        ({"text": CONFIG.replace("size = 16", "size = 64")}, "Build it with --size 64"),
        ({"text": "[vae"}, "expected TOML"),
    ],
)
def test_bad_input_leaves_with_a_sentence_and_code_2(place: Path, change: dict[str, str], message: str) -> None:
    config = place / "config.toml"
    if "text" in change:
        config = place / "bad.toml"
        config.write_text(change["text"])
    data, stage = change.get("--data", place / "set"), change.get("stage", "vae")
    file = change.get("--config", config)
    code, _, said = run_here("train", stage, "--config", file, "--data", data, "--out", place / "bad-run")
    assert code == 2, said
    assert message in said


def test_bad_input_leaves_a_process_without_a_traceback(place: Path) -> None:
    done = gouache("train", "vea", "--config", place / "config.toml", "--data", place / "set", "--out", place / "bad")
    assert done.returncode == 2, done.stderr
    assert "Did you mean 'vae'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_whose_forerunner_is_missing_says_which(place: Path) -> None:
    config = place / "tokens.toml"
    config.write_text(CONFIG + "[tokens.network]\nlatent_channels = 4\nlatent_size = 4\nscales = [1, 2, 4]\n")
    out = place / "empty-run"
    code, _, said = run_here("train", "tokens", "--config", config, "--data", place / "set", "--out", out)
    assert code == 2
    assert "gouache train vae" in said


def test_packing_an_unfinished_run_says_what_is_missing(place: Path) -> None:
    code, _, said = run_here("pack", place / "empty-run", place / "model", "--config", place / "config.toml")
    assert code == 2
    assert "[denoiser]" in said
    assert not (place / "model").exists()
