"""A connection to a cluster of Ray, made and ended in one place; nothing else of the package starts or stops Ray."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, TypeVar

from gouache.environment import Variable
from gouache.errors import ClusterError

T = TypeVar("T")
HERE, ANY = "local", "auto"
"""Addresses: a new cluster of this machine; the one that `RAY_ADDRESS` names or that runs here, else a new one."""
LOOPBACK = "127.0.0.1"
LOOPBACKS = (LOOPBACK, "localhost")
PATIENCE = 10.0
"""Seconds for which the head node may not answer before it is lost."""
ROOM_PATIENCE = 60.0
"""Seconds for which no machine may be there that has room for an actor, after those that had it were lost."""


@dataclass
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        head: where the head node listens, (host, port); None if Ray doesn't tell.
    """

    head: tuple[str, int] | None
    _lost: threading.Event = field(default_factory=threading.Event)

    def check_room(self, cpus: int, gpus: int) -> int:
        """How many actors there is room for now; an actor that no machine has room for is refused.

        Raises:
            ClusterError: there is none, and the cluster doesn't grow by itself.
        """
        offers = _offers()
        wanted = ("GPU", gpus) if gpus else ("CPU", cpus)
        largest = max((float(offer.get(wanted[0], 0)) for offer in offers), default=0.0)
        if largest < wanted[1]:
            cure = "" if gpus else f"OMP_NUM_THREADS says how many CPUs a model works on, now {cpus}."
            raise ClusterError(
                "the cluster",
                given=f"{len(offers)} nodes, the largest with {largest:g} {wanted[0]}",
                expected=f"one with {wanted[1]} {wanted[0]}",
                cure=cure,
            )
        return sum(int(float(offer.get(wanted[0], 0)) // wanted[1]) for offer in offers)

    def has_gpus(self) -> bool:
        """Whether any machine of it offers a GPU."""
        import ray

        return float(ray.cluster_resources().get("GPU", 0)) >= 1


def _offers() -> list[dict[str, Any]]:
    """What each machine of the cluster has, in use or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Be connected to a cluster; afterwards the connection is given up, and a cluster that was started here ends.

    Args:
        address: `HOST:PORT` of the head node, or one of the words above.

    Raises:
        ClusterError: nothing answers at this address.
        ModuleNotFoundError: Ray is not installed.
    """
    # Read when Ray is imported and started. Whoever wants to tell Ray's makers sets the variable to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its messages for its own makers go to standard error otherwise; a cluster's logs keep what its nodes say.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    named = os.environ.get(Variable.RAY_ADDRESS, "") if address == ANY else address
    place = _place(named)
    if address == HERE or (place is not None and place[0] in LOOPBACKS):
        # Read at import. Without it Ray takes an address of the network card in place of a loopback one.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    _check_answers(named)
    try:
        _start_or_join(address)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        raise _nothing_there(address, str(error).splitlines()[0]) from error
    try:
        yield Cluster(_place(ray.get_runtime_context().gcs_address))
    finally:
        ray.shutdown()


def _start_or_join(address: str) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != HERE:
        try:
            ray.init(address, **quiet)
            return
        except ConnectionError:
            if address != ANY or os.environ.get(Variable.RAY_ADDRESS):
                raise
    # What is started here listens to this machine alone: a cluster of Ray asks nobody for a password.
    ray.init(HERE, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)


def _nothing_there(address: str, given: str) -> ClusterError:
    return ClusterError(
        "--ray",
        given=f"{address}: {given}",
        expected="the address of a cluster that runs, as `ray start --head` prints it, or local",
    )


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    place = _place(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except OSError as error:
        raise _nothing_there(address, (error.strerror or str(error)).lower()) from error


def _place(address: str | None) -> tuple[str, int] | None:
    """Host and port of an address; None where it isn't of that form."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    return (host, int(port)) if colon and port.isdecimal() else None


def told(cluster: Cluster, rows: Iterator[T], needs: tuple[int, int] | None = None) -> Iterator[T]:
    """The same rows, and an error where Ray would wait.

    It would wait for a lost head node, and then end this process; for a machine with room it would wait for good. Rows
    are drawn in a thread of their own. A row is drawn when the one before was taken, so that results that nobody takes
    hold the cluster back.

    Args:
        cluster: connected.
        rows: what comes from it.
        needs: CPUs and GPUs of an actor that rows come from; None: rows come without any.

    Raises:
        ClusterError: the head node doesn't answer any more, no machine with room came for `ROOM_PATIENCE`, or Ray
            gives up.
    """
    import ray

    found: Queue[tuple[str, T | BaseException | None]] = Queue(maxsize=1)
    ended = threading.Event()

    def draw() -> None:
        try:
            for row in rows:
                found.put(("row", row))
                if ended.is_set():
                    return
            found.put(("end", None))
        except BaseException as error:
            found.put(("error", error))

    threading.Thread(target=draw, daemon=True).start()
    silent = 0.0
    room_at = time.monotonic()
    try:
        while True:
            try:
                kind, value = found.get(timeout=1.0)
            except Empty:
                silent = 0.0 if _answers(cluster.head) else silent + 1.0
                if silent >= PATIENCE:
                    raise _lost(cluster) from None
                if needs is None or silent or _offers_room(*needs):
                    room_at = time.monotonic()
                elif time.monotonic() - room_at >= ROOM_PATIENCE:
                    raise _lost(cluster, f"no machine that works any more, for {ROOM_PATIENCE:g} s") from None
                continue
            room_at = time.monotonic()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException), "an error is told as one"
                if isinstance(value, ray.exceptions.RayError | RuntimeError | ConnectionError):
                    raise _lost(cluster, value) from value
                raise value
            yield value  # type: ignore[misc]
    finally:
        ended.set()


def _answers(head: tuple[str, int] | None) -> bool:
    if head is None:
        return True
    try:
        socket.create_connection(head, timeout=1.0).close()
    except OSError:
        return False
    return True


def _offers_room(cpus: int, gpus: int) -> bool:
    return any(offer.get("GPU", 0) >= gpus and offer.get("CPU", 0) >= (0 if gpus else cpus) for offer in _offers())


def _lost(cluster: Cluster, error: object = "no answer from its head node") -> ClusterError:
    given = str(error).strip().splitlines()[-1][:300]
    host, port = cluster.head or ("?", 0)
    return ClusterError(
        f"cluster {host}:{port}",
        given=given,
        expected="a cluster that runs until the end",
        cure="What was finished is kept; run the same command again when the cluster is back.",
    )
