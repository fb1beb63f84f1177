"""What workers do beside painting, for a caller that waits: upscale a picture, draw a control picture of one, turn a
text into a vector.

The web server has no networks, so that none can take it down. It adds a task, a worker claims it, runs it and stores
what came of it. A claim is a lease, as for jobs: a worker that lost it can write nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, select, update

from gouache.errors import GouacheError, InvalidInput, QueueFull, StoreAway, WorkerError
from gouache.serve.http.replies import NobodyAnswers
from gouache.serve.queue.heartbeat import heartbeat
from gouache.serve.queue.notify import Notifier, wait_until
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.file_store import FileStore, given_picture, made_picture
from gouache.serve.store.outages import outlast
from gouache.serve.store.tables import tasks

TaskKind = Literal["upscale", "draw", "embed"]
TaskState = Literal["waiting", "running", "done", "failed"]
OPEN: tuple[TaskState, ...] = ("waiting", "running")
MAX_ATTEMPTS: Mapping[str, int] = {"upscale": 1, "draw": 1, "embed": 3}
"""A picture that took a worker down by its size would do so again; a short text is hardly what did it."""
KEPT_SECONDS = 3600.0
"""Tasks of callers that died while they waited go after so long; answers that others may want are kept so long."""
OUTAGE_SECONDS = 60.0
"""A worker keeps what came of a task for so long if the store is away; its caller waits hardly longer."""
_NAMES: Mapping[str, str] = {"upscale": "upscaler", "draw": "preprocessor", "embed": "meaning"}
"""What an error names as its place."""
_INSTEAD: Mapping[str, str] = {"upscale": "Use Lanczos", "draw": "Send a control picture that is ready"}
"""What a caller can do where no worker draws."""
TaskOutcome = Mapping[str, Any] | GouacheError
"""What came of a task: its result, which can be JSON, or why there is none."""
log = logging.getLogger("gouache.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row of the table."""

    id: str
    kind: str
    state: TaskState
    payload: Mapping[str, Any]
    attempts: int
    worker: str | None
    result: Mapping[str, Any] | None
    error: Mapping[str, str] | None


def notified_as(task_id: str) -> str:
    """The name under which waiting coroutines are notified of a task."""
    return f"task:{task_id}"


class Tasks:
    """The table, as those see it who have something to be done.

    Args:
        database: where it lies.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, task_id: str, kind: TaskKind, payload: Mapping[str, Any]) -> None:
        """Add a task unless there is one of this id. It need not survive a power cut: its caller wouldn't either."""
        values = {"id": task_id, "kind": kind, "state": "waiting", "payload": json.dumps(dict(payload))}
        with self.database.write(durable=False) as connection:
            insert_missing(connection, tasks, values | {"created": time.time(), "attempts": 0})

    def get(self, task_id: str) -> Task | None:
        """A task as it stands."""
        row = self.database.row(select(tasks).where(tasks.c.id == task_id))
        return None if row is None else _task(row)

    def remove(self, task_id: str) -> None:
        """Forget a task, whatever its state."""
        with self.database.write(durable=False) as connection:
            connection.execute(delete(tasks).where(tasks.c.id == task_id))

    def open(self, kind: TaskKind) -> int:
        """How many are waiting or running."""
        query = select(func.count().label("many")).where(tasks.c.kind == kind, tasks.c.state.in_(OPEN))
        row = self.database.row(query)
        return 0 if row is None else int(row.many)


