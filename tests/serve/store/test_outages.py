"""A store that is away, and a worker that hangs, befall `gouache serve`: nothing is lost, doubled, or ended by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from tests.serve.served import (
    Flapping,
    Lock,
    Postgres,
    Process,
    SmallDisk,
    can_mount,
    check_everything,
    frozen,
    programs,
    submit,
    wait_for_all,
)

LONG = {"width": 64, "height": 64, "num_inference_steps": 100, "count": 2}
SHORT = {"num_inference_steps": 10}
with_postgres = pytest.mark.skipif(programs() is None, reason="PostgreSQL's server programs are not installed")
with_small_disk = pytest.mark.skipif(not can_mount(), reason="a small disk needs leave to mount one")


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """One that can be stopped, for it is nobody else's."""
    made = Postgres()
    yield made
    made.remove()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk", 24)
    yield made
    made.remove()


def refused(server: Process) -> None:
    """Whoever comes is told within two seconds, in the words of each interface."""
    for path, body in (
        ("/v1/jobs", {"request": {"prompt": "x"}}),
        ("/sdapi/v1/txt2img", {"prompt": "x"}),
        ("/v1/images/generations", {"prompt": "x"}),
    ):
        begun = time.monotonic()
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=30)
        seconds = time.monotonic() - begun
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        told = answer.json()
        assert "expected" in (told["detail"] if path.startswith("/sdapi") else told["error"]["message"])
        assert seconds < 2.5, (path, seconds)  # Two, and what a busy machine adds.
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 503


@contextmanager
def befallen(server: Process) -> Iterator[list[str]]:
    """What happens within happens while the first of two jobs is painted; afterwards these and a third are done once.

    Gives the jobs' ids; the third's is added at the end.
    """
    try:
        server.start()
        ids = [submit(server, "first", **LONG), submit(server, "second")]
        server.wait_until_painting(ids[0])
        yield ids
        wait_for_all(server, ids, 300)
        ids.append(submit(server, "third"))
        wait_for_all(server, ids, 300)
        check_everything(server, ids)
        server.wait_until_ready()
    finally:
        server.stop()


@with_postgres
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgresql_is_stopped_while_a_job_is_painted(own_postgres: Postgres, tmp_path: Path) -> None:
    server = Process(tmp_path, store=own_postgres.new_database())
    with befallen(server) as ids:
        own_postgres.stop()
        refused(server)
        time.sleep(8)
        own_postgres.start()
    assert [server.jobs.get(one).attempts for one in ids] == [1, 1, 1]


@with_postgres
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgresql_hangs_while_a_job_is_painted(own_postgres: Postgres, tmp_path: Path) -> None:
    server = Process(tmp_path, store=own_postgres.new_database())
    with befallen(server), frozen(own_postgres.processes()):
        refused(server)
        time.sleep(8)


@with_small_disk
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_disk_is_full_and_emptied_again(small_disk: SmallDisk) -> None:
    server = Process(small_disk.folder)
    with befallen(server):
        small_disk.fill()
        refused(server)
        time.sleep(10)
        small_disk.empty()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sqlite_is_locked_and_the_worker_killed(tmp_path: Path) -> None:
    server = Process(tmp_path)
    with befallen(server), Lock(tmp_path / "studio.sqlite3"):
        killed = server.worker()
        killed.kill()
        refused(server)
        time.sleep(40)
        assert server.worker().pid != killed.pid, "another is started while the lock is held"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", ["postgresql", "lock"])
def test_a_store_that_flaps_loses_and_doubles_nothing(
    fault: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two minutes of five seconds here and five seconds away, with fifty jobs."""
    if fault == "postgresql":
        if programs() is None:
            pytest.skip("PostgreSQL's server programs are not installed")
        database: Postgres = request.getfixturevalue("own_postgres")
        server = Process(tmp_path, store=database.new_database())
        begin, end = database.stop, database.start
    else:
        server = Process(tmp_path)
        lock = Lock(tmp_path / "studio.sqlite3")
        begin, end = lock.take, lock.give

    try:
        server.start()
        server.wait_until_ready()
        ids: list[str] = []
        until = time.monotonic() + 120
        with Flapping(begin, end, 5.0) as flapping:
            for number in range(50):
                ids.append(submit(server, f"key-{number}", **SHORT))
                time.sleep(max(0.0, min(2.4, until - time.monotonic())))
            time.sleep(max(0.0, until - time.monotonic()))
        assert flapping.times >= 10
        wait_for_all(server, ids, 600)
        assert [submit(server, f"key-{number}", **SHORT) for number in range(50)] == ids
        check_everything(server, ids)
        assert server.jobs.counts()["done"] == 50
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hung_worker_is_noticed_ended_and_replaced(tmp_path: Path) -> None:
    server = Process(tmp_path)  # A lease, and so the longest silence, is 5 s.
    try:
        server.start()
        job = submit(server, "first", **LONG)
        server.wait_until_painting(job)
        hung = server.worker()
        hung.suspend()
        begun = time.monotonic()
        while httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200:
            assert time.monotonic() - begun < 8
            time.sleep(0.1)
        hung.wait(60)
        assert not psutil.pid_exists(hung.pid)
        wait_for_all(server, [job], 300)
        check_everything(server, [job])
        assert server.jobs.get(job).attempts == 2
        server.wait_until_ready()
    finally:
        server.stop()
