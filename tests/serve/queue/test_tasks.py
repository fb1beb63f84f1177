"""Pictures made larger, or drawn, by a worker: once, within bounds, and with a clear answer when it can't be done."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from sqlalchemy import insert, update

from gouache.errors import InvalidInput, QueueFull, StoreError, WorkerError
from gouache.serve.http.replies import NobodyAnswers
from gouache.serve.queue import tasks as upscale_tasks
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.notify import Notifier, changes, wait_until
from gouache.serve.queue.tasks import Task, TaskOutcome, TaskQueue, Tasks, notified_as
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import given_picture
from gouache.serve.store.tables import tasks as tasks_table
from gouache.serve.studio import Studio
from gouache.serve.worker.picture_tasks import Drawing, Upscaling

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

ROW = {"kind": "upscale", "state": "waiting", "payload": '{"model": "tiny", "factor": 2.0}', "attempts": 0}


def png(width: int = 12, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def model(studio: Studio) -> str:
    """A tiny model with an upscaler, by name."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.models.configs import UpscalerConfig
    from gouache.models.upscalers import Upscaler
    from gouache.pipeline.pipeline import untrained_bundle

    network = Upscaler(UpscalerConfig(image_channels=3, channels=8, blocks=1))
    bundle = dataclasses.replace(untrained_bundle(), upscaler=network)
    write_model(bundle_to_write(bundle), studio.settings.data / "models" / "tiny", "gouache")
    studio.catalog.refresh()
    return "tiny"


def worker_of(studio: Studio, name: str = "host:1:1") -> Upscaling:
    return Upscaling(TaskQueue(studio.database, name, 60, studio.notifier.notify), studio.file_store, studio.catalog)


def answered(studio: Studio, model: str, factor: float) -> bytes:
    """What a caller gets, with a worker beside it."""

    async def both() -> bytes:
        studio.notifier.bind()
        asked = asyncio.create_task(studio.upscale_tasks.make(png(), {"model": model, "factor": factor}, "ada"))
        worker = worker_of(studio)
        until = time.monotonic() + 60
        while not await asyncio.to_thread(worker.run_one) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return await asked

    return asyncio.run(both())


def left_over(studio: Studio) -> int:
    return len(studio.database.rows(tasks_table.select())) + len(list((studio.settings.data / "tasks").iterdir()))


def test_a_picture_comes_back_larger_and_nothing_stays_behind(studio: Studio, model: str) -> None:
    assert Image.open(io.BytesIO(answered(studio, model, 2.5))).size == (30, 20)
    assert left_over(studio) == 0


def test_a_model_without_an_upscaler_and_too_large_a_picture_are_refused(studio: Studio, model: str) -> None:
    with pytest.raises(InvalidInput, match="at most"):
        answered(studio, model, 5000.0)
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    write_model(bundle_to_write(untrained_bundle()), studio.settings.data / "models" / "plain", "gouache")
    studio.catalog.refresh()
    with pytest.raises(InvalidInput, match="without an upscaler"):
        answered(studio, "plain", 2.0)
    assert left_over(studio) == 0


def test_without_a_worker_the_answer_comes_after_a_while(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.upscale_tasks.timeout = 0.3
    with pytest.raises(NobodyAnswers, match="a worker that runs"):
        asyncio.run(studio.upscale_tasks.make(png(), {"model": "tiny", "factor": 2.0}, "ada"))
    assert left_over(studio) == 0
    monkeypatch.setattr(upscale_tasks, "MOST_WAITING", 0)
    with pytest.raises(QueueFull):
        asyncio.run(studio.upscale_tasks.make(png(), {"model": "tiny", "factor": 2.0}, "ada"))


def test_a_task_that_takes_its_worker_down_is_not_run_again(studio: Studio) -> None:
    studio.file_store.keep("tasks", given_picture("a" * 32), png())
    values = ROW | {"id": "a" * 32, "created": time.time(), "state": "running", "worker": "host:1:1", "attempts": 1}
    with studio.database.write() as connection:
        connection.execute(insert(tasks_table).values(values))
    assert not worker_of(studio, "host:2:2").run_one()
    studio.leases.release("host:1:1")
    (row,) = studio.database.rows(tasks_table.select())
    assert row.state == "failed"
    assert "took the worker down" in row.error


def test_what_a_dead_server_left_behind_goes_with_time(studio: Studio) -> None:
    studio.file_store.keep("tasks", given_picture("b" * 32), png())
    path = studio.settings.data / "tasks" / given_picture("b" * 32)
    with studio.database.write() as connection:
        connection.execute(insert(tasks_table).values(ROW | {"id": "b" * 32, "created": 1.0}))
    worker_of(studio)
    assert studio.database.rows(tasks_table.select()) == []
    assert path.is_file()
    os.utime(path, (1.0, 1.0))
    worker_of(studio)
    assert left_over(studio) == 0


def drawn_by_a_worker(studio: Studio, client: TestClient, module: str) -> Any:
    """The answer of A1111's route, with a worker beside it."""
    body = {"controlnet_module": module, "controlnet_input_images": [b64encode(png()).decode()]}
    tasks = TaskQueue(studio.database, "host:1:1", 60, studio.notifier.notify)
    worker = Drawing(tasks, studio.file_store, studio.settings.hide_places)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.post, "/controlnet/detect", json=body)
        while not asked.done() and not worker.run_one():
            time.sleep(0.01)
        return asked.result()


