"""Two processes with half the batch each are one process with all of it, with whole weights and with sharded ones."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.training.runlog import read_log
from gouache.training.state import checkpoints

SCRIPT = Path(__file__).parent / "two_processes.py"
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""
Job = tuple[str, str, int, dict[str, Any]]


def together(folder: Path, *jobs: Job, **environment: str) -> None:
    """Train in two processes that meet at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command = [*launcher, f"--master_port={port}", str(SCRIPT), str(folder), json.dumps(jobs)]
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, **own, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def alone(folder: Path, *jobs: Job) -> None:
    """Train in this process."""
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None, "the script lies beside this file"
    assert spec.loader is not None, "the script is Python"
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(folder, jobs)


def curve(run: Path, figure: str = "loss") -> list[float]:
    return [line[figure] for line in read_log(run) if figure in line]


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(checkpoints(run)[-1])


def assert_same_training(run: Path, other: Path, within: float) -> None:
    """Loss, gradient norm, weights, averages and moments are those of the other run; the files are of one format."""
    for figure in ("loss", "gradient_norm"):
        assert len(curve(run, figure)) == 6
        assert curve(run, figure) == pytest.approx(curve(other, figure), abs=within), figure
    mine, theirs = last_tensors(run), last_tensors(other)
    assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    off = [name for name in mine if not torch.allclose(mine[name], theirs[name], rtol=0, atol=within)]
    assert not off, f"these tensors differ: {off[:5]}"
    assert load_tensors(run / "last.safetensors").keys() == load_tensors(other / "last.safetensors").keys()


def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    alone(tmp_path, ("denoiser", "one", 48, {}))
    together(tmp_path, ("denoiser", "two", 48, {}))
    assert_same_training(tmp_path / "two", tmp_path / "one", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokens", "denoiser"])
def test_sharded_weights_train_and_resume_as_whole_ones_do(stage: str, tmp_path: Path) -> None:
    check_sharded(stage, tmp_path)


def check_sharded(stage: str, folder: Path) -> None:
    """The same training; the same checkpoints, from which either goes on; sharded runs resumed bit for bit."""
    alone(folder, (stage, "one", 48, {}), (stage, "begun by one", 24, {}))
    assert max(curve(folder / "one", "gradient_norm")) > 0.3, "the gradient's norm is clipped in this test"
    together(
        folder,
        (stage, "sharded", 48, {}),
        (stage, "parts", 24, {}),
        (stage, "parts", 48, {}),
        (stage, "begun by one", 48, {}),
        (stage, "begun sharded", 24, {}),
        **SHARDED,
    )
    alone(folder, (stage, "begun sharded", 48, {}))
    assert float((folder / "sharded.share").read_text()) == pytest.approx(0.5, abs=0.01)
    for run in ("sharded", "begun by one", "begun sharded"):
        assert_same_training(folder / run, folder / "one", 1e-5)
    whole, parted = last_tensors(folder / "sharded"), last_tensors(folder / "parts")
    assert all(torch.equal(whole[name], parted[name]) for name in whole)


EVERY: Sequence[Job] = (
    ("vae", "vae", 48, {}),
    ("vae", "frozen encoder", 48, {"freeze": ["encoder"]}),
    ("prior", "prior", 48, {}),
    ("denoiser", "checkpointing", 48, {"gradient_checkpointing": True, "loop": {"channels_last": True}}),
    ("denoiser", "frozen", 48, {"freeze": ["down_blocks"], "optimizer": {"accumulation": 2}}),
)


@pytest.mark.slow
def test_every_stage_trains_with_sharded_weights(tmp_path: Path) -> None:
    alone(tmp_path / "one", *EVERY)
    together(tmp_path / "sharded", *EVERY, **SHARDED)
    for _, run, _, _ in EVERY:
        assert_same_training(tmp_path / "sharded" / run, tmp_path / "one" / run, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["whole", "sharded"])
def test_patience_which_the_main_process_has_ends_all_of_them(environment: dict[str, str], tmp_path: Path) -> None:
    loop = {"validate_images": 8, "patience": 1, "images": 10**6}
    together(tmp_path, ("tokens", "run", 0, {"loop": loop, "optimizer": {"learning_rate": 1e-12}}), **environment)
    assert 1 < len(curve(tmp_path / "run", "validation/score")) < 100
