"""What a user says about the order of their own waiting jobs, and when each of them may be done.

The places in the queue that a user's waiting jobs have stay theirs: another order deals the same places out anew, so
that nobody else's jobs go earlier or later for it. A paused user's jobs keep their places and are not claimed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from gouache.errors import Conflict, NotFound
from gouache.serve.queue.leases import LOCK_OF_CLAIMS
from gouache.serve.queue.queue import note
from gouache.serve.store.database import Database, ask, insert_missing
from gouache.serve.store.tables import jobs, pauses

MOST_LISTED = 200
"""Waiting jobs of one user that are put in order for a reader; those behind them are counted."""
_PACED = 100
"""Jobs, the newest of all, by which the pace is told."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many jobs are open: one user's, and everybody else's."""

    mine_waiting: int
    mine_running: int
    others_waiting: int
    others_running: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a waiting job stands.

    Attributes:
        id: the job's.
        position: waiting jobs before it by priority and age, anybody's; as `JobQueue.position`.
        eta_seconds: until it is done, at the pace of the last jobs; None if that isn't known or the user has paused.
    """

    id: str
    position: int
    eta_seconds: float | None


class QueueOrder:
    """The order of waiting jobs, user by user.

    Args:
        database: where the queue lies.
        workers: how many work for it, as far as this server knows.
    """

    def __init__(self, database: Database, workers: int) -> None:
        self.database, self.workers = database, max(1, workers)

    def pause(self, owner: str) -> None:
        """No waiting job of this user is claimed until `resume`; what runs goes on."""
        with self.database.write() as connection:
            insert_missing(connection, pauses, {"owner": owner, "since": time.time()})

    def resume(self, owner: str) -> None:
        """The user's jobs are claimed again."""
        with self.database.write() as connection:
            connection.execute(delete(pauses).where(pauses.c.owner == owner))

    def move(self, job_id: str, owner: str, before: str | None) -> None:
        """Let a waiting job go directly before another one of the same user, or after all of them.

        A place is a priority and an age, so that a job that goes before one of a higher priority takes that priority.

        Args:
            job_id: the job that is moved.
            owner: whose both must be.
            before: the other job; None for the end.

        Raises:
            NotFound: no such job, or somebody else's.
            Conflict: one of them no longer waits.
        """
        with self.database.write() as connection:
            if not self.database.sqlite:
                ask(connection, LOCK_OF_CLAIMS)
            places = connection.execute(_OWN_PLACES, {"for_owner": owner}).all()
            order = [row.id for row in places]
            for name in (job_id, before):
                if name is not None and name not in order:
                    raise _doesnt_wait(connection, name, owner)
            if before != job_id:
                order.remove(job_id)
                order.insert(len(order) if before is None else order.index(before), job_id)
            moved = [(name, place) for name, place in zip(order, places, strict=True) if name != place.id]
            if moved:
                # No two rows may have one number even for a moment: first all of them go where nobody is.
                connection.execute(_TO, [{"moved": n, "seq": -p.seq, "priority": p.priority} for n, p in moved])
                connection.execute(_TO, [{"moved": n, "seq": p.seq, "priority": p.priority} for n, p in moved])
                note(connection, job_id, "moved")

    def cancel_waiting(self, owner: str) -> list[str]:
        """End every job of a user that waits; gives their ids."""
        with self.database.write() as connection:
            if not self.database.sqlite:
                ask(connection, LOCK_OF_CLAIMS)
            found = connection.execute(_CANCEL, {"for_owner": owner, "finished": time.time()}).scalars().all()
            for name in found:
                note(connection, name, "cancelled")
        return list(found)

    def loads(self, owners: Iterable[str]) -> dict[str, Load]:
        """How many jobs are open, as each of some users may know it."""
        with self.database.read() as connection:
            rows = ask(connection, _OPEN).all()
            paused = {row[0] for row in ask(connection, _PAUSED)}
        everybody = {state: sum(row.many for row in rows if row.state == state) for state in ("queued", "running")}
        mine = {(row.owner, row.state): row.many for row in rows}
        found = {}
        for owner in owners:
            waiting, running = mine.get((owner, "queued"), 0), mine.get((owner, "running"), 0)
            others = everybody["queued"] - waiting, everybody["running"] - running
            found[owner] = Load(waiting, running, *others, owner in paused)
        return found

    def places(self, owner: str) -> list[Place]:
        """A user's waiting jobs in the order in which they will run, the first `MOST_LISTED` of them."""
        with self.database.read() as connection:
            mine = ask(connection, _POSITIONS, owner, MOST_LISTED).all()
            if not mine:
                return []
            paused = {row[0] for row in ask(connection, _PAUSED)}
            others = [row for row in ask(connection, _BY_OWNER).all() if row.owner not in paused or row.owner == owner]
            served = {row.owner: row.served for row in ask(connection, _TURNS)}
            running = ask(connection, _RUNNING).all()
            newest = ask(connection, _NEWEST, _PACED).all()
        pace = _seconds_per_picture(newest)
        if pace is None or owner in paused:
            return [Place(row.id, int(row.position), None) for row in mine]
        left = sum(max(0.0, row.pictures - row.picture - (row.step / row.steps if row.steps else 0)) for row in running)
        workers = max(self.workers, len(running))
        ahead = _pictures_ahead(mine, others, served, owner)
        return [
            Place(row.id, int(row.position), (left + before) / workers * pace + row.pictures * pace)
            for row, before in zip(mine, ahead, strict=True)
        ]


