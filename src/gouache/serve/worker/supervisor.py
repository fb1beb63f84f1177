"""Starts worker processes, wakes them, hears what changed, and starts them again when they die or hang.

Networks run in processes of their own and not in threads: one that runs out of memory, crashes in native code or hangs
takes its process down, and the server goes on answering. Nothing here ends with the store: what has to be told to it is
told once it is back.
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

from gouache.environment import Variable
from gouache.errors import StoreAway
from gouache.serve.queue.leases import Leases
from gouache.serve.settings import Settings
from gouache.serve.store.outages import Patience
from gouache.serve.worker.reports import BEAT, BEAT_SECONDS, LOADED, READY, UNUSABLE, parsed

WORKER_COMMAND = (sys.executable, "-m", "gouache.serve.worker.process")
LONGEST_PAUSE = 5.0
QUIET_SECONDS = 5 * BEAT_SECONDS
"""A worker that was not heard for so long is not counted on."""
HANG_SECONDS = 10.0
"""After so long, and after the time of a lease, it is ended: its jobs are no longer its own anyway."""
START_SECONDS = 180.0
"""A worker has so long to say its first word: it reads the libraries, from a slow disk perhaps."""
ARENAS = 2
"""glibc gives each new thread a heap of its own, up to eight a core, and none of them gives back what another needs."""
CLOCK_SECONDS = 2.0
"""By so much the system's two accounts of the time may differ."""
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
        self._slots = [_Slot(self, settings.devices[k % len(settings.devices)]) for k in range(settings.workers)]
        self._dead: set[str] = set()
        self._free_all, self._is_free_at = True, 0.0
        self._patience = Patience("supervisor")
        self._stopping, self._look = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="supervisor")

    def start(self) -> None:
        """Free the jobs of workers that died with an earlier server, then start the workers."""
        self._free()
        for slot in self._slots:
            slot.start()
        self._thread.start()

    def buried(self, worker: str) -> None:
        """A worker is dead: its jobs needn't wait for their leases to run out."""
        self._dead.add(worker)
        self._look.set()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopping.is_set():
            self._look.wait(BEAT_SECONDS)
            self._look.clear()
            now = time.monotonic()
            # This process itself stood still, or was so busy: what the workers said meanwhile was not read.
            stood_still, before = now - before > QUIET_SECONDS, now
            try:
                for slot in self._slots:
                    slot.end_if_it_hangs(now, excused=stood_still)
                self._free()
            except Exception:  # Whatever it was, workers must be watched.
                log.exception("watching the workers")

    def _free(self) -> None:
        """Tell the store which workers are dead, as soon as it hears."""
        if time.monotonic() < self._is_free_at or not (self._dead or self._free_all):
            return
        try:
            if self._free_all:
                free_dead(self.leases)
                self._free_all = False
            for name in list(self._dead):
                self.leases.release(name)
                self._dead.discard(name)
                self.changed("")
            self._patience.over()
            self._is_free_at = 0.0
        except StoreAway as error:
            self._is_free_at = time.monotonic() + self._patience.pause(error)

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
        self._stopping.set()
        self._look.set()
        if self._thread.ident is not None:
            self._thread.join(5)
            self._is_free_at = 0.0
            self._free()

    def readiness(self) -> str:
        """ "ready" if a worker lives and has its model on its device, else why none has."""
        states = [slot.readiness(time.monotonic()) for slot in self._slots]
        return "ready" if "ready" in states or not states else states[0]

    def is_sound(self) -> bool:
        """Whether all that starts and watches workers runs; it always should."""
        threads = [self._thread, *(slot.thread for slot in self._slots)]
        return self._stopping.is_set() or all(thread.is_alive() or thread.ident is None for thread in threads)

    def alive(self) -> int:
        """How many workers run."""
        return sum(slot.alive for slot in self._slots)

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.alive]


