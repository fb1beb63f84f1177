"""`kill -9` of worker and server at random moments, and a store that goes away: nothing is lost, doubled or torn."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.serve.served import (
    Lock,
    Postgres,
    Process,
    SmallDisk,
    can_mount,
    check_everything,
    programs,
    submit,
    wait_for_all,
)

from gouache.pipeline.request import Request
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database

if TYPE_CHECKING:
    from tests.serve.conftest import StartServer


Fault = Callable[[Process], None]


def run_with_kills(
    server: Process,
    *,
    count: int,
    kills: int,
    pause: tuple[float, float],
    seconds: float,
    faults: tuple[Fault, ...] = (),
) -> None:
    """Hand in jobs over HTTP, kill server or worker at random moments, start again, and look at what is there.

    Args:
        faults: of the store, one after the other, each between two kills.
    """
    generator = random.Random(5)
    ids: list[str] = []
    try:
        server.start()
        keys = [f"key-{k}" for k in range(count)]
        for round_number in range(kills):
            share = keys[round_number * count // kills : (round_number + 1) * count // kills]
            ids += [submit(server, key) for key in share]
            time.sleep(generator.uniform(*pause))
            if faults:
                faults[round_number % len(faults)](server)
            children = server.workers()
            if children and generator.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(generator.choice(children).pid, signal.SIGKILL)
            else:
                server.kill()
                server.start()
        # A client that heard no answer sends everything again: the keys make it the same jobs.
        assert [submit(server, key) for key in keys] == ids
        retry_poisoned(server, ids, seconds)
        check_everything(server, ids)
    finally:
        server.stop()


def retry_poisoned(server: Process, ids: list[str], seconds: float) -> None:
    """A job that was hit three times by chance counts as poison; a user would press "retry", once the kills stop."""
    wait_for_all(server, ids, seconds)
    for job_id in ids:
        if server.jobs.get(job_id).state == "failed":
            assert "died" in str(server.jobs.get(job_id).error_parts()), "failed, but not by a kill"
            server.jobs.retry(job_id)
    wait_for_all(server, ids, seconds)


@pytest.mark.timeout(900)
def test_every_job_survives_two_kills(tmp_path: Path) -> None:
    run_with_kills(Process(tmp_path), count=6, kills=2, pause=(0.5, 1.5), seconds=300)


COUNT, KILLS = (
    int(os.environ.get(name, default))
    for name, default in (
        ("GOUACHE_TEST_JOBS", "1000"),
        ("GOUACHE_TEST_KILLS", "50"),
    )
)
AWAY_SECONDS = 4.0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_jobs_survive_fifty_kills(tmp_path: Path) -> None:
    """Fewer of both by GOUACHE_TEST_JOBS and GOUACHE_TEST_KILLS."""
    run_with_kills(Process(tmp_path), count=COUNT, kills=KILLS, pause=(0.5, 8.0), seconds=1500)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not can_mount(), reason="a small disk needs leave to mount one")
def test_a_thousand_jobs_survive_fifty_kills_full_disks_and_locks(tmp_path: Path) -> None:
    """The store is SQLite on a small disk; before each kill the disk is full or the store locked for a while."""
    disk = SmallDisk(tmp_path / "disk", 24 + COUNT // 20)

    def full_disk(server: Process) -> None:
        del server
        disk.fill()
        time.sleep(AWAY_SECONDS)
        disk.empty()

    def lock(server: Process) -> None:
        with Lock(server.settings.data / "studio.sqlite3"):
            time.sleep(AWAY_SECONDS)

    try:
        run_with_kills(
            Process(disk.folder), count=COUNT, kills=KILLS, pause=(0.5, 4.0), seconds=1500, faults=(full_disk, lock)
        )
    finally:
        disk.remove()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(programs() is None, reason="PostgreSQL's server programs are not installed")
def test_a_thousand_jobs_survive_fifty_kills_and_a_stopped_postgresql(tmp_path: Path) -> None:
    database = Postgres()

    def stopped(server: Process) -> None:
        del server
        database.stop()
        time.sleep(AWAY_SECONDS)
        database.start()

    try:
        server = Process(tmp_path, store=database.new_database())
        run_with_kills(server, count=COUNT, kills=KILLS, pause=(0.5, 4.0), seconds=1500, faults=(stopped,))
    finally:
        database.remove()


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
    request = Request(prompt="long", seed=1, num_inference_steps=150, width=128, height=128)
    job, _ = server.studio.submit(request, owner="local", source="v1")
    until = time.monotonic() + 180
    while time.monotonic() < until and server.studio.jobs.get(job.id).step < 1:
        time.sleep(0.02)
    server.stop()
    database = Database(f"sqlite:///{tmp_path / 'data' / 'studio.sqlite3'}")
    seen = JobQueue(database, Limits()).get(job.id)
    database.close()
    assert (seen.state, seen.attempts) == ("queued", 0)
