"""The queue's promises, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from gouache.errors import Conflict, NotFound, QueueFull
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe
from gouache.pipeline.request import Request
from gouache.serve.queue.job import MAX_ATTEMPTS, Job
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import DiskStore
from gouache.serve.store.gallery import Gallery, row_of
from gouache.serve.store.tables import jobs as jobs_table
from gouache.serve.store.upkeep import back_up, restore


class Queue:
    """The parts of the store that have to do with jobs."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.jobs, self.leases = JobQueue(self.database, Limits(queue=40)), Leases(self.database)
        self.pictures = Gallery(self.database)

    def add(self, prompt: str = "x", *, owner: str = "ada", priority: int = 0, key: str | None = None) -> Job:
        return self.jobs.submit(Request(prompt=prompt, seed=1), owner=owner, source="v1", priority=priority, key=key)[0]

    def claim(self, worker: str = "w", lease: float = 60) -> Job:
        job = self.leases.claim(worker, lease)
        assert job is not None
        return job

    def complete(self, job: Job, data: bytes = b"picture") -> bool:
        with self.database.write() as connection:
            self.leases.add_picture(connection, row_of(job, 0, f"{job.id}-0000.png", data, (8, 8), recipe(job)))
            return self.leases.finish(connection, job)


def recipe(job: Job) -> Recipe:
    machine = Machine(device="cpu", dtype="float32", processor="x", threads=1)
    return Recipe(request=job.parsed(), model=ModelRef(name="m", family="sd1"), machine=machine, versions={})


@pytest.fixture
def queue(store_url: str) -> Iterator[Queue]:
    made = Queue(store_url)
    yield made
    made.database.close()


def test_a_job_goes_from_queued_to_done_and_its_picture_is_listed_once(queue: Queue) -> None:
    job = queue.add("a fox")
    claimed = queue.claim()
    assert (claimed.id, claimed.state, claimed.attempts) == (job.id, "running", 1)
    assert queue.complete(claimed)
    assert not queue.complete(claimed)
    assert queue.jobs.get(job.id).state == "done"
    assert [picture.job for picture in queue.pictures.of_job(job.id)] == [job.id]
    assert [event.kind for event in queue.jobs.events(job.id)] == ["queued", "running", "picture", "done"]


def test_priority_then_the_user_who_waited_longest_then_age(queue: Queue) -> None:
    for k in range(3):
        queue.add(f"ada {k}")
    queue.add("bob 0", owner="bob")
    queue.add("urgent", priority=5)
    order = []
    for _ in range(5):
        job = queue.claim()
        order.append(job.parsed().prompt)
        queue.complete(job)
    assert order == ["urgent", "bob 0", "ada 0", "ada 1", "ada 2"]
    assert queue.leases.claim("w", 60) is None


