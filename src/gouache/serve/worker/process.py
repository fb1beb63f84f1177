"""The worker: a process of its own that takes jobs from the store and paints them.

It hears its parent on standard input (first line: the settings; further bytes: ".": "look at the queue", "b": "look
for work beside painting", "u": "let go of your models"; the end: stop) and tells on standard output when something
changed, one job id a line. All truth is in the store; these lines only spare waiting.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

from gouache.errors import GouacheError, StoreAway, WorkerError
from gouache.pipeline.request import Request
from gouache.serve.logs import log_to_stderr
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.queue.heartbeat import BEATS, heartbeat
from gouache.serve.queue.job import Job
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.tasks import TaskQueue
from gouache.serve.search.index import Index
from gouache.serve.search.vectors import open_embedder
from gouache.serve.settings import Settings
from gouache.serve.store.database import Database
from gouache.serve.store.object_store import open_file_store
from gouache.serve.store.outages import Patience, outlast
from gouache.serve.worker.job_run import JobContext, JobRun, LeaseLost, Stopped
from gouache.serve.worker.loaded_models import LoadedModels, OpenModel, open_pipeline
from gouache.serve.worker.picture_tasks import Drawing, Upscaling
from gouache.serve.worker.reports import LOADED, READY, UNUSABLE, Reports, Tell

POLL_SECONDS = 0.25
INDEX_EVERY = 16
FREE_SECONDS = 1.0
"""Shortest time between two looks for jobs of silent workers."""
MODEL_SECONDS = 10.0
"""Time between two tries to load a default model that can't be used."""
log = logging.getLogger("gouache.worker")


