"""`kill -9` of worker and server at random moments: nothing is lost, doubled or torn."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from gouache.pipeline.request import Request
from gouache.serve.queue.job import FINISHED
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits, Settings
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import FileStore
from gouache.serve.store.gallery import Gallery

if TYPE_CHECKING:
    from tests.serve.conftest import StartServer

SCRIPT = Path(__file__).parent / "tiny_server.py"


def run_with_kills(folder: Path, *, count: int, kills: int, pause: tuple[float, float], seconds: float) -> None:
    """Hand in jobs over HTTP, kill server or worker at random moments, start again, and look at what is there."""
    generator = random.Random(5)
    server = Process(folder)
    ids: list[str] = []
    try:
        server.start()
        keys = [f"key-{k}" for k in range(count)]
        for round_number in range(kills):
            share = keys[round_number * count // kills : (round_number + 1) * count // kills]
            ids += [submit(server, key) for key in share]
            time.sleep(generator.uniform(*pause))
            children = server.children()
            if children and generator.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(generator.choice(children), signal.SIGKILL)
            else:
                server.kill()
                server.start()
        # A client that heard no answer sends everything again: the keys make it the same jobs.
        assert [submit(server, key) for key in keys] == ids
        retry_poisoned(server, ids, seconds)
        check_everything(server, ids)
    finally:
        server.stop()


@pytest.mark.timeout(900)
def test_every_job_survives_two_kills(tmp_path: Path) -> None:
    run_with_kills(tmp_path, count=8, kills=2, pause=(1.0, 4.0), seconds=300)


COUNT, KILLS = (
    int(os.environ.get(name, default))
    for name, default in (
        ("GOUACHE_TEST_JOBS", "1000"),
        ("GOUACHE_TEST_KILLS", "50"),
    )
)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_jobs_survive_fifty_kills(tmp_path: Path) -> None:
    """Fewer of both by GOUACHE_TEST_JOBS and GOUACHE_TEST_KILLS."""
    run_with_kills(tmp_path, count=COUNT, kills=KILLS, pause=(0.5, 8.0), seconds=1500)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_kills_its_worker_fails_after_three_attempts_and_the_server_lives(
    start_server: StartServer,
) -> None:
    server = start_server(lease=30.0)
    request = Request(prompt="long", seed=1, num_inference_steps=150, width=256, height=256)
    job, _ = server.studio.submit(request, owner="local", source="v1")
    for attempt in (1, 2, 3):
        until = time.monotonic() + 180
        while time.monotonic() < until:
            seen = server.studio.jobs.get(job.id)
            if seen.state == "running" and seen.attempts == attempt and seen.worker:
                break
            time.sleep(0.02)
        assert seen.worker is not None
        os.kill(int(seen.worker.split(":")[1]), signal.SIGKILL)
    assert server.wait(job.id).state == "failed"
    assert httpx.get(f"{server.url}/healthz", timeout=60).json() == {"status": "ok"}
    error = httpx.get(f"{server.url}/v1/jobs/{job.id}", timeout=60).json()["error"]
    assert "died 3 times" in error["message"]


def test_stopping_the_server_puts_the_running_job_back(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(grace=0.1)
    request = Request(prompt="long", seed=1, num_inference_steps=150, width=256, height=256)
    job, _ = server.studio.submit(request, owner="local", source="v1")
    until = time.monotonic() + 180
    while time.monotonic() < until and server.studio.jobs.get(job.id).step < 1:
        time.sleep(0.02)
    server.stop()
    database = Database(f"sqlite:///{tmp_path / 'data' / 'studio.sqlite3'}")
    seen = JobQueue(database, Limits()).get(job.id)
    database.close()
    assert (seen.state, seen.attempts) == ("queued", 0)
