"""Reads from the store what changed for the users who follow, whoever changed it."""

from __future__ import annotations

import base64
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row

from gouache.serve.api.views import picture_view
from gouache.serve.queue.cached_views import shown
from gouache.serve.queue.job import COLUMNS, Job
from gouache.serve.queue.order import Load, Place, QueueOrder
from gouache.serve.store.database import Database, ask
from gouache.serve.store.gallery import CHANGED, Gallery

MOST_MISSED = 1000
"""Events that are told again to a reader who comes back; more of them, and it starts afresh."""
MOST_MOVED = 20
"""Waiting jobs of one user whose new positions are told one by one."""
ORDER_SECONDS = 0.5
"""Shortest time between two looks at the order of a user's waiting jobs."""
ENDS = ("queued", "done", "failed", "cancelled")
"""Events after which a job doesn't run."""
PROMPT = 200
"""Characters of a prompt that tell jobs apart."""
_MOST_REMEMBERED = 4096
_OVERLAP = 200
"""PostgreSQL numbers events when they are written and shows them once committed: an older one may come late."""


@dataclass(frozen=True, slots=True)
class News:
    """Something that some reader is told.

    Attributes:
        owner: whose business it is.
        kind: the event's name.
        key: what it is about; a newer one of the same kind and key takes the place of one that is not sent yet.
        data: JSON.
    """

    owner: str
    kind: str
    key: str
    data: str


def seen(job: Job, pictures: Sequence[str], position: int | None) -> dict[str, Any]:
    """A job as those see it who follow: `JobView` with the beginning of its prompt in place of the request."""
    return shown(job, pictures, position) | {"prompt": _prompt_of(job.request)}


