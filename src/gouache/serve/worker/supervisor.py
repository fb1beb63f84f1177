"""Starts worker processes, wakes them, hears what changed, and starts them again when they die.

Networks run in processes of their own and not in threads: one that runs out of memory, crashes in native code or hangs
takes its process down, and the server goes on answering.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

import psutil

from gouache.serve.queue.leases import Leases
from gouache.serve.settings import Settings

WORKER_COMMAND = (sys.executable, "-m", "gouache.serve.worker.process")
LONGEST_PAUSE = 5.0
SAFETY_VARIABLE = "GOUACHE_SAFETY_CHECKER"
"""How the pipeline is told where the safety checker lies."""
log = logging.getLogger("gouache.supervisor")


class Supervisor:
    """The workers of one server.

    Args:
        settings: of the studio.
        leases: to free the jobs of dead workers.
        changed: called, from another thread, with the id of a job that changed.
        command: starts a worker.
    """

    def __init__(
        self,
        settings: Settings,
        leases: Leases,
        changed: Callable[[str], None],
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.settings, self.leases, self.changed, self.command = settings, leases, changed, command
        self._slots = [_Slot(self) for _ in range(settings.workers)]

    def start(self) -> None:
        """Free the jobs of workers that died with an earlier server, then start the workers."""
        free_dead(self.leases)
        for slot in self._slots:
            slot.start()

    def wake(self) -> None:
        """There may be a job."""
        for slot in self._slots:
            slot.say(b".")

    def wake_beside(self) -> None:
        """There may be something to do beside painting; the painting itself is left alone."""
        for slot in self._slots:
            slot.say(b"b")

    def unload_models(self) -> None:
        """Workers let go of their models before the next job."""
        for slot in self._slots:
            slot.say(b"u")

    def stop(self) -> None:
        """End every worker; the running job is finished within the grace time or goes back into the queue."""
        # All are asked before any is waited for, so that their grace times run side by side.
        for slot in self._slots:
            slot.ask_to_stop()
        for slot in self._slots:
            slot.join()

    def alive(self) -> int:
        """How many workers run."""
        return sum(slot.alive for slot in self._slots)

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.alive]


class _Slot:
    """The place of one worker, kept filled."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.process: subprocess.Popen[bytes] | None = None
        self.name: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_filled, daemon=True, name="supervisor")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self._thread.start()

    def say(self, what: bytes) -> None:
        # What is said to a worker that dies just now is lost, and need not arrive: the next one looks at the store.
        process = self.process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(what)
                process.stdin.flush()

    def ask_to_stop(self) -> None:
        self._stopping.set()
        if self.process is not None and self.alive:
            self.process.send_signal(signal.SIGTERM)
            self.say(b".")  # The signal sets its stop; a byte wakes it if it sleeps.

    def join(self) -> None:
        if self._thread.ident is None:
            return
        # The grace time is for the job; what is added, for leaving libraries and closing files.
        self._thread.join(self.supervisor.settings.grace + 10)
        if self.process is not None and self.alive:
            self.process.kill()
            self._thread.join(5)

    def _keep_filled(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            code = self._one_life()
            if self._stopping.is_set():
                return
            log.warning("worker died", extra={"code": code, "worker": self.name})
            # One that dies at its start (a broken installation, no memory) would otherwise be started without end.
            pause = 0.1 if time.monotonic() - started > 10 else min(LONGEST_PAUSE, pause * 2)
            self._stopping.wait(pause)

    def _one_life(self) -> int:
        settings = self.supervisor.settings
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        if settings.safety_checker is not None:
            environment[SAFETY_VARIABLE] = str(settings.safety_checker)
        self.process = process = subprocess.Popen(
            list(self.supervisor.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.name = None
        if process.stdin is None or process.stdout is None:
            return process.wait()
        with contextlib.suppress(OSError):
            process.stdin.write(settings.to_json().encode() + b"\n")
            process.stdin.flush()
        self._hear(process.stdout)
        code = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        if self.name is not None:
            # Its jobs needn't wait for their leases to run out: this process saw it die.
            self.supervisor.leases.release(self.name)
            self.supervisor.changed("")
        return code

    def _hear(self, stream: IO[bytes]) -> None:
        for raw in stream:
            line = raw.decode("utf-8", "replace").strip()
            if line.startswith("ready "):
                self.name = line.removeprefix("ready ")
                if self._stopping.is_set():
                    self.ask_to_stop()  # The signal may have come before the worker had set its handler.
            self.supervisor.changed(line)


def free_dead(leases: Leases) -> int:
    """Free the jobs of this machine's workers whose process is gone; gives how many jobs."""
    freed = 0
    for name in leases.workers():
        host, _, rest = name.partition(":")
        # Workers of other machines can't be asked; their leases run out.
        if host == socket.gethostname() and not _is_worker(int(rest.partition(":")[0] or 0)):
            freed += leases.release(name)
    return freed


def _is_worker(process: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
