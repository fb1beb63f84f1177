"""A whole server process whose workers paint with the tiny model. Argument: the settings as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

from gouache.serve.server import run
from gouache.serve.settings import Settings
from gouache.serve.studio import Studio

if __name__ == "__main__":
    command = (sys.executable, str(Path(__file__).parent / "tiny_worker.py"))
    run(Studio(Settings.from_json(sys.argv[1]), command), announce=lambda address: print(address, flush=True))  # noqa: T201
