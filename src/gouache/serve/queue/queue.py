"""The queue as its users see it: from the moment a request is accepted until its pictures are there or it failed."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from hashlib import sha256

from sqlalchemy import Connection, and_, bindparam, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gouache.errors import Conflict, NotFound, QueueFull, StoreAway
from gouache.pipeline.request import Request
from gouache.serve.queue.job import COLUMNS, OPEN, EndedJob, Ending, Job, JobEvent, Source
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database
from gouache.serve.store.gallery import CHANGED, drop_partial
from gouache.serve.store.tables import events, jobs, previews

OPEN_AT_ONCE = 1000
"""Jobs that are listed together to be cancelled."""


class JobQueue:
    """The queue.

    Args:
        database: where it lies.
        limits: caps on its length.
        discard: removes the file of a picture that is no longer listed.
    """

    def __init__(self, database: Database, limits: Limits, discard: Callable[[str], None] = lambda _: None) -> None:
        self.database, self.limits, self.discard = database, limits, discard

    def submit(
        self,
        request: Request,
        *,
        owner: str,
        source: Source,
        key: str | None = None,
        label: str = "",
        priority: int = 0,
        fingerprint: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a request: when this returns, it is on disk.

        Args:
            request: what to paint, its seed drawn.
            owner: whose it is.
            source: the interface it came through.
            key: a second job of the owner with this key is the first one.
            label: a note of the owner.
            priority: higher goes first.
            fingerprint: tells equal HTTP requests; the request's own without it.

        Returns:
            The job, and whether it is new.

        Raises:
            QueueFull: the queue or the owner's share is full.
            Conflict: the key was used for another request.
        """
        values = {
            "id": uuid.uuid4().hex,
            "state": "queued",
            "owner": owner,
            "source": source,
            "label": label[:256],
            "priority": priority,
            "request": request.to_json(),
            "idempotency_key": key,
            "created": time.time(),
            "fingerprint": fingerprint or fingerprint_of(request.to_json()),
            "pictures": request.count * (request.interpolation.frames if request.interpolation else 1),
        }
        try:
            with self.database.write() as connection:
                old = self._by_key(connection, owner, key)
                if old is None:
                    # In the same transaction as the insert. PostgreSQL may still let two in for the last place: the
                    # caps keep a server usable, and one job more does no harm.
                    self._check_room(connection, owner)
                    row = connection.execute(_SUBMIT, values).one()
                    note(connection, row.id, "queued")
                    return Job(**row._mapping), True
        except IntegrityError:
            # Another process inserted the same key between our look and our insert.
            old = self._by_key(None, owner, key)
            if old is None:
                raise
        # Answering with the first job would hide that the second request was never accepted.
        first = self.get(old[0])
        if old[1] != values["fingerprint"] and (fingerprint or not _same(first.parsed(), request)):
            raise Conflict(
                "idempotency key",
                given=repr(key),
                expected="a key that was not used for another request",
                cure="Make a new key for a new request.",
            )
        return first, False

    def _by_key(self, connection: Connection | None, owner: str, key: str | None) -> tuple[str, str] | None:
        if key is None:
            return None
        query = select(jobs.c.id, jobs.c.fingerprint).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        row = self.database.row(query) if connection is None else connection.execute(query).first()
        return None if row is None else (row.id, row.fingerprint)

    def _check_room(self, connection: Connection, owner: str) -> None:
        waiting = connection.execute(_WAITING, {"for_owner": owner}).one()._mapping
        for what, given, limit in (
            ("queue", waiting["all"], self.limits.queue),
            ("your jobs in the queue", waiting["own"], self.limits.queue_per_user),
        ):
            if given >= limit:
                raise QueueFull(what, given=given, expected=f"fewer than {limit}", cure="Try again later.")

    def recent_duplicate(self, owner: str, fingerprint: str, *, since: float) -> Job | None:
        """The owner's newest job with this fingerprint, unless it failed or was cancelled."""
        row = self.database.row(
            select(*COLUMNS)
            .where(jobs.c.owner == owner, jobs.c.fingerprint == fingerprint, jobs.c.created >= since)
            .where(jobs.c.state.in_((*OPEN, "done")))
            .order_by(jobs.c.seq.desc())
        )
        return None if row is None else Job(**row._mapping)

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """One job.

        Args:
            job_id: its id.
            owner: whose it must be; None for anybody's.

        Raises:
            NotFound: no such job, or somebody else's.
        """
        row = self.database.row(select(*COLUMNS).where(jobs.c.id == job_id))
        if row is None or (owner is not None and row.owner != owner):
            raise NotFound("job", given=repr(job_id), expected="the id of one of your jobs")
        return Job(**row._mapping)

    def listing(
        self,
        *,
        owner: str | None = None,
        states: Sequence[str] = (),
        source: str | None = None,
        label: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Job]:
        """Jobs, newest first; `before` is the `seq` to go on from."""
        query = select(*COLUMNS).order_by(jobs.c.seq.desc()).limit(limit)
        for wanted, clause in (
            (owner, jobs.c.owner == owner),
            (states, jobs.c.state.in_(states)),
            (source, jobs.c.source == source),
            (label, jobs.c.label == label),
            (before, jobs.c.seq < (before or 0)),
        ):
            query = query.where(clause) if wanted else query
        return [Job(**row._mapping) for row in self.database.rows(query)]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        rows = self.database.rows(select(jobs.c.state, func.count().label("many")).group_by(jobs.c.state))
        found = {str(row.state): int(row.many) for row in rows}
        return {"queued": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0} | found

    def ended_since(self, moment: float) -> list[EndedJob]:
        """Jobs that ended after a time, the newest first; at most the last ten thousand."""
        query = select(jobs.c.id, jobs.c.state, jobs.c.created, jobs.c.started, jobs.c.finished)
        query = query.where(jobs.c.finished > moment).order_by(jobs.c.finished.desc()).limit(10_000)
        return [EndedJob(**row._mapping) for row in self.database.rows(query)]

    def steps_per_second(self, seconds: float) -> float:
        """Steps of the jobs that ended in the last so many seconds, by the time they took."""
        ended = select(jobs.c.steps, jobs.c.pictures, jobs.c.started, jobs.c.finished)
        rows = self.database.rows(ended.where(jobs.c.state == "done", jobs.c.finished > time.time() - seconds))
        spent = sum(row.finished - row.started for row in rows)
        return sum(row.steps * row.pictures for row in rows) / spent if spent else 0.0

    def oldest_wait(self) -> float:
        """Seconds that the oldest waiting job has waited."""
        row = self.database.row(select(func.min(jobs.c.created).label("oldest")).where(jobs.c.state == "queued"))
        return 0.0 if row is None or row.oldest is None else time.time() - float(row.oldest)

    def position(self, job: Job) -> int | None:
        """How many waiting jobs go before this one if nobody else's turn comes between; None unless it waits."""
        # By age alone: the users' turns change with every claim, and an estimate that jumps about helps nobody.
        if job.state != "queued":
            return None
        before = or_(jobs.c.priority > job.priority, and_(jobs.c.priority == job.priority, jobs.c.seq < job.seq))
        query = select(func.count().label("ahead")).select_from(jobs).where(jobs.c.state == "queued", before)
        row = self.database.row(query)
        return 0 if row is None else int(row.ahead)

    def cancel(self, job_id: str, owner: str | None = None, *, ending: Ending = "drop") -> Job:
        """Ask for the end of one job: at once if it waits, after the current step if it runs.

        Args:
            job_id: its id.
            owner: whose it must be.
            ending: what becomes of the picture that is being painted: "drop" it, "keep" it as it stands, or keep it
                and "skip" to the job's next one.

        Raises:
            NotFound: no such job.
            Conflict: it is finished.
        """
        self.get(job_id, owner)
        with self.database.write() as connection:
            # Each update names the state that it changes, so that a worker's claim in between can't be overwritten.
            waiting = update(jobs).where(jobs.c.id == job_id, jobs.c.state == "queued")
            if connection.execute(waiting.values(state="cancelled", finished=time.time())).rowcount:
                note(connection, job_id, "cancelled")
            else:
                # Only asked for: the worker holds the job, and alone knows what of it is finished.
                running = update(jobs).where(jobs.c.id == job_id, jobs.c.state == "running")
                if ending != "drop":
                    note(connection, job_id, ending)
                stopping = connection.execute(running.values(cancel_requested=True)).rowcount
                if not stopping:
                    raise Conflict("job", given="a finished job", expected="one that waits or runs")
        return self.get(job_id, owner)

    def cancel_all(self, owner: str) -> int:
        """Ask for the end of every job of a user that waits or runs, and say how many there were."""
        count = 0
        while found := self.listing(owner=owner, states=("queued", "running"), limit=OPEN_AT_ONCE):
            asked = [job for job in found if not job.cancel_requested]
            for job in asked:
                # It may have ended since it was listed.
                with contextlib.suppress(Conflict):
                    self.cancel(job.id)
                    count += 1
            if not asked:
                break
        return count

    def retry(self, job_id: str, owner: str | None = None) -> Job:
        """Put a failed or cancelled job back into the queue; what it left half painted is painted again.

        Raises:
            NotFound: no such job.
            Conflict: it is neither failed nor cancelled.
            QueueFull: the queue is full.
        """
        job = self.get(job_id, owner)
        with self.database.write() as connection:
            self._check_room(connection, job.owner)
            ended = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(("failed", "cancelled")))
            values = {
                "state": "queued",
                "attempts": 0,
                "error": None,
                "finished": None,
                "started": None,
                "cancel_requested": False,
                "step": 0,
                "picture": 0,
            }
            if not connection.execute(ended.values(values)).rowcount:
                raise Conflict("job", given=f"a job that is {job.state}", expected="one that failed or was cancelled")
            # An old "keep" must not speak for a cancellation to come.
            connection.execute(delete(events).where(events.c.job == job_id, events.c.kind.in_(("keep", "skip"))))
            files = drop_partial(connection, job_id)
            note(connection, job_id, "queued", "again")
        for file in files:
            self.discard(file)
        return self.get(job_id, owner)

    def watch(self, job_id: str, seconds: float) -> None:
        """Somebody looks at this job: previews are made for so long."""
        until = time.time() + seconds
        # Every viewer asks again and again; half of the time must be over before anything is written.
        stale = update(jobs).where(jobs.c.id == job_id, jobs.c.watched_until < until - seconds / 2)
        # Nobody misses a preview while the store is away.
        with contextlib.suppress(StoreAway), self.database.write(durable=False) as connection:
            connection.execute(stale.values(watched_until=until))

    def preview(self, job_id: str) -> tuple[int, bytes] | None:
        """Number and JPEG of the newest preview."""
        row = self.database.row(select(previews.c.number, previews.c.jpeg).where(previews.c.job == job_id))
        return None if row is None else (row.number, row.jpeg)

    def events(self, job_id: str, after: int = 0) -> list[JobEvent]:
        """What happened to a job since the event with number `after`."""
        query = select(events).where(events.c.job == job_id, events.c.seq > after, events.c.kind != CHANGED)
        query = query.order_by(events.c.seq)
        return [JobEvent(**row._mapping) for row in self.database.rows(query)]


# Built once: building a statement takes longer than SQLite takes to run it.
_SUBMIT = insert(jobs).returning(*COLUMNS)
_OWN = func.coalesce(func.sum(case((jobs.c.owner == bindparam("for_owner"), 1), else_=0)), 0)
_WAITING = select(func.count().label("all"), _OWN.label("own")).where(jobs.c.state == "queued")
_NOTE = insert(events)


def note(connection: Connection, job_id: str, kind: str, detail: str = "") -> None:
    """Write down what happened to a job, inside the transaction in which it happens."""
    connection.execute(_NOTE, {"job": job_id, "time": time.time(), "kind": kind, "detail": detail})


def _same(stored: Request, request: Request) -> bool:
    """Whether a request asks for what a stored one does, which an earlier version may have stored: it had fewer fields,
    and no negative prompt was an empty one."""
    both = (one.replace({"negative_prompt": one.negative_prompt or None}) for one in (stored, request))
    return len({one.to_json() for one in both}) == 1


def fingerprint_of(text: str) -> str:
    """sha256 of a text."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
