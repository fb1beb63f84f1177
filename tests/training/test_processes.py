"""Two processes with half the batch each are one process with all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gouache.training.log import read_log

HERE = Path(__file__).parent
ALONE = [sys.executable]


def together() -> list[str]:
    """A launcher of two processes that meet at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    return [*launcher, "--master_addr=127.0.0.1", f"--master_port={port}"]


def losses(launcher: list[str], run: Path) -> list[float]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launcher, str(HERE / "two_processes.py"), str(HERE), str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line["loss"] for line in read_log(run) if "loss" in line]


def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    one, two = losses(ALONE, tmp_path / "one"), losses(together(), tmp_path / "two")
    assert len(one) == len(two) == 6
    assert two == pytest.approx(one, abs=1e-5)