class TaskQueue:
    """The table as one worker sees it.

    Args:
        database: where it lies.
        worker: the worker's name.
        lease: seconds after which a task of a silent worker is given up.
        tell: called with the name of a task (`notified_as`) when it ended.
    """

    def __init__(self, database: Database, worker: str, lease: float, tell: Callable[[str], None]) -> None:
        self.database, self.worker, self.lease, self.tell = database, worker, lease, tell

    def run(self, kind: TaskKind, work: Callable[[Sequence[Task]], Sequence[TaskOutcome]], limit: int = 1) -> int:
        """Claim waiting tasks, run them and store what came of them; gives how many.

        Args:
            kind: which ones.
            work: runs all of them at once; what it raises is what came of each.
            limit: how many at most.
        """
        claimed = self._claim(kind, limit)
        if not claimed:
            return 0
        start = time.perf_counter()
        with heartbeat(lambda: self._renew(claimed), self.lease):
            outcomes = _outcomes(work, claimed)
            outlast(lambda: self._end(kind, claimed, outcomes), who="task", seconds=OUTAGE_SECONDS)
        log.info(
            "tasks done", extra={"kind": kind, "tasks": len(claimed), "seconds": round(time.perf_counter() - start, 4)}
        )
        for task in claimed:
            self.tell(notified_as(task.id))
        return len(claimed)

    def _end(self, kind: TaskKind, claimed: Sequence[Task], outcomes: Sequence[TaskOutcome]) -> None:
        with self.database.write(durable=False) as connection:
            for task, outcome in zip(claimed, outcomes, strict=True):
                connection.execute(update(tasks).where(self._held(task)).values(_ended(outcome)))
            old = (tasks.c.kind == kind, tasks.c.created < time.time() - KEPT_SECONDS)
            connection.execute(delete(tasks).where(*old, tasks.c.state.not_in(OPEN)))

    def forget(self, kind: TaskKind, *, before: float | None = None) -> None:
        """Remove every task of a kind, or those that were added before a time."""
        gone = delete(tasks).where(tasks.c.kind == kind)
        with self.database.write(durable=False) as connection:
            connection.execute(gone if before is None else gone.where(tasks.c.created < before))

    def _claim(self, kind: TaskKind, limit: int) -> list[Task]:
        waiting = and_(tasks.c.kind == kind, tasks.c.state == "waiting")
        query = select(tasks.c.id).where(waiting).order_by(tasks.c.created).limit(limit)
        # Looked for without a lock first: idle workers ask this several times a second.
        while names := [row.id for row in self.database.rows(query)]:
            values = {"state": "running", "worker": self.worker, "lease_until": time.time() + self.lease}
            # The state is asked again in the statement that takes them: another worker may have been quicker.
            taken = update(tasks).where(tasks.c.id.in_(names), waiting).values(**values, attempts=tasks.c.attempts + 1)
            with self.database.write(durable=False) as connection:
                found = [_task(row) for row in connection.execute(taken.returning(*tasks.c))]
            if found:
                return found
        return []

    def _held(self, task: Task) -> ColumnElement[bool]:
        """As for jobs: the attempt is named too, since this worker may have lost the task and claimed it again."""
        return and_(
            tasks.c.id == task.id,
            tasks.c.state == "running",
            tasks.c.worker == self.worker,
            tasks.c.attempts == task.attempts,
        )

    def _renew(self, held: Sequence[Task]) -> None:
        until = time.time() + self.lease
        with self.database.write(durable=False) as connection:
            for task in held:
                connection.execute(update(tasks).where(self._held(task)).values(lease_until=until))


def recover(connection: Connection, lost: ColumnElement[bool]) -> None:
    """Tasks whose worker is dead or silent wait for another one, or have failed if they did that too often.

    Args:
        connection: inside a transaction.
        lost: which running tasks.
    """
    running = and_(tasks.c.state == "running", lost)
    for kind, most in MAX_ATTEMPTS.items():
        one_kind = update(tasks).where(running, tasks.c.kind == kind)
        connection.execute(one_kind.where(tasks.c.attempts >= most).values(_ended(_died(kind))))
        connection.execute(one_kind.values(state="waiting", worker=None, lease_until=None))


def _task(row: Row[Any]) -> Task:
    return Task(
        id=row.id,
        kind=row.kind,
        state=row.state,
        payload=json.loads(row.payload),
        attempts=row.attempts,
        worker=row.worker,
        result=None if row.result is None else json.loads(row.result),
        error=None if row.error is None else json.loads(row.error),
    )


def _outcomes(
    work: Callable[[Sequence[Task]], Sequence[TaskOutcome]], claimed: Sequence[Task]
) -> Sequence[TaskOutcome]:
    try:
        return outlast(lambda: work(claimed), who="task", seconds=OUTAGE_SECONDS)
    except GouacheError as error:
        return [error] * len(claimed)
    except Exception as error:  # A task must never take the worker's thread down.
        log.exception("task failed", extra={"kind": claimed[0].kind})
        given = f"{type(error).__name__}: {error}"[:300]
        return [WorkerError(_NAMES[claimed[0].kind], given=given, expected="no such fault")] * len(claimed)


def _ended(outcome: TaskOutcome) -> dict[str, object]:
    free: dict[str, object] = {"worker": None, "lease_until": None}
    if isinstance(outcome, GouacheError):
        return {"state": "failed", "error": json.dumps(outcome.to_dict()), **free}
    return {"state": "done", "result": json.dumps(dict(outcome)), **free}


