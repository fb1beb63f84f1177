"""The processes that decode, and whose turn it is.

The web server answers everybody; a picture that takes seconds and gigabytes to decode must not be decoded there. A user
has one picture under way at a time, and so many more may wait, so that one user's pictures keep no other waiting long.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from gouache.errors import GouacheError, PictureError, QueueFull
from gouache.serve.decoding.operations import Answer, receive, send

COMMAND = (sys.executable, "-m", "gouache.serve.decoding.operations")
AT_ONCE = 2
MOST_WAITING = 32
"""Pictures of one user that may be under way or wait."""
SECONDS = 60.0
THREADS = 256
"""Threads in which callers wait; they are made when they are needed."""
Made = TypeVar("Made")
log = logging.getLogger("gouache.decoding")


class _Process:
    """One process that decodes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, facts: Mapping[str, Any], data: bytes, seconds: float) -> Answer | None:
        """What it answers; None if it died or was too slow."""
        pipes = self._process.stdin, self._process.stdout
        if pipes[0] is None or pipes[1] is None:
            raise ValueError("a process without pipes")
        slow = threading.Timer(seconds, self._process.kill)
        slow.daemon = True
        slow.start()
        try:
            if facts:
                send(pipes[0], facts, data)
            return receive(pipes[1])
        except OSError:
            return None
        finally:
            slow.cancel()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_idle: list[_Process] = []
"""Of all studios of this process: they know nothing of any, and a new one takes a second to start."""
_lock = threading.Lock()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _answer(facts: Mapping[str, Any], data: bytes, seconds: float) -> Answer:
    with _lock:
        process = _idle.pop() if _idle else None
    if process is None:
        process = _Process()
        process.ask({}, b"", SECONDS)  # It says that it is ready.
    answer = process.ask(facts, data, seconds)
    if answer is None:
        process.end()
        log.warning("a picture took its process down", extra={"operation": facts["operation"], "bytes": len(data)})
        given = f"one that takes longer than {seconds:g} s or ends the process that reads it"
        raise PictureError("picture", given=given, expected="an ordinary picture", cure="Send a smaller one.")
    with _lock:
        _idle.append(process)
    return answer


class Decoding:
    """Has pictures decoded, each user in turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[str, object]] = []
        self._running: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(THREADS, "decoding")

    def run(
        self, owner: str, operation: str, data: bytes, wanted: Mapping[str, object], seconds: float = SECONDS
    ) -> Answer:
        """Do something with a picture in a process of its own, and wait for it.

        Args:
            owner: whose picture it is.
            operation: a name in `operations.OPERATIONS`.
            data: the picture's bytes.
            wanted: the operation's arguments.
            seconds: what takes longer is given up, and its process ended.

        Raises:
            QueueFull: too many pictures of this user wait.
            GouacheError: what the operation raises, or the process died of it.
        """
        with self._turn(owner):
            facts, made = _answer({"operation": operation, **wanted}, data, seconds)
        if "error" in facts:
            raise GouacheError.from_dict(facts["error"])
        return facts["made"], made

    async def beside(self, work: Callable[..., Made], *values: object) -> Made:
        """Call what waits for `run`, in a thread that only such callers use, so that they keep no others waiting."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    def close(self) -> None:
        """Take nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _turn(self, owner: str) -> Iterator[None]:
        ticket = (owner, object())
        with self._changed:
            held = self._running[owner] + sum(name == owner for name, _ in self._waiting)
            if held >= MOST_WAITING:
                expected = f"fewer than {MOST_WAITING} at a time"
                raise QueueFull("pictures", given=held, expected=expected, cure="Wait until some are done.")
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._next() is ticket)
            self._waiting.remove(ticket)
            self._running[owner] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= Counter({owner: 1})
                self._changed.notify_all()

    def _next(self) -> tuple[str, object] | None:
        """Who goes next: whoever came first of those who have nothing under way."""
        if self._running.total() >= AT_ONCE:
            return None
        return next((one for one in self._waiting if not self._running[one[0]]), None)
