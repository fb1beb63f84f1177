"""Workers as actors on a cluster of several node processes: a node and the head node are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.scale.conftest import LocalCluster
from tests.serve.served import Process, check_everything, submit, wait_for_all
from tests.serve.test_durability import retry_poisoned
from tests.serve.worker.test_host import ROOT, Host, running

from gouache.serve.queue.leases import Leases


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """A head node that takes no work, and three nodes with a CPU each."""
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)
    made = LocalCluster(3)
    yield made
    made.shutdown()


def node_of(cluster: LocalCluster, server: Process, seconds: float = 120) -> Any:
    """The node on which a job is being painted."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for worker in workers_of(server):
            parents = {parent.pid for parent in psutil.Process(int(worker.split(":")[1])).parents()}
            for node in cluster.nodes:
                raylets = node.all_processes["raylet"]
                if any(raylet.process.pid in parents for raylet in raylets):
                    return node
        time.sleep(0.05)
    raise TimeoutError("nobody paints")


def workers_of(server: Process) -> list[str]:
    """Who holds a job."""
    return Leases(server.database).workers()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_loses_no_job(cluster: LocalCluster, tmp_path: Path) -> None:
    server, host = Process(tmp_path, workers=0), Host(tmp_path, cluster.address, workers=2)
    with running((server, host)):
        ids = [submit(server, f"key-{k}", num_inference_steps=20) for k in range(12)]
        lost = node_of(cluster, server)
        cluster.kill(lost)
        wait_for_all(server, ids, 300)
        retry_poisoned(server, ids, 120)
        check_everything(server, ids)
        assert any(event.detail for job in ids for event in server.jobs.events(job) if event.kind == "queued")
        assert host.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_head_node_ends_the_command_and_loses_no_job(cluster: LocalCluster, tmp_path: Path) -> None:
    server, host = Process(tmp_path, workers=0), Host(tmp_path, cluster.address, workers=1)
    with running((server, host)):
        job = submit(server, "before")
        wait_for_all(server, [job], 120)
        cluster.kill(cluster.head)
        assert host.process is not None
        assert host.process.wait(120) == 1
        said = host.log.read_text().splitlines()[-1]
        assert said.startswith("ClusterError: ")
        ids = [job, submit(server, "after")]
        with running((Host(tmp_path),)):
            wait_for_all(server, ids, 120)
        check_everything(server, ids)


def test_a_cluster_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gouache", "worker", "--data", str(tmp_path), "--ray", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 3
    assert "--ray" in done.stderr
    assert "Traceback" not in done.stderr
