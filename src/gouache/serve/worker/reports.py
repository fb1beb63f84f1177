"""What a worker tells the server that started it: one line each, on the pipe that was its standard output."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Protocol

BEAT_SECONDS = 1.0
"""A worker says so often that it lives."""
BEAT, READY, LOADED, UNUSABLE = "beat", "ready", "loaded", "unusable"
"""It lives; it has this name; its default model is on its device; it is not, with the error. Else: a job's id."""


class Tell(Protocol):
    """Sends one report, or takes it for a test."""

    def __call__(self, what: str, detail: str = "", /) -> None:
        """Send it."""
        ...


class Reports:
    """The worker's end of the pipe, which was its standard output: no library's words must be read as a report."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.heard = True
        """Whether somebody still reads them."""

    def tell(self, what: str, detail: str = "", /) -> None:
        """Send one line; nothing happens if nobody reads it any more."""
        try:
            with self._lock:
                self._pipe.write(f"{what} {detail}".strip().replace("\n", " ") + "\n")
        except (OSError, ValueError):
            self.heard = False

    def beat(self) -> None:
        """Say that this process lives, from now on, from a thread of its own: a step may take minutes."""

        def beats() -> None:
            while self.heard:
                self.tell(BEAT)
                time.sleep(BEAT_SECONDS)

        threading.Thread(target=beats, daemon=True, name="beat").start()


def parsed(raw: bytes) -> tuple[str, str]:
    """A line as it was told: what, and its detail."""
    with contextlib.suppress(UnicodeDecodeError):
        what, _, detail = raw.decode("utf-8").strip().partition(" ")
        return what, detail
    return "", ""