def _pictures_ahead(
    mine: Sequence[Row[Any]], everybody: Sequence[Row[Any]], served: dict[str, float], owner: str
) -> list[float]:
    """Pictures that are painted before each of a user's jobs, if users take turns as `Leases.claim` lets them."""
    turn = {(row.priority, row.owner): (served.get(row.owner, 0.0), row.oldest) for row in everybody}
    found: list[float] = []
    own, level, number = 0.0, None, 0
    for job in mine:
        number = 0 if job.priority != level else number + 1
        level = job.priority
        before = own
        for row in everybody:
            if row.owner == owner:
                continue
            # As many turns as this user had, and one more for those whose turn comes first.
            turns = number + (turn[row.priority, row.owner] < turn[level, owner]) if row.priority == level else row.many
            if row.priority >= level:
                before += float(row.pictures) * min(row.many, turns) / row.many
        found.append(before)
        own += job.pictures
    return found


def _seconds_per_picture(newest: Sequence[Row[Any]]) -> float | None:
    done = [row for row in newest if row.state == "done" and row.started is not None]
    pictures = sum(row.pictures for row in done)
    return sum(row.finished - row.started for row in done) / pictures if pictures else None


def _doesnt_wait(connection: Connection, job_id: str, owner: str) -> Conflict | NotFound:
    row = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id, jobs.c.owner == owner)).first()
    if row is None:
        return NotFound("job", given=repr(job_id), expected="the id of one of your jobs")
    return Conflict("job", given=f"a job that is {row.state}", expected="one that waits")


# Built once: building a statement takes longer than SQLite takes to run it.
_OWN_PLACES = (
    select(jobs.c.id, jobs.c.seq, jobs.c.priority)
    .where(jobs.c.state == "queued", jobs.c.owner == bindparam("for_owner"))
    .order_by(jobs.c.priority.desc(), jobs.c.seq)
    .with_for_update()
)
_TO = (
    update(jobs)
    .where(jobs.c.id == bindparam("moved"), jobs.c.state == "queued")
    .values(seq=bindparam("seq"), priority=bindparam("priority"))
)
_CANCEL = (
    update(jobs)
    .where(jobs.c.state == "queued", jobs.c.owner == bindparam("for_owner"))
    .values(state="cancelled", finished=bindparam("finished"))
    .returning(jobs.c.id)
)
_OPEN = "SELECT owner, state, count(*) AS many FROM jobs WHERE state IN ('queued', 'running') GROUP BY owner, state"
_PAUSED = "SELECT owner FROM pauses"
_TURNS = "SELECT owner, served FROM turns"
_POSITIONS = (
    "SELECT id, priority, pictures, position FROM (SELECT id, owner, priority, pictures, seq,"
    " row_number() OVER (ORDER BY priority DESC, seq) - 1 AS position FROM jobs WHERE state = 'queued') AS waiting"
    " WHERE owner = ? ORDER BY position LIMIT ?"
)
_BY_OWNER = (
    "SELECT priority, owner, count(*) AS many, sum(pictures) AS pictures, min(seq) AS oldest"
    " FROM jobs WHERE state = 'queued' GROUP BY priority, owner"
)
_RUNNING = "SELECT pictures, picture, step, steps FROM jobs WHERE state = 'running'"
# By number alone: an index by state would be sorted whole for it.
_NEWEST = "SELECT state, started, finished, pictures FROM jobs WHERE seq > (SELECT max(seq) FROM jobs) - ?"
