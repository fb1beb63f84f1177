"""Builds a data set on file systems of several sizes; run it where mounting is allowed. Prints one JSON object.

Arguments: a folder to mount at, a pickled function without arguments that takes the data set's folder and builds it,
then the sizes in KiB. For each size the answer is the error's name and text (both empty if there was none), and what
lies on the disk afterwards.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main(disk: Path, pickled: Path, sizes: list[str]) -> None:
    """Try every size."""
    build: Callable[[Path], Iterator[Any]] = pickle.loads(pickled.read_bytes())
    found = {}
    for size in sizes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
        (disk / "other").write_text("stays")
        name = text = ""
        try:
            for _ in build(disk / "set"):
                pass
        except Exception as error:
            name, text = type(error).__name__, str(error)
        found[size] = (name, text, sorted(path.name for path in disk.iterdir()), (disk / "other").read_text())
        subprocess.run(["umount", str(disk)], check=True)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
