"""A small cluster of Ray on this machine: several node processes, all on loopback, with little memory each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

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


@contextmanager
def local_cluster(nodes: int = 2) -> Iterator[LocalCluster]:
    """A cluster that ends with the block."""
    cluster = LocalCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.shutdown()
