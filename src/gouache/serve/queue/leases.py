"""The queue as a worker sees it.

A job that a worker holds has a lease. Everything a worker writes names the job, the worker and the attempt, so that a
worker that lost its lease (it was thought dead) can write nothing more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, select, update

from gouache.errors import GouacheError, WorkerError
from gouache.pipeline.request import Request
from gouache.serve.queue.job import COLUMNS, MAX_ATTEMPTS, Ending, Job, JobState, Orders, parsed
from gouache.serve.queue.queue import note
from gouache.serve.queue.tasks import recover as recover_tasks
from gouache.serve.store.database import Database, ask, insert_missing, upsert
from gouache.serve.store.tables import events, jobs, pauses, pictures, previews, tasks, turns

LOCK_OF_CLAIMS = "SELECT pg_advisory_xact_lock(7860)"
"""Held in PostgreSQL by whoever takes a waiting job or gives it another place."""
PASSED_SECONDS = 30.0
"""A job is passed over for another of the same user, whose model is loaded, for so long at most."""
LOOKED_AHEAD = 64
"""So many of a user's waiting jobs are looked at for one whose model is loaded."""
IsLoaded = Callable[[Request], bool]
"""Whether a worker can paint a request without loading a model."""


class Leases:
    """What workers do with jobs.

    Args:
        database: where the queue lies.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, worker: str, lease: float, is_loaded: IsLoaded | None = None) -> Job | None:
        """Take the next job: highest priority first, then the user who waited longest for a turn, then the oldest.

        Jobs of users who paused their queue are left waiting.

        Args:
            worker: its name.
            lease: seconds after which the job of a silent worker is given up.
            is_loaded: of the jobs of that user and priority, one for which this says yes goes before older ones for
                which it says no; none of them is passed over for more than `PASSED_SECONDS`. None: strictly by age.
        """
        # Without a lock first: idle workers ask this several times a second, and SQLite has one lock for all writers.
        with self.database.read() as connection:
            if ask(connection, _ANY).first() is None:
                return None
        now = time.time()
        # Need not be durable: a claim that a power cut takes back leaves a queued job, and no worker to be surprised.
        with self.database.write(durable=False) as connection:
            seq = self._next(connection, is_loaded, now)
            if seq is None:
                return None
            values = {"worker": worker, "lease_until": now + lease, "started": now}
            job = Job(**connection.execute(_CLAIM, {"claimed": seq, **values}).one()._mapping)
            upsert(connection, turns, {"owner": job.owner}, {"served": now})
            note(connection, job.id, "running", worker)
        return job

    def _next(self, connection: Connection, is_loaded: IsLoaded | None, now: float) -> int | None:
        """The `seq` of the job whose turn it is."""
        if not self.database.sqlite:
            # One claimer at a time: the choice depends on every waiting job. SQLite's transaction does this anyway.
            ask(connection, LOCK_OF_CLAIMS)
        # The oldest job of each user first, then the user whose last turn is longest ago: a hundred jobs of one user
        # delay another user's single job by one job at most.
        first = connection.execute(_NEXT).scalar()
        return first if first is None or is_loaded is None else _loaded_first(connection, first, is_loaded, now)

    def renew(self, job: Job, lease: float) -> bool:
        """Keep the lease; False if it is lost."""
        with self.database.write(durable=False) as connection:
            return connection.execute(_HELD, {**_holding(job), "lease_until": time.time() + lease}).rowcount > 0

    def orders(self, job: Job) -> Orders:
        """What the worker should do now."""
        with self.database.read() as connection:
            row = ask(connection, _ORDERS, job.seq).first()
        # The attempt too: this very worker may have lost the job and claimed it again in the meantime.
        if row is None or (row.state, row.worker, row.attempts) != ("running", job.worker, job.attempts):
            return Orders(held=False, cancel=False, watched=False)
        return Orders(held=True, cancel=bool(row.cancel_requested), watched=row.watched_until > time.time())

    def progress(self, job: Job, *, picture: int, step: int, steps: int, jpeg: bytes | None = None) -> None:
        """Write down how far it is, with a preview if there is one."""
        # Many times a second and worth nothing after a crash, so the disk is not waited for.
        with self.database.write(durable=False) as connection:
            values = {"picture": picture, "step": step, "steps": steps}
            if not connection.execute(_HELD, {**_holding(job), **values}).rowcount:
                return
            if jpeg is not None:
                # The number only has to grow within a job, so that a viewer can tell a new preview from the last one.
                upsert(connection, previews, {"job": job.id}, {"number": picture * 10_000 + step, "jpeg": jpeg})

    def has_picture(self, job: Job, number: int) -> bool:
        """Whether an earlier attempt listed this picture of a job."""
        with self.database.read() as connection:
            return ask(connection, _LISTED, job.id, number).first() is not None

    def add_picture(self, connection: Connection, row: dict[str, object]) -> None:
        """List a picture unless an earlier attempt did."""
        if insert_missing(connection, pictures, row):
            note(connection, str(row["job"]), "picture", str(row["id"]))

    def finish(self, connection: Connection, job: Job) -> bool:
        """Mark it done, inside the transaction that lists its last picture; False if the lease is lost."""
        if not connection.execute(_FINISH, {**_holding(job), "finished": time.time()}).rowcount:
            return False
        ask(connection, _NO_PREVIEW, job.id)
        note(connection, job.id, "done")
        return True

    def fail(self, job: Job, error: Mapping[str, str]) -> None:
        """It can't be painted; it will not be tried again unless asked."""
        self._end(job, "failed", json.dumps(dict(error), ensure_ascii=False))

    def ending(self, job: Job) -> Ending:
        """What the one who cancelled wants of the picture that is being painted; the latest word counts."""
        wanted = select(events.c.kind).where(events.c.job == job.id, events.c.kind.in_(("keep", "skip")))
        row = self.database.row(wanted.order_by(events.c.seq.desc()).limit(1))
        return "drop" if row is None else "skip" if row.kind == "skip" else "keep"

    def go_on(self, connection: Connection, job: Job) -> bool:
        """Take a cancellation back that only meant one picture; False if the lease is lost."""
        connection.execute(delete(events).where(events.c.job == job.id, events.c.kind == "skip"))
        return connection.execute(_HELD, {**_holding(job), "cancel_requested": False}).rowcount > 0

    def cancelled(self, job: Job, picture: dict[str, object] | None = None) -> None:
        """The worker stopped it, as asked; a picture that is to be kept is listed in the same transaction."""
        self._end(job, "cancelled", None, picture)

    def _end(self, job: Job, state: JobState, error: str | None, picture: dict[str, object] | None = None) -> None:
        values = {"state": state, "finished": time.time(), "error": error, "worker": None, "lease_until": None}
        with self.database.write() as connection:
            if connection.execute(_HELD, {**_holding(job), **values}).rowcount:
                if picture is not None:
                    self.add_picture(connection, picture)
                note(connection, job.id, state)

    def give_back(self, job: Job) -> None:
        """Put a job that was not finished back, without counting the attempt: the worker was told to stop."""
        with self.database.write() as connection:
            waiting = _HELD.values(**_WAITING, attempts=jobs.c.attempts - 1)
            if connection.execute(waiting, _holding(job)).rowcount:
                note(connection, job.id, "queued", "the worker stopped")

    def take_back(self, worker: str) -> int:
        """Put back what a worker that works on nothing still holds, without counting the attempt; gives how many jobs.

        The store may go away between the moment it notes a claim and the one in which it says so.
        """
        with self.database.write() as connection:
            held = update(jobs).where(jobs.c.state == "running", jobs.c.worker == worker)
            given = connection.execute(held.values(**_WAITING, attempts=jobs.c.attempts - 1).returning(jobs.c.id)).all()
            for row in given:
                note(connection, row.id, "queued", "the store was away")
        return len(given)

    def release(self, worker: str) -> int:
        """A worker is known to be dead: what it held goes back now, without waiting for leases to run out.

        Returns:
            How many jobs it held.
        """
        with self.database.write(durable=False) as connection:
            recover_tasks(connection, tasks.c.worker == worker)
        return self._recover(jobs.c.worker == worker)

    def release_expired(self) -> int:
        """Jobs and tasks whose worker has been silent for too long go back; gives how many jobs."""
        silent = and_(tasks.c.state == "running", tasks.c.lease_until < time.time())
        if self.database.row(select(tasks.c.id).where(silent).limit(1)) is not None:
            with self.database.write(durable=False) as connection:
                recover_tasks(connection, silent)
        # Asked before anything is locked: nearly always there are none.
        late = and_(jobs.c.state == "running", jobs.c.lease_until < time.time())
        if self.database.row(select(jobs.c.id).where(late).limit(1)) is None:
            return 0
        return self._recover(jobs.c.lease_until < time.time())

    def workers(self) -> list[str]:
        """Every worker that holds a job."""
        query = select(jobs.c.worker).where(jobs.c.state == "running", jobs.c.worker.is_not(None)).distinct()
        return [row.worker for row in self.database.rows(query)]

    def _recover(self, lost: ColumnElement[bool]) -> int:
        """Back into the queue, to the end that was asked for, or failed for good after too many attempts."""
        running = and_(jobs.c.state == "running", lost)
        with self.database.write() as connection:
            # Two servers may notice the same death. The rows are locked, so that the second finds none running.
            found = connection.execute(
                select(jobs.c.id, jobs.c.attempts, jobs.c.cancel_requested).where(running).with_for_update()
            ).all()
            for job_id, attempts, cancel in found:
                _recover_one(connection, job_id, attempts, cancel=bool(cancel))
        return len(found)


