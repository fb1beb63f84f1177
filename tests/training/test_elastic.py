"""torchrun starts its processes again when one is lost, and the run goes on from its checkpoint bit for bit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tests.training.test_processes import SCRIPT, last_tensors

from gouache.training.state import checkpoints

IMAGES = 144


def started(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Two processes that may be started again twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=2"]
    place = ["--master_addr=127.0.0.1", f"--master_port={port}", "--monitor-interval=0.5"]
    jobs = [["denoiser", name, IMAGES, {}]]
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*launcher, *place, str(SCRIPT), str(folder), json.dumps(jobs)],
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_is_killed_is_started_again_and_the_run_ends_as_it_would_have(tmp_path: Path) -> None:
    whole = started(tmp_path, "whole")
    assert whole.wait(140) == 0, (tmp_path / "whole.log").read_text()[-2000:]
    broken = started(tmp_path, "broken")
    until = time.monotonic() + 100
    while len(checkpoints(tmp_path / "broken")) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    assert broken.poll() is None, "it was to be killed before its end"
    ranks = [one for one in psutil.Process(broken.pid).children() if SCRIPT.name in " ".join(one.cmdline())]
    ranks[-1].kill()
    assert broken.wait(140) == 0, (tmp_path / "broken.log").read_text()[-2000:]
    mine, theirs = last_tensors(tmp_path / "broken"), last_tensors(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