def test_a_network_draws_depth_in_a_worker(
    tmp_path: Path, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pipeline.inputs.test_preprocessors import save_depth, save_segments

    from gouache.pipeline.inputs.preprocessors import drawn

    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    save_depth(tmp_path / "models" / "preprocessors" / "any")
    save_segments(tmp_path / "models" / "preprocessors" / "few", classes=3)
    studios: list[Studio] = []
    client = make_client(studios.append)
    (studio,) = studios
    answer = drawn_by_a_worker(studio, client, "depth")
    assert answer.status_code == 200, answer.text
    (text,) = answer.json()["images"]
    found = Image.open(io.BytesIO(b64decode(text)))
    assert (found.size, found.tobytes()) == ((12, 8), drawn("depth", Image.open(io.BytesIO(png()))).tobytes())
    refused = drawn_by_a_worker(studio, client, "segmentation")
    assert refused.status_code == 422
    assert "controlnet_module" in refused.text
    assert "a network of 3 classes" in refused.text
    assert str(tmp_path) not in refused.text
    studio.draw_tasks.timeout = 0.2
    body = {"controlnet_module": "depth", "controlnet_input_images": [b64encode(png()).decode()]}
    assert client.post("/controlnet/detect", json=body).status_code == 504
    assert client.post("/controlnet/detect", json=body | {"controlnet_module": "openpose"}).status_code == 422
    assert left_over(studio) == 0


def upper(tasks: Sequence[Task]) -> list[TaskOutcome]:
    return [{"text": task.payload["text"].upper()} for task in tasks]


def test_a_task_is_claimed_once_and_its_caller_is_notified(store_url: str) -> None:
    database = Database(store_url)
    told: list[str] = []
    tasks, first, second = Tasks(database), *(TaskQueue(database, name, 60, told.append) for name in ("w1", "w2"))
    for k in range(3):
        tasks.add(str(k), "embed", {"text": f"t{k}"})
    tasks.add("0", "embed", {"text": "another"})
    assert tasks.open("embed") == 3

    def others_find_none(claimed: Sequence[Task]) -> list[TaskOutcome]:
        assert second.run("embed", upper, 2) == 1
        return upper(claimed)

    assert first.run("upscale", upper) == 0
    assert first.run("embed", others_find_none, 2) == 2
    assert second.run("embed", upper) == 0
    results = [task.result for k in range(3) if (task := tasks.get(str(k))) is not None]
    assert results == [{"text": f"T{k}"} for k in range(3)]
    assert sorted(told) == [notified_as(str(k)) for k in range(3)]
    assert tasks.open("embed") == 0
    database.close()


def test_a_silent_workers_task_goes_to_another_and_the_first_can_write_no_more(store_url: str) -> None:
    database = Database(store_url)
    tasks, leases = Tasks(database), Leases(database)
    tasks.add("t", "embed", {"text": "t"})

    def silent(_claimed: Sequence[Task]) -> list[TaskOutcome]:
        with database.write() as connection:
            connection.execute(update(tasks_table).values(lease_until=1.0))
        leases.release_expired()
        assert TaskQueue(database, "second", 60, lambda _: None).run("embed", upper) == 1
        return [{"text": "late"}]

    assert TaskQueue(database, "first", 60, lambda _: None).run("embed", silent) == 1
    task = tasks.get("t")
    assert task is not None
    assert (task.state, task.result, task.attempts) == ("done", {"text": "T"}, 2)
    database.close()


def test_a_text_that_takes_workers_down_again_and_again_is_given_up(store_url: str) -> None:
    database = Database(store_url)
    tasks, leases = Tasks(database), Leases(database)
    tasks.add("t", "embed", {"text": "t"})
    for attempt in (1, 2, 3):
        state = tasks.get("t")
        assert state is not None
        assert (state.state, state.attempts) == ("waiting", attempt - 1)
        with database.write() as connection:
            connection.execute(update(tasks_table).values(state="running", worker="w", attempts=attempt))
        leases.release("w")
    task = tasks.get("t")
    assert task is not None
    assert (task.state, (task.error or {})["kind"]) == ("failed", "WorkerError")
    database.close()


@pytest.mark.parametrize("error", [StoreError("a", given="b", expected="c"), KeyError("x")])
def test_what_goes_wrong_in_a_task_is_its_outcome(studio: Studio, error: Exception) -> None:
    tasks = Tasks(studio.database)
    tasks.add("t", "embed", {"text": "t"})

    def fails(_claimed: Sequence[Task]) -> list[TaskOutcome]:
        raise error

    TaskQueue(studio.database, "w", 60, lambda _: None).run("embed", fails)
    task = tasks.get("t")
    assert task is not None
    kind = type(error) if isinstance(error, StoreError) else WorkerError
    assert (task.state, (task.error or {})["kind"]) == ("failed", kind.__name__)


def test_waiting_ends_with_a_notification_or_with_the_time() -> None:
    async def waits() -> list[object]:
        notifier = Notifier()
        found: list[object] = []
        notifier.bind()
        looks = [0]

        def third_look() -> str | None:
            looks[0] += 1
            notifier.notify("t")
            return "there" if looks[0] == 3 else None

        start = time.monotonic()
        found.append(await wait_until(notifier, "t", third_look, seconds=60, every=60))
        assert time.monotonic() - start < 30, "notifications were not heard"
        found.append(await wait_until(notifier, "t", lambda: None, seconds=0.05, every=0.01))
        looks[0] = 0
        async for seen in changes(notifier, "t", third_look, every=60):
            if seen is not None:
                found.append(seen)
                break
        return found

    assert asyncio.run(waits()) == ["there", None, "there"]