def _next_in_turn() -> Select[int]:
    waits = and_(jobs.c.state == "queued", jobs.c.owner.not_in(select(pauses.c.owner)))
    highest = select(func.max(jobs.c.priority)).where(waits).scalar_subquery()
    oldest = (
        select(func.min(jobs.c.seq).label("seq"), jobs.c.owner)
        .where(waits, jobs.c.priority == highest)
        .group_by(jobs.c.owner)
        .subquery()
    )
    order = select(oldest.c.seq).outerjoin(turns, turns.c.owner == oldest.c.owner)
    return order.order_by(func.coalesce(turns.c.served, 0.0), oldest.c.seq).limit(1)


def _loaded_first(connection: Connection, first: int, is_loaded: IsLoaded, now: float) -> int:
    """Of the jobs of one user and priority, the oldest one whose model is loaded, unless an older one waited enough.

    Args:
        connection: inside a transaction that no other claim enters.
        first: `seq` of the oldest.
        is_loaded: see `Leases.claim`.
        now: the time.
    """
    for row in ask(connection, _WITH_IT, first, LOOKED_AHEAD).all():
        if _is_loaded(row.request, is_loaded):
            if row.seq != first:
                ask(connection, _PASS_OVER, now, row.owner, row.priority, first, row.seq)
            return int(row.seq)
        if row.passed_over is not None and now - row.passed_over > PASSED_SECONDS:
            break
    return first


