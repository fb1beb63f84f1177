"""A worker takes jobs of the models that it has loaded first, within one user's jobs of one priority and for a while.

On SQLite and on a real PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.serve.tiny_worker import tiny_pipeline

from gouache.pipeline.request import Request
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.queue.leases import LOOKED_AHEAD, PASSED_SECONDS, Leases
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits, Settings
from gouache.serve.store.database import Database
from gouache.serve.store.tables import jobs as jobs_table
from gouache.serve.studio import Studio
from gouache.serve.worker.loaded_models import Painter
from gouache.serve.worker.process import Worker


class Queue:
    """A queue, and a worker that has room for one model."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.jobs, self.leases = JobQueue(self.database, Limits()), Leases(self.database)
        self.loads: list[str] = []

    def add(self, prompt: str, model: str, *, owner: str = "ada", priority: int = 0) -> str:
        request = Request(prompt=prompt, seed=1, model=model)
        return self.jobs.submit(request, owner=owner, source="v1", priority=priority)[0].id

    def take(self) -> str | None:
        loaded = self.loads[-1] if self.loads else None
        is_loaded: Callable[[Request], bool] = lambda request: request.model == loaded  # noqa: E731
        job = self.leases.claim("w", 60, is_loaded if loaded else None)
        if job is None:
            return None
        request = job.parsed()
        if request.model != loaded:
            self.loads.append(str(request.model))
        return request.prompt

    def take_all(self) -> list[str]:
        return list(iter(self.take, None))

    def wait(self, seconds: float) -> None:
        """Let so much time go by for every job that is passed over."""
        since = jobs_table.c.passed_over
        with self.database.write() as connection:
            connection.execute(update(jobs_table).where(since.is_not(None)).values(passed_over=since - seconds))


@pytest.fixture
def queue(store_url: str) -> Iterator[Queue]:
    made = Queue(store_url)
    yield made
    made.database.close()


def test_a_mixed_queue_of_two_models_loads_each_once(queue: Queue) -> None:
    for k in range(6):
        queue.add(str(k), "ab"[k % 2])
    assert queue.take_all() == ["0", "2", "4", "1", "3", "5"]
    assert queue.loads == ["a", "b"]


def test_a_job_is_passed_over_for_so_long_and_no_longer(queue: Queue) -> None:
    for k, model in enumerate("abaaba"):
        queue.add(str(k), model)
    assert [queue.take(), queue.take()] == ["0", "2"]
    queue.wait(PASSED_SECONDS - 5)
    assert queue.take() == "3"
    queue.wait(6)
    # "1" has waited enough although "5" could be painted at once; "4" goes with it.
    assert queue.take_all() == ["1", "4", "5"]
    assert queue.loads == ["a", "b", "a"]


def test_a_stream_of_jobs_for_the_loaded_model_starves_nobody(queue: Queue) -> None:
    queue.add("first", "a")
    waits = queue.add("other", "b")
    taken = [queue.take()]
    for k in range(20):
        queue.add(f"more {k}", "a")
        taken.append(queue.take())
        queue.wait(5.0)  # As long as each of them takes.
    assert taken.index("other") == 1 + int(PASSED_SECONDS / 5)
    assert queue.jobs.get(waits).state == "running"


def test_one_that_waited_enough_lets_no_other_pass_wherever_it_stands(queue: Queue) -> None:
    for k, model in enumerate("abba"):
        queue.add(str(k), model)
    assert [queue.take(), queue.take()] == ["0", "3"]
    queue.add("later", "a")
    queue.wait(PASSED_SECONDS + 1)
    # "1" and "2" were passed over together, and both go before what came later.
    queue.loads.append("a")
    assert queue.take() == "1"
    queue.loads.append("a")
    assert queue.take() == "2"
    assert queue.take() == "later"


def test_the_order_of_users_and_priorities_is_as_without(queue: Queue) -> None:
    for k in range(3):
        queue.add(f"ada {k}", "ab"[k % 2])
    queue.add("bob 0", "b", owner="bob")
    queue.add("bob 1", "a", owner="bob")
    queue.add("urgent", "b", priority=5)
    queue.loads = ["a"]
    taken = queue.take_all()
    assert taken[0] == "urgent"
    assert [prompt.split()[0] for prompt in taken[1:]] == ["bob", "ada", "bob", "ada", "ada"]
    # Each user's own jobs: b was loaded for the urgent one.
    assert taken[1:] == ["bob 0", "ada 1", "bob 1", "ada 0", "ada 2"]


def test_a_paused_user_or_a_job_far_behind_is_not_taken_first(queue: Queue) -> None:
    for k in range(LOOKED_AHEAD):
        queue.add(str(k), "b")
    queue.add("too far", "a")
    queue.add("bob", "a", owner="bob")
    with queue.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO pauses (owner, since) VALUES ('bob', 1.0)")
    queue.loads = ["a"]
    assert queue.take() == "0"
    queue.loads = ["a"]
    assert queue.take() == "too far"


def test_a_request_that_cant_be_read_any_more_is_left_to_who_claims_it(queue: Queue) -> None:
    odd = queue.add("odd", "b")
    queue.add("plain", "a")
    with queue.database.write() as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == odd).values(request='{"of": "another version"}'))
    queue.loads = ["a"]
    assert queue.take() == "plain"


class Loads:
    """Opens tiny models and counts."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, entry: ModelEntry, device: str | None, dtype: str | None, engine: str) -> Painter:
        del device, dtype, engine
        self.names.append(entry.name)
        return tiny_pipeline()


def test_a_worker_paints_a_mixed_queue_with_one_load_for_each_model(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "other"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "unet.safetensors").write_bytes(b"1234")
    settings = Settings.from_dict(
        {"data": tmp_path, "workers": 0, "page": False, "models": [tmp_path / "models"], "model_memory": 1}
    )
    studio, opened = Studio(settings), Loads()
    try:
        entry = next(entry for entry in studio.catalog.entries() if entry.name != "pocket")
        for k in range(6):
            # By the stem, by none for the default, and in other letters: the same models.
            model = (None, entry.name, "Pocket", entry.name.upper())[k % 4]
            request = Request(prompt=str(k), seed=1, model=model, num_inference_steps=1, width=32, height=32)
            studio.jobs.submit(request, owner="ada", source="v1")
        worker = Worker(settings, opened, lambda *_: None)
        start = time.monotonic()
        while worker.work_once():
            pass
        assert time.monotonic() - start < PASSED_SECONDS
        assert studio.jobs.counts()["done"] == 6
        assert opened.names == ["pocket", entry.name]
    finally:
        studio.close()
