"""Commands run here on tiny models; more than one thread would only wait for the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.errors import GouacheError

torch.set_num_threads(1)
Run = Callable[..., tuple[int, str, str]]
Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in `tmp_path`; gives exit code, standard output and what went to standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*arguments])
        if isinstance(result.exception, GouacheError):
            return result.exception.exit_code, result.stdout, f"{result.stderr}{result.exception}"
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.stdout, result.stderr

    return command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Starts the command in a process of its own in `tmp_path`; standard error goes along with standard output."""

    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gouache", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on loopback, which this process's environment names too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    server.stop()


MEMORY = 100 * 2**20


class LocalCluster:
    """A head node that does no work, and nodes of one CPU each."""

    def __init__(self, nodes: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Read when Ray is imported: stay on loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A busy machine needs more than the half minute that Ray gives a node.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self.head = self._add(0)
        self.nodes = [self._add(1) for _ in range(nodes)]

    def _add(self, cpus: int) -> Any:
        return self._cluster.add_node(
            num_cpus=cpus,
            num_gpus=0,
            object_store_memory=MEMORY,
            include_dashboard=False,
            node_ip_address="127.0.0.1",
            wait=True,
        )

    @property
    def address(self) -> str:
        """HOST:PORT of the head node."""
        return str(self._cluster.address)

    def grow(self) -> None:
        """One more node that works joins."""
        self.nodes.append(self._add(1))

    def kill(self, node: Any) -> None:
        """kill -9 of everything on a node, as if its plug were pulled."""
        for kind in node.all_processes.values():
            for one in kind:
                with suppress(psutil.NoSuchProcess):
                    parent = psutil.Process(one.process.pid)
                    for process in [*parent.children(recursive=True), parent]:
                        with suppress(ProcessLookupError):
                            os.kill(process.pid, signal.SIGKILL)

    def shutdown(self) -> None:
        """End every process of it."""
        self._cluster.shutdown()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A head node and two nodes that work; they end with the test."""
    started = LocalCluster(2)
    yield started
    started.shutdown()