def test_no_two_workers_get_the_same_job(queue: Queue) -> None:
    ids = {queue.add(str(k)).id for k in range(12)}
    taken: list[str] = []

    def work(name: str) -> None:
        while (job := queue.leases.claim(name, 60)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_a_silent_workers_job_goes_to_another_and_the_first_can_write_no_more(queue: Queue) -> None:
    queue.add()
    first = queue.claim("first", lease=0.05)
    time.sleep(0.1)
    assert queue.leases.release_expired() == 1
    second = queue.claim("second")
    assert (second.id, second.attempts) == (first.id, 2)
    assert not queue.leases.renew(first, 60)
    assert not queue.leases.orders(first).held
    queue.leases.fail(first, {"message": "late"})
    assert queue.jobs.get(first.id).state == "running"
    assert queue.complete(second)


def test_a_job_that_kills_its_workers_is_given_up(queue: Queue) -> None:
    job = queue.add()
    for k in range(MAX_ATTEMPTS):
        assert queue.claim(f"w{k}").id == job.id
        assert queue.leases.release(f"w{k}") == 1
    seen = queue.jobs.get(job.id)
    assert seen.state == "failed"
    assert "died 3 times" in (seen.error_parts() or {})["message"]
    assert queue.jobs.retry(job.id).state == "queued"
    assert queue.claim().attempts == 1


def test_a_worker_that_is_told_to_stop_gives_its_job_back_uncounted(queue: Queue) -> None:
    job = queue.add()
    queue.leases.give_back(queue.claim())
    seen = queue.jobs.get(job.id)
    assert (seen.state, seen.attempts) == ("queued", 0)


def test_cancel_acts_on_exactly_one_job(queue: Queue) -> None:
    first, second, third = queue.add("1"), queue.add("2"), queue.add("3")
    running = queue.claim()
    assert running.id == first.id
    assert queue.jobs.cancel(second.id).state == "cancelled"
    assert queue.jobs.cancel(first.id).cancel_requested
    assert queue.leases.orders(running).cancel
    queue.leases.cancelled(running)
    assert queue.jobs.get(first.id).state == "cancelled"
    assert queue.jobs.get(third.id).state == "queued"
    with pytest.raises(Conflict):
        queue.jobs.cancel(first.id)
    with pytest.raises(NotFound):
        queue.jobs.cancel("nothing")


def test_a_cancelled_job_whose_worker_dies_stays_cancelled(queue: Queue) -> None:
    job = queue.add()
    queue.claim("w")
    queue.jobs.cancel(job.id)
    queue.leases.release("w")
    assert queue.jobs.get(job.id).state == "cancelled"


def test_one_key_is_one_job_even_at_the_same_moment(queue: Queue) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(queue.add(key="k").id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1
    with pytest.raises(Conflict):
        queue.add("another", key="k")
    assert queue.add("another", key="k", owner="bob").id not in ids


def test_a_full_queue_accepts_nothing(queue: Queue) -> None:
    for k in range(40):
        queue.add(str(k))
    with pytest.raises(QueueFull):
        queue.add()
    assert queue.jobs.counts()["queued"] == 40
    assert queue.jobs.position(queue.jobs.listing(limit=1)[0]) == 39


def test_progress_and_previews_are_seen_and_gone_when_done(queue: Queue) -> None:
    job = queue.add()
    claimed = queue.claim()
    queue.jobs.watch(job.id, 5)
    assert queue.leases.orders(claimed).watched
    queue.leases.progress(claimed, picture=0, step=3, steps=4, jpeg=b"jpeg")
    seen = queue.jobs.get(job.id)
    assert (seen.step, seen.steps, seen.fraction) == (3, 4, 0.75)
    assert (seen.eta(time.time()) or 0) >= 0
    assert queue.jobs.preview(job.id) == (3, b"jpeg")
    queue.complete(claimed)
    assert queue.jobs.preview(job.id) is None
    assert queue.jobs.get(job.id).fraction == 1.0


def test_pictures_are_searched_tagged_deleted_and_restored(queue: Queue) -> None:
    for prompt in ("a red fox", "a blue fox", "100% wool"):
        queue.add(prompt)
        queue.complete(queue.claim())
    find = queue.pictures.search
    assert [picture.prompt for picture in find(words="FOX red")] == ["a red fox"]
    assert [picture.prompt for picture in find(words="100%")] == ["100% wool"]
    assert find(words="%") == find(words="100")
    fox = find(words="blue")[0]
    board = queue.pictures.add_board("ada", "best")
    queue.pictures.change(fox.id, "ada", starred=True, new_tags=["animal", "cold"], board=board)
    assert [p.id for p in find(starred=True)] == [p.id for p in find(tag="cold")] == [p.id for p in find(board=board)]
    assert queue.pictures.tags_of(fox.id) == ["animal", "cold"]
    queue.pictures.delete(fox.id, "ada")
    assert len(find()) == 2
    assert [picture.id for picture in find(deleted=True)] == [fox.id]
    assert queue.pictures.restore(fox.id, "ada").starred
    for call in (queue.pictures.get, queue.pictures.delete, queue.pictures.restore):
        with pytest.raises(NotFound):
            call(fox.id, "bob")


def test_a_backup_fills_an_empty_studio_and_no_other(queue: Queue, tmp_path: Path) -> None:
    file_store = DiskStore(tmp_path / "data")
    name = file_store.attach(b"attached")
    queue.add("painted")
    done = queue.claim()
    file_store.keep("pictures", f"{done.id}-0000.png", b"picture")
    queue.complete(done)
    queue.add("waiting")
    queue.add("running")
    queue.claim()
    assert back_up(queue.database, file_store, tmp_path / "all.tar") == 1
    other, other_file_store = Queue(f"sqlite:///{tmp_path / 'other.sqlite3'}"), DiskStore(tmp_path / "other")
    try:
        assert restore(other.database, other_file_store, tmp_path / "all.tar") == 1
        assert other.jobs.counts() == {"queued": 2, "running": 0, "done": 1, "failed": 0, "cancelled": 0}
        assert other_file_store.read("pictures", other.pictures.search()[0].file) == b"picture"
        assert other_file_store.attachment(name) == b"attached"
        other.add("new")
        with pytest.raises(Exception, match="expected an empty store"):
            restore(other.database, other_file_store, tmp_path / "all.tar")
    finally:
        other.database.close()


def test_a_store_of_another_version_is_refused(queue: Queue) -> None:
    from gouache.serve.store.tables import meta

    with queue.database.write() as connection:
        connection.execute(update(meta).where(meta.c.key == "schema").values(value="0"))
    with pytest.raises(Exception, match="tables of version 0"):
        Database(queue.database.url)
    assert queue.database.rows(jobs_table.select()) == []