class _Slot:
    """The place of one worker on one device, kept filled."""

    def __init__(self, supervisor: Supervisor, device: str | None) -> None:
        self.supervisor, self.device = supervisor, device
        self.process: subprocess.Popen[bytes] | None = None
        self.name: str | None = None
        self._model = ""
        """Empty until the worker told, then one of `LOADED`, `UNUSABLE`."""
        self._heard_at, self._spoke = 0.0, False
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._keep_filled, daemon=True, name="worker's place")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.thread.start()

    def readiness(self, now: float) -> str:
        if not self.alive:
            return "no worker"
        if self._spoke and now - self._heard_at > QUIET_SECONDS:
            return "the worker does not answer"
        if self._model == UNUSABLE:
            return "the default model can't be used"
        return "ready" if self._model == LOADED else "the worker starts"

    def end_if_it_hangs(self, now: float, *, excused: bool) -> None:
        """Kill a worker that lives and was not heard for too long; its place is filled again."""
        process = self.process
        # Who was told to stop says nothing while it leaves its libraries, and has a time limit of its own.
        if process is None or process.poll() is not None or self._stopping.is_set():
            return
        if excused:
            self._heard_at = now
        elif now - self._heard_at > (
            max(HANG_SECONDS, self.supervisor.settings.lease) if self._spoke else START_SECONDS
        ):
            log.error("worker hangs", extra={"worker": self.name, "seconds": round(now - self._heard_at, 1)})
            process.kill()

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
        if self.thread.ident is None:
            return
        # The grace time is for the job; what is added, for leaving libraries and closing files.
        self.thread.join(self.supervisor.settings.grace + 10)
        if self.process is not None and self.alive:
            self.process.kill()
            self.thread.join(5)

    def _keep_filled(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                code: object = self._one_life()
            except Exception as error:  # No process or pipe to be had, for example; there may be one a little later.
                log.exception("worker not started")
                code = str(error)
            if self._stopping.is_set():
                return
            log.warning("worker died", extra={"code": code, "worker": self.name})
            # One that dies at its start (a broken installation, no memory) would otherwise be started without end.
            pause = 0.1 if time.monotonic() - started > 10 else min(LONGEST_PAUSE, pause * 2)
            self._stopping.wait(pause)

    def _one_life(self) -> int:
        settings = self.supervisor.settings
        environment = {Variable.MALLOC_ARENA_MAX: str(ARENAS)} | os.environ | {"PYTHONUNBUFFERED": "1"}
        if settings.threads:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        if settings.safety_checker is not None:
            environment[Variable.SAFETY_CHECKER] = str(settings.safety_checker)
        self.name, self._model, self._spoke, self._heard_at = None, "", False, time.monotonic()
        self.process = process = subprocess.Popen(
            list(self.supervisor.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        if process.stdin is None or process.stdout is None:
            return process.wait()
        with contextlib.suppress(OSError):
            process.stdin.write(settings.model_copy(update={"device": self.device}).to_json().encode() + b"\n")
            process.stdin.flush()
        self._hear(process.stdout)
        code = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        if self.name is not None:
            self.supervisor.buried(self.name)
        return code

    def _hear(self, stream: IO[bytes]) -> None:
        for raw in stream:
            what, detail = parsed(raw)
            self._heard_at, self._spoke = time.monotonic(), True
            if what == READY:
                self.name = detail
                if self._stopping.is_set():
                    self.ask_to_stop()  # The signal may have come before the worker had set its handler.
            elif what in (LOADED, UNUSABLE):
                self._model = what
            elif what != BEAT:
                self.supervisor.changed(what)


def free_dead(leases: Leases) -> int:
    """Free the jobs of this machine's workers whose process is gone; gives how many jobs."""
    freed = 0
    for name in leases.workers():
        host, process, named_at = (*name.split(":"), "", "")[:3]
        # Workers of other machines can't be asked; their leases run out.
        if host == socket.gethostname() and not _is_worker(int(process or 0), int(named_at or "0", 16) / 1e9):
            freed += leases.release(name)
    return freed


def _is_worker(process: int, named_at: float) -> bool:
    """Whether the process lives; a zombie does not, nor one that got a dead worker's number after it.

    Args:
        process: its id.
        named_at: when the worker took its name, in seconds since 1970; 0 if that is not known.
    """
    try:
        found = psutil.Process(process)
        if named_at and found.create_time() > named_at + CLOCK_SECONDS:
            return False
        return bool(found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
