"""A user orders and pauses their own waiting jobs, on SQLite and on a real PostgreSQL, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gouache.errors import Conflict, NotFound
from gouache.pipeline.request import Request
from gouache.serve.queue.job import Job
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.order import QueueOrder
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database


class Queue:
    """The parts of the store that have to do with the order."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.jobs, self.leases = JobQueue(self.database, Limits()), Leases(self.database)
        self.order = QueueOrder(self.database, workers=1)

    def add(self, prompt: str, *, owner: str = "ada", priority: int = 0) -> str:
        return self.jobs.submit(Request(prompt=prompt, seed=1), owner=owner, source="v1", priority=priority)[0].id

    def claim(self) -> Job | None:
        return self.leases.claim("w", 60)

    def prompts(self) -> list[str]:
        """What runs, in the order in which it does."""
        found = []
        while (job := self.claim()) is not None:
            found.append(job.parsed().prompt)
        return found


@pytest.fixture
def queue(store_url: str) -> Iterator[Queue]:
    made = Queue(store_url)
    yield made
    made.database.close()


def test_a_user_moves_their_own_jobs_and_others_wait_as_before(queue: Queue) -> None:
    first, _second, third = (queue.add(f"ada {k}") for k in range(3))
    other = queue.add("bob 0", owner="bob")
    fourth = queue.add("ada 3")
    before = queue.jobs.position(queue.jobs.get(other))
    queue.order.move(third, "ada", first)
    queue.order.move(first, "ada", None)
    assert queue.jobs.position(queue.jobs.get(other)) == before
    places = queue.order.places("ada")
    assert [queue.jobs.get(place.id).parsed().prompt for place in places] == ["ada 2", "ada 1", "ada 3", "ada 0"]
    assert [place.position for place in places] == [0, 1, 2, 4]
    assert [place.id for place in places][2] == fourth
    assert queue.prompts() == ["ada 2", "bob 0", "ada 1", "ada 3", "ada 0"]


def test_a_job_that_goes_before_an_urgent_one_takes_its_place(queue: Queue) -> None:
    queue.add("plain")
    urgent, last = queue.add("urgent", priority=5), queue.add("last")
    queue.order.move(last, "ada", urgent)
    assert queue.jobs.get(last).priority == 5
    assert queue.prompts() == ["last", "urgent", "plain"]


def test_only_waiting_jobs_of_ones_own_can_be_moved(queue: Queue) -> None:
    running, waiting = queue.add("runs"), queue.add("waits")
    others = queue.add("bob", owner="bob")
    claimed = queue.claim()
    assert claimed is not None
    assert claimed.id == running
    for job, before in ((running, waiting), (waiting, running)):
        with pytest.raises(Conflict, match="running"):
            queue.order.move(job, "ada", before)
    unknown = "0" * 32
    pairs: list[tuple[str, str | None]] = [(others, None), (waiting, others), (unknown, None), (waiting, unknown)]
    for one, other in pairs:
        with pytest.raises(NotFound):
            queue.order.move(one, "ada", other)
    queue.order.move(waiting, "ada", waiting)
    assert queue.leases.renew(claimed, 60)
    assert queue.prompts() == ["bob", "waits"]


def test_a_paused_users_jobs_wait_and_others_go_on(queue: Queue) -> None:
    queue.add("ada 0", priority=9)
    queue.order.pause("ada")
    queue.order.pause("ada")
    queue.add("ada 1")
    queue.add("bob 0", owner="bob")
    assert queue.prompts() == ["bob 0"]
    loads = queue.order.loads(["ada", "bob", "cy"])
    assert (loads["ada"].mine_waiting, loads["ada"].others_running, loads["ada"].paused) == (2, 1, True)
    assert (loads["bob"].mine_running, loads["bob"].others_waiting, loads["bob"].paused) == (1, 2, False)
    assert (loads["cy"].mine_waiting, loads["cy"].others_waiting, loads["cy"].others_running) == (0, 2, 1)
    queue.order.resume("ada")
    assert queue.prompts() == ["ada 0", "ada 1"]


def test_a_pause_outlives_the_server(queue: Queue, store_url: str) -> None:
    queue.add("ada")
    queue.order.pause("ada")
    queue.database.close()
    again = Queue(store_url)
    assert again.prompts() == []
    again.order.resume("ada")
    assert again.prompts() == ["ada"]
    again.database.close()


def test_everything_that_waits_is_cancelled_and_what_runs_goes_on(queue: Queue) -> None:
    running, *waiting = (queue.add(str(k)) for k in range(3))
    others = queue.add("bob", owner="bob")
    queue.claim()
    assert sorted(queue.order.cancel_waiting("ada")) == sorted(waiting)
    assert queue.jobs.get(running).state == "running"
    assert queue.jobs.get(others).state == "queued"
    assert {queue.jobs.get(one).state for one in waiting} == {"cancelled"}
    assert [event.kind for event in queue.jobs.events(waiting[0])] == ["queued", "cancelled"]
    assert queue.order.cancel_waiting("ada") == []


def test_the_time_until_a_job_is_done_counts_the_turns_of_others(queue: Queue) -> None:
    queue.add("measured", owner="cy")
    done = queue.claim()
    assert done is not None
    with queue.database.write() as connection:
        queue.leases.finish(connection, done)
        connection.exec_driver_sql("UPDATE jobs SET started = 100.0, finished = 110.0")
    for k in range(3):
        queue.add(f"ada {k}")
    queue.add("bob", owner="bob")
    # Ada's first, bob's only one, ada's second and third, ten seconds each.
    assert [place.eta_seconds for place in queue.order.places("ada")] == [10.0, 30.0, 40.0]
    assert [place.eta_seconds for place in queue.order.places("bob")] == [20.0]
    queue.order.pause("bob")
    assert [place.eta_seconds for place in queue.order.places("ada")] == [10.0, 20.0, 30.0]
    assert [place.eta_seconds for place in queue.order.places("bob")] == [None]