def _is_loaded(request: str, is_loaded: IsLoaded) -> bool:
    try:
        return is_loaded(parsed(request))
    except GouacheError:  # Of an older gouache; whoever claims it says what is wrong with it.
        return False


# Built once: building a statement takes longer than SQLite takes to run it.
_NEXT = _next_in_turn()
_WITH_IT = (
    "SELECT waits.seq, waits.owner, waits.priority, waits.request, waits.passed_over FROM jobs AS waits"
    " JOIN jobs AS oldest ON oldest.seq = ? AND waits.owner = oldest.owner AND waits.priority = oldest.priority"
    " WHERE waits.state = 'queued' AND waits.seq >= oldest.seq ORDER BY waits.seq LIMIT ?"
)
_PASS_OVER = (
    "UPDATE jobs SET passed_over = ? WHERE state = 'queued' AND owner = ? AND priority = ?"
    " AND seq >= ? AND seq < ? AND passed_over IS NULL"
)
# Attempts are counted when a job is taken and not when it fails: a worker that is killed can count nothing.
_CLAIM = (
    update(jobs)
    .where(jobs.c.seq == bindparam("claimed"))
    .values(state="running", attempts=jobs.c.attempts + 1, picture=0, step=0, steps=0)
    .values({name: bindparam(name) for name in ("worker", "lease_until", "started")})
    .returning(*COLUMNS)
)
_HELD = update(jobs).where(
    jobs.c.seq == bindparam("held_seq"),
    jobs.c.state == "running",
    jobs.c.worker == bindparam("held_by"),
    jobs.c.attempts == bindparam("held_attempt"),
)
"""Acts only while the worker holds the job in this attempt; `_holding` says which."""
_FINISH = _HELD.values(
    state="done", finished=bindparam("finished"), worker=None, lease_until=None, picture=jobs.c.pictures, step=0
)
_LISTED = "SELECT id FROM pictures WHERE job = ? AND number = ?"
_NO_PREVIEW = "DELETE FROM previews WHERE job = ?"
_ANY = "SELECT seq FROM jobs WHERE state = 'queued' AND owner NOT IN (SELECT owner FROM pauses) LIMIT 1"
_ORDERS = "SELECT state, worker, attempts, cancel_requested, watched_until FROM jobs WHERE seq = ?"
_WAITING: dict[str, object] = {"state": "queued", "worker": None, "lease_until": None}


def _recover_one(connection: Connection, job_id: str, attempts: int, *, cancel: bool) -> None:
    one = update(jobs).where(jobs.c.id == job_id)
    if cancel:
        connection.execute(one.values(state="cancelled", finished=time.time(), worker=None, lease_until=None))
        note(connection, job_id, "cancelled")
    elif attempts >= MAX_ATTEMPTS:
        error = WorkerError(
            "worker",
            given=f"a job during which it died {attempts} times",
            expected="a job that lets it live",
            cure="Ask for less at once, then retry the job.",
        )
        values = {"state": "failed", "finished": time.time(), "error": json.dumps(error.to_dict())}
        connection.execute(one.values(**values, worker=None, lease_until=None))
        note(connection, job_id, "failed")
    else:
        connection.execute(one.values(_WAITING))
        note(connection, job_id, "queued", "the worker died")


def _holding(job: Job) -> dict[str, object]:
    return {"held_seq": job.seq, "held_by": job.worker, "held_attempt": job.attempts}
