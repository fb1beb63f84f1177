"""Pictures made larger by a worker: once, within bounds, and with a clear answer when it can't be done."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import insert

from gouache.errors import InvalidInput, QueueFull
from gouache.serve.http.errors import NobodyAnswers
from gouache.serve.queue import upscale_tasks as enlarging
from gouache.serve.queue.tasks import Errands, asked_file
from gouache.serve.store.tables import errands
from gouache.serve.studio import Studio


def png(width: int = 12, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, "PNG")
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
    studio.shelf.refresh()
    return "tiny"


def worker_of(studio: Studio, name: str = "host:1:1") -> Errands:
    return Errands(studio.database, studio.vault, studio.shelf, name, studio.bell.ring)


def answered(studio: Studio, model: str, factor: float) -> bytes:
    """What a caller gets, with a worker beside it."""

    async def both() -> bytes:
        studio.bell.hang()
        asked = asyncio.create_task(studio.enlarging.enlarge(png(), factor, model))
        worker = worker_of(studio)
        until = time.monotonic() + 60
        while not await asyncio.to_thread(worker.run_one) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return await asked

    return asyncio.run(both())


def left_over(studio: Studio) -> int:
    return len(studio.database.rows(errands.select())) + len(list((studio.settings.data / "errands").iterdir()))


def test_a_picture_comes_back_larger_and_nothing_stays_behind(studio: Studio, model: str) -> None:
    assert Image.open(io.BytesIO(answered(studio, model, 2.5))).size == (30, 20)
    assert left_over(studio) == 0


def test_a_model_without_an_upscaler_and_too_large_a_picture_are_refused(studio: Studio, model: str) -> None:
    with pytest.raises(InvalidInput, match="at most"):
        answered(studio, model, 5000.0)
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    write_model(bundle_to_write(untrained_bundle()), studio.settings.data / "models" / "plain", "gouache")
    studio.shelf.refresh()
    with pytest.raises(InvalidInput, match="without an upscaler"):
        answered(studio, "plain", 2.0)
    assert left_over(studio) == 0


def test_without_a_worker_the_answer_comes_after_a_while(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.enlarging.patience = 0.3
    with pytest.raises(NobodyAnswers, match="a worker that runs"):
        asyncio.run(studio.enlarging.enlarge(png(), 2.0, "tiny"))
    assert left_over(studio) == 0
    monkeypatch.setattr(enlarging, "MOST_WAITING", 0)
    with pytest.raises(QueueFull):
        asyncio.run(studio.enlarging.enlarge(png(), 2.0, "tiny"))


def test_an_errand_that_takes_its_worker_down_is_not_run_again(studio: Studio) -> None:
    studio.vault.keep("errands", asked_file("a" * 32), png())
    values = {"id": "a" * 32, "created": time.time(), "model": "tiny", "factor": 2.0, "worker": "host:1:1"}
    with studio.database.write() as connection:
        connection.execute(insert(errands).values(values))
    assert not worker_of(studio, "host:2:2").run_one()
    studio.leases.release("host:1:1")
    (row,) = studio.database.rows(errands.select())
    assert row.done
    assert "took the worker down" in row.error


def test_what_a_dead_server_left_behind_goes_with_time(studio: Studio) -> None:
    path: Path = studio.vault.keep("errands", asked_file("b" * 32), png())
    with studio.database.write() as connection:
        connection.execute(insert(errands).values(id="b" * 32, created=1.0, model="tiny", factor=2.0))
    worker_of(studio)
    assert studio.database.rows(errands.select()) == []
    assert path.is_file()
    os.utime(path, (1.0, 1.0))
    worker_of(studio)
    assert left_over(studio) == 0