def _died(kind: str) -> WorkerError:
    what, cure = {
        "upscale": ("picture", "Try a smaller one, or Lanczos."),
        "draw": ("picture", "Try a smaller one, or a smaller network."),
        "embed": ("text", "Search by words."),
    }[kind]
    given = f"a {what} that took the worker down"
    return WorkerError(_NAMES[kind], given=given, expected="one that lets it live", cure=cure)


MOST_WAITING = 64
MOST_OF_ONE = 8
"""Of these, so many may be one user's."""


class PictureTasks:
    """Has something made of pictures by one kind of task; no user may have more than `MOST_OF_ONE` of a kind wait.

    Args:
        kind: which.
        tasks: holds the tasks.
        file_store: holds their pictures.
        notifier: notified when one is done.
        wake: wakes the workers.
        timeout: seconds to wait for one.
    """

    def __init__(
        self,
        kind: Literal["upscale", "draw"],
        tasks: Tasks,
        file_store: FileStore,
        notifier: Notifier,
        wake: Callable[[], None],
        timeout: float,
    ) -> None:
        self.kind: Literal["upscale", "draw"] = kind
        self.tasks, self.file_store, self.notifier, self.wake, self.timeout = (
            tasks,
            file_store,
            notifier,
            wake,
            timeout,
        )
        self._waiting: Counter[str] = Counter()

    async def make(self, picture: bytes, payload: Mapping[str, Any], owner: str) -> bytes:
        """What a worker makes of a picture, as a PNG.

        Args:
            picture: the file's bytes.
            payload: what else the worker has to know: of "upscale" `factor`, above 0, and `model`, its name in the
                catalog; of "draw" `preprocessor`, as a request names it.
            owner: who waits for it.

        Raises:
            InvalidInput: what can't be done with this picture, or what the server lacks for it.
            QueueFull: too many wait, or too many of this user's.
            NoRoom: the disk is nearly full.
            NobodyAnswers: no worker runs, or it died.
        """
        if self._waiting[owner] >= MOST_OF_ONE:
            expected = f"fewer than {MOST_OF_ONE} of your pictures that wait"
            raise QueueFull(_NAMES[self.kind], given=self._waiting[owner], expected=expected, cure="Try again later.")
        self._waiting[owner] += 1
        try:
            return await self._made(picture, payload)
        finally:
            self._waiting -= Counter({owner: 1})

    async def _made(self, picture: bytes, payload: Mapping[str, Any]) -> bytes:
        task_id = uuid.uuid4().hex
        await asyncio.to_thread(self._add, task_id, picture, payload)
        try:
            self.wake()
            done = await wait_until(
                self.notifier, notified_as(task_id), lambda: self._ended(task_id), seconds=self.timeout, every=0.25
            )
            if done is not None:
                return await asyncio.to_thread(self.file_store.read, "tasks", made_picture(task_id))
        finally:
            await asyncio.to_thread(self._remove, task_id)
        raise NobodyAnswers(
            _NAMES[self.kind],
            given=f"no answer for {self.timeout:g} s",
            expected="a worker that runs",
            cure=f"{_INSTEAD[self.kind]}, or start a worker.",
        )

    def _add(self, task_id: str, picture: bytes, payload: Mapping[str, Any]) -> None:
        waiting = self.tasks.open(self.kind)
        if waiting >= MOST_WAITING:
            raise QueueFull(
                _NAMES[self.kind],
                given=waiting,
                expected=f"fewer than {MOST_WAITING} pictures that wait",
                cure="Try again later.",
            )
        self.file_store.check_room()
        # The file first: a worker may claim the task the moment it is there.
        self.file_store.keep("tasks", given_picture(task_id), picture)
        self.tasks.add(task_id, self.kind, payload)

    def _ended(self, task_id: str) -> Task | None:
        task = self.tasks.get(task_id)
        if task is not None and task.error is not None:
            # Whatever it was, what the caller gave can't be used.
            raise InvalidInput.from_dict(task.error)
        return task if task is not None and task.state == "done" else None

    def _remove(self, task_id: str) -> None:
        # What stays behind because the store is away goes when a worker starts.
        with contextlib.suppress(StoreAway):
            self.tasks.remove(task_id)
        for name in (given_picture(task_id), made_picture(task_id)):
            self.file_store.remove("tasks", name)