class Worker:
    """Takes jobs one after the other.

    Args:
        settings: of the studio.
        open_model: loads models.
        tell: called with a job's id whenever something about it changed, and with what `reports.py` lists.
    """

    def __init__(self, settings: Settings, open_model: OpenModel, tell: Tell) -> None:
        self.settings, self.tell = settings, tell
        self.name = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns():x}"
        database = Database(settings.store_url)
        self.database, self.leases = database, Leases(database)
        self.file_store = open_file_store(settings.data, settings.files)
        self.catalog = ModelCatalog(settings.model_folders, database, settings.default_model, patience=0.0)
        self.models = LoadedModels(open_model, settings.model_memory, settings.device, settings.dtype, settings.engine)
        tasks = TaskQueue(database, self.name, settings.lease, tell)
        self.index = Index(database, self.file_store, tasks, lambda: open_embedder(settings.search_tower))
        self.upscaling = Upscaling(tasks, self.file_store, self.catalog)
        self.drawing = Drawing(tasks, self.file_store, settings.hide_places)
        self.context = JobContext(
            database, self.leases, self.file_store, self.catalog, self.models, tell, self._is_over
        )
        self.stop_at: float | None = None
        self.unload = threading.Event()
        self._freed_at = -FREE_SECONDS
        self._tried_at: float | None = None
        self._is_loaded = self._may_hold = False

    def stop(self, grace: float) -> None:
        """Take no further job; the running one has so many seconds."""
        if self.stop_at is None:
            self.stop_at = time.monotonic() + grace

    def _is_over(self) -> bool:
        return self.stop_at is not None and time.monotonic() > self.stop_at

    def run(self, wait: Callable[[float], bool]) -> None:
        """Work until `stop` is called.

        Args:
            wait: sleeps up to so many seconds, or until there may be a job; tells whether it was woken.
        """
        jobs, patience = 0, Patience("worker")
        while self.stop_at is None:
            try:
                jobs = self._round(wait, jobs)
                patience.over()
            except StoreAway as error:
                wait(patience.pause(error))

    def _round(self, wait: Callable[[float], bool], jobs: int) -> int:
        """One look at what is to be done; takes and gives how many jobs came without a pause."""
        if self.unload.is_set():
            self.unload.clear()
            self.models.forget()
            self.index.forget()
            self.upscaling.forget()
        worked = self.work_once()
        # After the job and not before it: what a silent worker left has waited for long, the next job need not.
        self._free_expired()
        if worked:
            jobs += 1
        elif wait(POLL_SECONDS):
            return jobs
        else:
            jobs = INDEX_EVERY
            self._load_default()
        if jobs >= INDEX_EVERY:
            # Nobody waits, or so many jobs came without a pause that the search would miss them for long.
            jobs = INDEX_EVERY if self._index() else 0
        return jobs

    def _load_default(self) -> None:
        """Show that the default model and the device can be used, once, before anybody waits for it."""
        now = time.monotonic()
        if self._is_loaded or (self._tried_at is not None and now - self._tried_at < MODEL_SECONDS):
            return
        self._tried_at = now
        try:
            self.models.get(self.catalog.find(None))
        except StoreAway:
            raise
        except Exception as error:  # Jobs of other models may still be painted.
            log.exception("default model")
            parts = error.to_dict() if isinstance(error, GouacheError) else {"message": str(error)}
            self.tell(UNUSABLE, json.dumps(parts))
        else:
            self._tell_loaded()

    def _tell_loaded(self) -> None:
        if not self._is_loaded:
            self._is_loaded = True
            self.tell(LOADED)

    def _free_expired(self) -> None:
        now = time.monotonic()
        # While the store was away nobody could renew a lease: whoever lives does so before it is looked at.
        if now - self.database.fault_at < self.settings.lease / BEATS + FREE_SECONDS:
            return
        if now - self._freed_at >= FREE_SECONDS:
            self._freed_at = now
            self.leases.release_expired()

    def _index(self) -> bool:
        try:
            return self.index.catch_up()
        except StoreAway:
            raise
        except Exception:  # The search must never keep jobs from being painted.
            log.exception("pictures without vectors")
            return False

    def beside(self, work: Callable[[], object], wait: Callable[[float], bool]) -> None:
        """Do something else than painting until `stop` is called; for a thread of its own.

        Args:
            work: one piece of it; gives something true where there may be more.
            wait: as in `run`.
        """
        patience = Patience("work beside painting")
        while self.stop_at is None:
            pause = POLL_SECONDS
            try:
                worked = work()
                patience.over()
                if worked:
                    continue
            except StoreAway as error:
                pause = patience.pause(error)
            except Exception:  # As above.
                log.exception("work beside painting")
            wait(pause)

    def work_once(self) -> bool:
        """Take one job and bring it to an end; False if there was none.

        Raises:
            StoreAway: no job could be looked for, or left.
        """
        if self._may_hold:
            self.leases.take_back(self.name)
            self._may_hold = False
        try:
            job = self.leases.claim(self.name, self.settings.lease, self._has_model_of if self.models.names() else None)
        except StoreAway:
            self._may_hold = True
            raise
        if job is None:
            return False
        log.info("job started", extra={"job": job.id, "attempt": job.attempts})
        self.tell(job.id)
        start = time.perf_counter()
        with heartbeat(lambda: self.leases.renew(job, self.settings.lease), self.settings.lease):
            self._bring_to_an_end(job)
        log.info("job left", extra={"job": job.id, "seconds": round(time.perf_counter() - start, 4)})
        self.tell(job.id)
        return True

    def _has_model_of(self, request: Request) -> bool:
        wanted = (request.model or self.catalog.default, request.refiner)
        return all(name is None or self.models.has(name) for name in wanted)

    def _bring_to_an_end(self, job: Job) -> None:
        try:
            JobRun(self.context, job).paint()
            if self._tried_at is None:  # So many jobs that the default model could not be tried apart.
                self._tell_loaded()
        except Stopped:
            # If the store is away even now, the next start of the server, or the end of the lease, frees the job.
            self.leases.give_back(job)
        except LeaseLost:
            log.warning("lease lost", extra={"job": job.id})
        except StoreAway:
            self._may_hold = True
            raise
        except GouacheError as error:
            self._fail(job, self._shown(error))
        except MemoryError:
            self.models.forget()
            short = WorkerError(
                "memory", given="not enough", expected="room for the pictures", cure="Ask for less at once."
            )
            self._fail(job, short.to_dict())
        except Exception as error:  # A job must never take the worker's loop down.
            log.exception("job failed", extra={"job": job.id})
            if "out of memory" in str(error).lower():
                self.models.forget()
            given = f"{type(error).__name__}: {error}"[:500]
            self._fail(job, self._shown(WorkerError("worker", given=given, expected="no such fault")))

    def _fail(self, job: Job, error: dict[str, str]) -> None:
        outlast(lambda: self.leases.fail(job, error), who=f"job {job.id}", check=self._check_time)

    def _check_time(self) -> None:
        if self._is_over():
            raise StoreAway("store", given="no answer", expected="one before the worker's time is up")

    def _shown(self, error: GouacheError) -> dict[str, str]:
        """An error as the job's owner reads it: not where files lie."""
        return {name: self.settings.hide_places(text) for name, text in error.to_dict().items()}


