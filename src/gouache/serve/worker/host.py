"""`gouache worker`: workers of a studio on a machine that serves no page, beside servers elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence

from sqlalchemy import make_url

from gouache.serve.logs import log_to_stderr
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.queue.leases import Leases
from gouache.serve.settings import Settings
from gouache.serve.start import check_can_paint
from gouache.serve.store.database import Database
from gouache.serve.store.object_store import open_file_store
from gouache.serve.worker.supervisor import WORKER_COMMAND, Supervisor


def run_workers(settings: Settings, announce: Callable[[str], object], command: Sequence[str] = WORKER_COMMAND) -> None:
    """Start workers, start them again when they die, and stop them when a signal asks for the end.

    Args:
        settings: of the studio; `workers` says how many.
        announce: told when they are started.
        command: starts a worker.

    Raises:
        StoreError, StoreAway: the store or the files can't be used.
        GouacheError: as `check_can_paint`.
    """
    database = Database(settings.store_url)
    stop = stop_at_signals()
    try:
        # What every worker would only write to the log, again and again.
        open_file_store(settings.data, settings.files)
        check_can_paint(
            ModelCatalog(settings.model_folders, database, settings.default_model), settings, settings.workers
        )
        log_to_stderr()
        # Servers look by themselves for what changed: nobody here waits for it.
        supervisor = Supervisor(settings, Leases(database), lambda _: None, command)
        supervisor.start()
        announce(started(settings))
        stop.wait()
        supervisor.stop()
    finally:
        database.close()


def stop_at_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def started(settings: Settings) -> str:
    """What to announce."""
    store = make_url(settings.store_url).render_as_string(hide_password=True)
    return f"{settings.workers} worker{'s' * (settings.workers != 1)} for {store}"
