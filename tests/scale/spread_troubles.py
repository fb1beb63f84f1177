"""Spreads six tasks over the cluster of an address: one kills its actor, one is damaged once, one always, one fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gouache.errors import ClusterError, InvalidInput
from gouache.scale.cluster import connected
from gouache.scale.spread import Failed, Room, spread


class Work:
    """What a task does follows from its text."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, task: str) -> Iterator[tuple[int, bytes]]:
        """One part."""
        if task == "kill":
            os._exit(1)
        if task == "fail":
            raise InvalidInput("three", given="three", expected="another")
        mark = self.folder / "damaged"
        if task == "damage once" and not mark.exists():
            mark.touch()
            yield 0, b"damaged"
        elif task == "damage":
            yield 0, b"damaged"
        else:
            yield 0, b"ok"


def check(key: int, part: int, data: bytes) -> None:
    """Refuses what the tasks damage."""
    if data != b"ok":
        raise ClusterError("five" if key == 5 else "four", given="always damaged", expected=f"ok in part {part}")


if __name__ == "__main__":
    tasks = {0: "", 1: "kill", 2: "", 3: "fail", 4: "damage once", 5: "damage"}
    with connected(sys.argv[1]) as cluster:
        for result in spread(cluster, tasks, Work, (sys.argv[2],), Room(1), check):
            if isinstance(result, Failed):
                kind = type(result.error).__name__
                print(f"{result.key} {kind} {result.error.where}: given {result.error.given}", flush=True)  # noqa: T201
            else:
                print(f"{result.key} {result.data.decode()}", flush=True)  # noqa: T201
