"""Work spread over a cluster by Ray Data: actors that hold what they work with, as many as there is room for.

A task is a number and a text; its results are bytes, each with the sha256 that the actor took of them. Work has to be
a pure function of its task, so that a task that was lost with its machine is done again anywhere, and gives the same.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from gouache.errors import ClusterError, GouacheError
from gouache.pipeline.output.recipe import package_versions
from gouache.scale.cluster import Cluster, told

RETRIES = 3
"""How often a task is begun again after its actor or machine died, before the rest is done without it."""
PASSES = 2
"""What is missing at the end, or came back damaged, is asked for once more, each task alone."""
LARGEST_BLOCKS = 4096
"""Tasks are handed out in at most so many groups: each costs the driver a few kB and a millisecond."""
_END = -1


class Work(Protocol):
    """What an actor does. Made once an actor, from the arguments of `spread`."""

    def __call__(self, task: str) -> Iterator[tuple[int, bytes]]:
        """The results of a task: (number of the part, bytes), each number once."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """One part of what a task gave, checked."""

    key: int
    part: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A task that gave an error, or nothing at all however often it was tried."""

    key: int
    error: GouacheError


@dataclass(frozen=True, slots=True)
class Room:
    """What one actor takes of the cluster.

    Attributes:
        threads: of the tensor library, in each actor; the order of additions depends on them.
        gpus: 0 or 1.
        actors: at most so many; None is as many as there is room for, now and when the cluster grows.
    """

    threads: int
    gpus: int = 0
    actors: int | None = None


@dataclass
class _Bookkeeping:
    """Which tasks are still open, and the digest of every result, so that a second one is compared with the first."""

    open: dict[int, str]
    check: Callable[[int, int, bytes], None]
    digests: dict[tuple[int, int], str] = field(default_factory=dict)
    damaged: dict[int, GouacheError] = field(default_factory=dict)

    def take(self, row: Mapping[str, Any]) -> Result | Failed | None:
        """What a row says; None if there is nothing new in it."""
        key, part, data = int(row["key"]), int(row["part"]), bytes(row["data"])
        if row["error"]:
            error = GouacheError.from_dict(json.loads(row["error"]))
            if isinstance(error, ClusterError):
                raise error
            return Failed(key, error) if self.open.pop(key, None) is not None else None
        if part == _END:
            if key not in self.damaged:
                self.open.pop(key, None)
            return None
        known = self.digests.get((key, part))
        try:
            _check_digest(row["digest"], data)
            if known is None:
                self.check(key, part, data)
        except ClusterError as error:
            self.damaged[key] = error
            return None
        if known is not None:
            if known != row["digest"]:
                given = f"two answers, {known[:12]} and {row['digest'][:12]}, to the same task"
                raise ClusterError(
                    f"task {key}",
                    given=given,
                    expected="the same bits from every machine",
                    cure="Are all of one build?",
                )
            return None
        self.digests[key, part] = str(row["digest"])
        return Result(key, part, data)


def _check_digest(digest: str, data: bytes) -> None:
    if sha256(data).hexdigest() != digest:
        raise ClusterError(
            "a worker", given="bytes that are not those it took the sha256 of", expected="a result that came whole"
        )


def spread(
    cluster: Cluster,
    tasks: Mapping[int, str],
    work: type[Work],
    arguments: tuple[object, ...],
    room: Room,
    check: Callable[[int, int, bytes], None],
) -> Iterator[Result | Failed]:
    """Do tasks on a cluster, in no particular order.

    Args:
        cluster: connected.
        tasks: by number.
        work: what an actor does; importable on every machine.
        arguments: of `work`; they travel once an actor.
        room: what an actor takes.
        check: (task, part, bytes); raises ClusterError for bytes that can't be right. They are not handed on, and
            the task is done again.

    Yields:
        Each result once, and each task that failed once.

    Raises:
        ClusterError: the cluster has no room for an actor, lost its head or all machines with room, or they disagree.
    """
    now = cluster.check_room(room.threads, room.gpus)
    books = _Bookkeeping(dict(tasks), check)
    for attempt in range(PASSES):
        blocks = min(len(books.open), LARGEST_BLOCKS) if attempt == 0 else len(books.open)
        books.damaged.clear()
        rows = _rows(dict(books.open), blocks, _Actor, (work, arguments, room.threads), room, now)
        for row in told(cluster, rows, (room.threads, room.gpus)):
            result = books.take(row)
            if result is not None:
                yield result
        if not books.open:
            return
    for key in books.open:
        given = f"no result, though its actor was started {(RETRIES + 1) * PASSES} times"
        error = books.damaged.get(key) or ClusterError(
            "a worker",
            given=given,
            expected="one that stays alive",
            cure="Does it run out of memory? The logs of the cluster tell.",
        )
        yield Failed(key, error)


def _rows(
    tasks: Mapping[int, str], blocks: int, actor: type, arguments: tuple[object, ...], room: Room, now: int
) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # A task that kills its actor again and again is given up; the others must be done all the same.
    context.max_errored_blocks = -1
    # Every result is a block of its own, so that it comes when it is finished and not with the rest of its group.
    context.target_max_block_size = 1
    data = ray.data.from_items(
        [{"key": key, "task": task} for key, task in tasks.items()], override_num_blocks=max(blocks, 1)
    )
    # One task at a time in an actor: those that wait there would be lost with one that kills it.
    pool = ActorPoolStrategy(
        min_size=1,
        max_size=room.actors,
        initial_size=max(1, min(now, len(tasks), room.actors or now)),
        max_tasks_in_flight_per_actor=1,
    )
    needs = {"num_gpus": room.gpus} if room.gpus else {"num_cpus": room.threads}
    with warnings.catch_warnings():
        # Ray 2.64 will have no argument for the number of retries any more, and pyproject.toml holds it below that.
        warnings.simplefilter("ignore", DeprecationWarning)
        results = data.map_batches(
            actor,
            batch_size=1,
            compute=pool,
            fn_constructor_args=arguments,
            max_task_retries=RETRIES,
            **needs,
        )
    yield from results.iter_rows()


class _Actor:
    """Runs inside Ray: makes the work, once, and tells what becomes of each task as rows."""

    def __init__(self, work: type[Work], arguments: tuple[object, ...], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._kind: Callable[..., Work] = work
        self._arguments = arguments
        self._work: Work | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        key = int(batch["key"][0])
        try:
            # Made here and not above, so that an error of it is told as one and not as a broken actor.
            if self._work is None:
                self._work = self._kind(*self._arguments)
            for part, data in self._work(str(batch["task"][0])):
                yield _row(key, part, data)
        except GouacheError as error:
            yield _row(key, _END, error=json.dumps(error.to_dict()))
            return
        yield _row(key, _END)


def _row(key: int, part: int, data: bytes = b"", error: str = "") -> dict[str, list[Any]]:
    return {"key": [key], "part": [part], "data": [data], "digest": [sha256(data).hexdigest()], "error": [error]}


def check_build(versions: Mapping[str, str]) -> None:
    """Refuse to work on a machine of another build than the one that asks.

    Args:
        versions: `package_versions()` there.

    Raises:
        ClusterError: packages differ; names the machine.
    """
    own = package_versions()
    other = [f"{name} {own.get(name)} for {version}" for name, version in versions.items() if own.get(name) != version]
    if other:
        raise ClusterError(
            f"node {platform.node()} (process {os.getpid()})",
            given=", ".join(other),
            expected="the packages of the machine that asks, since equal bits are promised on the same build only",
            cure="Install the same versions on every node.",
        )
