"""`gouache worker` as a process of its own whose workers paint with the tiny model.

Arguments: the settings as JSON and, for workers on Ray, the address of a cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.serve.tiny_worker import open_tiny

from gouache.errors import GouacheError
from gouache.serve.settings import Settings
from gouache.serve.worker.host import run_workers
from gouache.serve.worker.ray_workers import run_on_ray


def tell(line: str) -> None:
    """Print it at once."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    settings = Settings.from_json(sys.argv[1])
    try:
        if sys.argv[2:]:
            run_on_ray(settings, sys.argv[2], 0.0, tell, open_tiny)
        else:
            run_workers(settings, tell, (sys.executable, str(Path(__file__).parent / "tiny_worker.py")))
    except GouacheError as error:
        sys.exit(f"{type(error).__name__}: {error}")