class NewsReader:
    """Remembers up to where it read, and what it told last. For one thread at a time.

    Args:
        database: the store.
        order: of the waiting jobs.
        gallery: of the pictures.
    """

    def __init__(self, database: Database, order: QueueOrder, gallery: Gallery) -> None:
        self.database, self.order, self.gallery = database, order, gallery
        self.seq = 0
        self._late: set[int] = set()
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._told: OrderedDict[str, tuple[object, ...]] = OrderedDict()
        self._positions: dict[str, int] = {}
        self._previews: dict[str, int] = {}
        self._again = False
        self._loads: dict[str, tuple[Load, tuple[str, ...]]] = {}
        self._ordered: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._late_orders: set[str] = set()
        self._running: set[str] = set()

    def catch_up(self) -> None:
        """Begin here; what happened before is nobody's news."""
        with self.database.read() as connection:
            self.seq = ask(connection, _LAST).scalar() or 0
            self._late = (
                {row.seq for row in _events_after(connection, self.seq - self._overlap)} if self._overlap else set()
            )
            running = ask(connection, _RUNNING).all()
        self._running = {row.id for row in running}
        for row in running:
            self._remember(row.id, row.owner)
        for known in (self._told, self._positions, self._previews, self._loads, self._ordered):
            known.clear()

    def show_again(self) -> None:
        """Tell the newest previews once more: somebody new looks. From any thread."""
        self._again = True

    def read(self, changed: Collection[str], owners: set[str], viewers: set[str], *, look: bool) -> list[News]:
        """What is new for some users.

        Args:
            changed: ids of jobs that are said to have changed.
            owners: who follows.
            viewers: those of them who want previews.
            look: also at what nobody would have told, such as the steps of another server's worker.
        """
        before = self.seq, self._late
        try:
            return self._read(changed, owners, viewers, look=look)
        except BaseException:
            self.seq, self._late = before  # What is not told yet is read again.
            raise

    def _read(self, changed: Collection[str], owners: set[str], viewers: set[str], *, look: bool) -> list[News]:
        with self.database.read() as connection:
            events = self._new_events(connection)
            ids = {event.job for event in events if event.owner in owners and event.kind != CHANGED}
            ids |= {one for one in changed if self._owners.get(one, None) in (None, *owners)}
            if look:
                ids |= {one for one in self._running if self._owners.get(one) in owners}
            stirred = any(event.kind not in (CHANGED, "picture") for event in events)
            queue, moved = self._queue(owners, stirred) if stirred or look or self._late_orders else ([], set())
            jobs = self._jobs(connection, ids | moved, owners)
            found = self._of_gallery(events, owners)
            found += self._pictures(events, owners)
            found += jobs
            found += self._newest_previews(connection, viewers)
        return found + queue

    def watched(self, viewers: set[str]) -> list[str]:
        """Jobs of which these users want to see previews: what runs, and what runs next."""
        running = [one for one in self._running if self._owners.get(one) in viewers]
        return running + [name for one in viewers for name in self._ordered.get(one, (0.0, ()))[1][:1]]

    @property
    def _overlap(self) -> int:
        return 0 if self.database.sqlite else _OVERLAP

    def _new_events(self, connection: Connection) -> list[Row[Any]]:
        rows = _events_after(connection, self.seq - self._overlap)
        fresh = [row for row in rows if row.seq not in self._late]
        if rows:
            self.seq = rows[-1].seq
            self._late = {row.seq for row in rows} if self._overlap else set()
        for row in fresh:
            self._remember(row.job, row.owner)
            if row.kind == "running":
                self._running.add(row.job)
            elif row.kind in ENDS:
                self._running.discard(row.job)
        return fresh

    def _remember(self, job_id: str, owner: str) -> None:
        _keep(self._owners, job_id, owner)

    def _jobs(self, connection: Connection, ids: Iterable[str], owners: set[str]) -> list[News]:
        rows = read_jobs(connection, ids)
        for job in rows:
            self._remember(job.id, job.owner)
            (self._running.add if job.state == "running" else self._running.discard)(job.id)
        mine = [job for job in rows if job.owner in owners]
        pictures = read_picture_ids(connection, [job.id for job in mine])
        found = []
        for job in mine:
            position = self._positions.get(job.id) if job.state == "queued" else None
            view = seen(job, pictures[job.id], position)
            said = tuple(str(value) for name, value in view.items() if name != "eta_seconds")
            if self._told.get(job.id) != said:
                _keep(self._told, job.id, said)
                found.append(News(job.owner, "job", job.id, json.dumps(view)))
        return found

    def _queue(self, owners: set[str], stirred: bool) -> tuple[list[News], set[str]]:
        """The queue as each user may know it, and the jobs whose new position is worth telling."""
        found: list[News] = []
        moved: set[str] = set()
        now, late = time.monotonic(), self._late_orders
        self._late_orders = set()
        for owner, load in self.order.loads(owners).items():
            if not stirred and owner not in late and self._loads.get(owner, (None,))[0] == load:
                continue
            told_at, ids = self._ordered.get(owner, (0.0, ()))
            places: list[Place] = []
            if not load.mine_waiting:
                ids = ()
                self._ordered[owner] = (told_at, ids)
            elif now - told_at < ORDER_SECONDS:
                self._late_orders.add(owner)
                continue
            else:
                places = self.order.places(owner)
                ids = tuple(place.id for place in places)
                self._ordered[owner] = (now, ids)
                moved |= {one.id for one in places[:MOST_MOVED] if self._positions.get(one.id) != one.position}
                self._positions.update({one.id: one.position for one in places})
            if self._loads.get(owner) != (load, ids):
                self._loads[owner] = (load, ids)
                order = [{"id": place.id, "eta_seconds": place.eta_seconds} for place in places]
                found.append(News(owner, "queue", "", json.dumps(asdict(load) | {"order": order})))
        if len(self._positions) > 10 * _MOST_REMEMBERED:
            self._positions.clear()
        return found, moved

    @property
    def is_late(self) -> bool:
        """Whether an order is still to be told."""
        return bool(self._late_orders)

    def _of_gallery(self, events: Sequence[Row[Any]], owners: set[str]) -> list[News]:
        found: dict[tuple[str, str], list[str]] = {}
        for event in events:
            if event.kind == CHANGED and event.owner in owners:
                change, _, picture = event.detail.partition(" ")
                found.setdefault((event.owner, change), []).append(picture)
        return [
            News(owner, "gallery", f"{self.seq} {change}", json.dumps({"ids": ids, "change": change}))
            for (owner, change), ids in found.items()
        ]

    def _pictures(self, events: Sequence[Row[Any]], owners: set[str]) -> list[News]:
        wanted = [event.detail for event in events if event.kind == "picture" and event.owner in owners]
        if not wanted:
            return []
        return picture_news(self.gallery, wanted)

    def _newest_previews(self, connection: Connection, viewers: set[str]) -> list[News]:
        again, self._again = self._again, False
        self._previews = {one: seen for one, seen in self._previews.items() if one in self._running and not again}
        found = []
        for job_id in self._running:
            owner = self._owners.get(job_id, "")
            row = ask(connection, _NUMBER, job_id).first() if owner in viewers else None
            if row is None or row.number == self._previews.get(job_id):
                continue
            newest = ask(connection, _PREVIEW, job_id).first()
            if newest is not None:
                self._previews[job_id] = newest.number
                jpeg = base64.b64encode(newest.jpeg).decode("ascii")
                data = {"job": job_id, "picture": newest.number // 10_000, "jpeg": jpeg}
                found.append(News(owner, "preview", job_id, json.dumps(data)))
        return found


def open_jobs(database: Database, order: QueueOrder, owner: str) -> dict[str, Any]:
    """What somebody needs to know who begins to follow: `jobs`, those that run first, and `queue`."""
    places = order.places(owner)
    with database.read() as connection:
        running = [row.id for row in ask(connection, _OWN_RUNNING, owner)]
        jobs = {job.id: job for job in read_jobs(connection, [*running, *(place.id for place in places)])}
        pictures = read_picture_ids(connection, list(jobs))
    positions = {place.id: place.position for place in places}
    listed = [jobs[one] for one in dict.fromkeys((*running, *positions)) if one in jobs]
    views = [seen(job, pictures[job.id], positions.get(job.id) if job.state == "queued" else None) for job in listed]
    waiting = [{"id": place.id, "eta_seconds": place.eta_seconds} for place in places]
    return {"jobs": views, "queue": asdict(order.loads([owner])[owner]) | {"order": waiting}}


def recent_jobs(database: Database, owner: str, many: int) -> list[dict[str, Any]]:
    """A user's jobs that ended, the newest first."""
    with database.read() as connection:
        rows = ask(connection, _ENDED, owner, many).all()
        jobs = {job.id: job for job in read_jobs(connection, [row.id for row in rows])}
        pictures = read_picture_ids(connection, list(jobs))
    return [seen(jobs[row.id], pictures[row.id], None) for row in rows]


def missed_by(database: Database, gallery: Gallery, owner: str, after: int, before: int) -> list[News] | None:
    """What a reader missed between two events; None if it is too much, or not known.

    Args:
        after: the last event that it saw.
        before: the last event that there is.
    """
    if after > before:  # It saw another store.
        return None
    with database.read() as connection:
        start = max(0, after - (0 if database.sqlite else _OVERLAP))
        rows = ask(connection, _MISSED, owner, start, MOST_MISSED + 1).all()
        if len(rows) > MOST_MISSED:
            return None
        jobs = read_jobs(connection, {row.job for row in rows if row.kind != CHANGED})
        pictures = read_picture_ids(connection, [job.id for job in jobs])
    found = picture_news(gallery, [row.detail for row in rows if row.kind == "picture"])
    found += [News(owner, "job", job.id, json.dumps(seen(job, pictures[job.id], None))) for job in jobs]
    changes: dict[str, list[str]] = {}
    for row in rows:
        if row.kind == CHANGED:
            change, _, picture = row.detail.partition(" ")
            changes.setdefault(change, []).append(picture)
    # What was deleted and restored meanwhile is told in the order in which it came to be so.
    return found + [
        News(owner, "gallery", change, json.dumps({"ids": ids, "change": change})) for change, ids in changes.items()
    ]


def picture_news(gallery: Gallery, ids: Sequence[str]) -> list[News]:
    """Pictures as they are listed; those that are gone again are left out."""
    found = gallery.listed(ids)
    tags = gallery.tags_of_all([picture.id for picture in found])
    return [News(p.owner, "picture", p.id, picture_view(p, tags[p.id]).model_dump_json()) for p in found]


def read_jobs(connection: Connection, ids: Iterable[str]) -> list[Job]:
    """Some jobs' rows, in no order."""
    names = list(ids)
    rows: list[Row[Any]] = []
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        rows += ask(connection, _JOBS + _marks(len(part)), *part).all()
    return [Job(**row._mapping) for row in rows]


def read_picture_ids(connection: Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    """Ids of the pictures of some jobs, by job, in their order."""
    found: dict[str, list[str]] = {one: [] for one in ids}
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        for row in ask(connection, _PICTURES + _marks(len(part)) + " ORDER BY job, number", *part):
            found[row.job].append(row.id)
    return found


def _events_after(connection: Connection, seq: int) -> list[Row[Any]]:
    found: list[Row[Any]] = []
    while True:
        rows = ask(connection, _EVENTS, found[-1].seq if found else seq, _AT_ONCE).all()
        found += rows
        if len(rows) < _AT_ONCE:
            return found


@lru_cache(maxsize=1024)
def _prompt_of(request: str) -> str:
    return str(json.loads(request).get("prompt", ""))[:PROMPT]


def _keep(known: OrderedDict[str, Any], name: str, value: object) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > _MOST_REMEMBERED:
        known.popitem(last=False)


def _marks(count: int) -> str:
    return f"({', '.join('?' * count)})"


_AT_ONCE = 200
_LAST = "SELECT max(seq) FROM events"
# Only names of our own columns and question marks are added to these.
_JOBS = f"SELECT {', '.join(column.name for column in COLUMNS)} FROM jobs WHERE id IN "  # nosec B608
_PICTURES = "SELECT id, job FROM pictures WHERE deleted IS NULL AND job IN "
_EVENTS = (
    "SELECT events.seq, events.job, events.kind, events.detail, jobs.owner FROM events"
    " JOIN jobs ON jobs.id = events.job WHERE events.seq > ? ORDER BY events.seq LIMIT ?"
)
_MISSED = (
    "SELECT events.seq, events.job, events.kind, events.detail FROM events JOIN jobs ON jobs.id = events.job"
    " WHERE jobs.owner = ? AND events.seq > ? ORDER BY events.seq LIMIT ?"
)
_RUNNING = "SELECT id, owner FROM jobs WHERE state = 'running'"
_OWN_RUNNING = "SELECT id FROM jobs WHERE state = 'running' AND owner = ? ORDER BY started"
# By the index of owners, from its end: the newest that ended are found there soon.
_ENDED = "SELECT id FROM jobs WHERE owner = ? AND state NOT IN ('queued', 'running') ORDER BY seq DESC LIMIT ?"
_NUMBER = "SELECT number FROM previews WHERE job = ?"
_PREVIEW = "SELECT number, jpeg FROM previews WHERE job = ?"