def main(open_model: OpenModel = open_pipeline) -> None:
    """Run a worker until standard input ends or a signal asks for the end."""
    reports = Reports()
    reports.beat()
    settings = Settings.from_json(_first_line(), where="worker settings")
    log_to_stderr()

    def check_parent() -> None:
        if not reports.heard:
            raise SystemExit("nobody waits for this worker any more")

    # What signals mean is not set yet: one ends a worker that waits here at once.
    worker = outlast(lambda: Worker(settings, open_model, reports.tell), who="worker", check=check_parent)
    reports.tell(READY, worker.name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop(settings.grace))
    wakes = Wakes()
    threading.Thread(target=_listen, args=(worker, wakes), daemon=True, name="parent").start()
    work_on(worker, wakes)


class Wakes:
    """What wakes the threads of a worker.

    Attributes:
        for_jobs: set where there may be a job.
        for_tasks: set where there may be something to do beside painting; one for each kind of it.
    """

    def __init__(self) -> None:
        self.for_jobs = threading.Event()
        self.for_tasks = tuple(threading.Event() for _ in range(3))

    def all(self) -> None:
        """Wake everybody."""
        _set_all((self.for_jobs, *self.for_tasks))


def work_on(worker: Worker, wakes: Wakes) -> None:
    """Paint, and do what there is beside painting, until the worker is told to stop."""
    # A thread for each kind of task: a search must not wait until a large picture is upscaled.
    works = (worker.index.answer, worker.upscaling.run_one, worker.drawing.run_one)
    for work, event in zip(works, wakes.for_tasks, strict=True):
        threading.Thread(target=worker.beside, args=(work, _waiting(event)), daemon=True, name=work.__name__).start()
    worker.run(_waiting(wakes.for_jobs))


def _waiting(event: threading.Event) -> Callable[[float], bool]:
    def wait(seconds: float) -> bool:
        woken = event.wait(seconds)
        event.clear()
        return woken

    return wait


def _first_line() -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line.decode("utf-8")


def _listen(worker: Worker, wakes: Wakes) -> None:
    """Wake the threads that a byte is meant for: the others would only take processor time from the painting.

    The end of standard input is the end of the parent.
    """
    while True:
        said = os.read(0, 4096)
        if not said:
            break
        if b"u" in said:
            worker.unload.set()
        if b"." in said or b"u" in said:
            wakes.for_jobs.set()
        if b"b" in said:
            _set_all(wakes.for_tasks)
    worker.stop(worker.settings.grace)
    wakes.all()


def _set_all(events: Sequence[threading.Event]) -> None:
    for event in events:
        event.set()


if __name__ == "__main__":
    main()
