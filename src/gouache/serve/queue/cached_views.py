"""A quick look at one job: what pollers ask for, again and again, by the hundred.

The reply is the one of `JobView`, built from the row without the detour over models, and used again for as long as the
store says that nothing in it was written: SQLite by `PRAGMA data_version`, PostgreSQL by its snapshot, which names the
transactions whose work can be seen.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

from gouache.errors import NotFound, StoreAway
from gouache.pipeline.request import Request
from gouache.serve.queue.job import COLUMNS, Job
from gouache.serve.store.database import Database, ask

MOST_KEPT = 1000
_NAMES = [column.name for column in COLUMNS]
# Only names of our own columns are in it.
_JOB = f"SELECT {', '.join(_NAMES)} FROM jobs WHERE id = ?"  # nosec B608
_PICTURES = "SELECT id FROM pictures WHERE job = ? AND deleted IS NULL ORDER BY number"
_POSITION = "SELECT count(*) FROM jobs WHERE state = 'queued' AND (priority > ? OR (priority = ? AND seq < ?))"
_VERSION = {"sqlite": "PRAGMA data_version", "postgresql": "SELECT pg_current_snapshot()::text"}
_SHOWN = (
    "id",
    "state",
    "source",
    "label",
    "priority",
    "created",
    "started",
    "finished",
    "attempts",
    "step",
    "steps",
    "seq",
)


class CachedJobView:
    """Replies about single jobs, from one connection of its own.

    Args:
        database: the store.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._version = ""
        self._kept: dict[str, tuple[str, bytes]] = {}

    def at(self, job_id: str, owner: str) -> bytes:
        """The job as JSON, in the shape of `JobView`.

        Raises:
            NotFound: no such job, or somebody else's.
        """
        with self._lock:
            try:
                kept = self._looked_up(job_id)
            except StoreAway:  # The database was started anew meanwhile, which this connection didn't live to see.
                self._drop()
                kept = self._looked_up(job_id)
        if kept[0] != owner:
            raise not_yours(job_id)
        return kept[1]

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._drop()

    def _looked_up(self, job_id: str) -> tuple[str, bytes]:
        connection = self._opened()
        # Asked before anything is read: what is written in between is found by the next look.
        version = str(connection.exec_driver_sql(_VERSION[connection.dialect.name]).scalar_one())
        if version != self._version or len(self._kept) > MOST_KEPT:
            self._version, self._kept = version, {}
        if job_id not in self._kept:
            self._kept[job_id] = _read(connection, job_id)
        return self._kept[job_id]

    def _opened(self) -> Connection:
        if self._connection is None:
            # Every statement sees the newest rows.
            self._connection = self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def not_yours(job_id: str) -> NotFound:
    """The error for a job that isn't there, or is somebody else's."""
    return NotFound("job", given=repr(job_id), expected="the id of one of your jobs")


def _read(connection: Connection, job_id: str) -> tuple[str, bytes]:
    row = ask(connection, _JOB, job_id).first()
    if row is None:
        raise not_yours(job_id)
    job = Job(**{**dict(zip(_NAMES, row, strict=True)), "cancel_requested": bool(row.cancel_requested)})
    pictures = [one[0] for one in ask(connection, _PICTURES, job_id)]
    position = None
    if job.state == "queued":
        position = ask(connection, _POSITION, job.priority, job.priority, job.seq).scalar_one()
    values = shown(job, pictures, position)
    return job.owner, f'{json.dumps(values)[:-1]}, "request": {_whole(job.request)}}}'.encode()


def shown(job: Job, pictures: Sequence[str], position: int | None) -> dict[str, Any]:
    """A job in the shape of `JobView`, but for its request.

    Args:
        job: the row.
        pictures: ids of its pictures.
        position: waiting jobs before it; None unless it waits.
    """
    return {name: getattr(job, name) for name in _SHOWN} | {
        "cancel_requested": bool(job.cancel_requested),
        "position": position,
        "progress": job.fraction,
        "eta_seconds": job.eta(time.time()),
        "picture": len(pictures),
        "picture_count": job.pictures,
        "pictures": list(pictures),
        "error": job.error_parts(),
    }


@lru_cache(maxsize=1024)
def _whole(text: str) -> str:
    """A stored request with every field, as the models write it."""
    return Request.from_json(text, where="job").model_dump_json()
