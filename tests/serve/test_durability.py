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


class Process:
    """A server in a process of its own, on a fixed folder and a port that changes with every life."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data=folder, port=0, page=False, threads=1, lease=5.0, limits=Limits(queue=5000))
        self.database = Database(self.settings.store_url)
        self.jobs, self.pictures = JobQueue(self.database, self.settings.limits), Gallery(self.database)
        self.file_store = FileStore(folder)
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait for its address."""
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self.settings.to_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.process.stdout.close()
        assert self.url.startswith("http://127.0.0.1:")

    def children(self) -> list[int]:
        """Process ids of the workers."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found: set[int] = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            path = task / "children"
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in path.read_text().split()}
        return sorted(found)

    def kill(self) -> None:
        """kill -9 of the server alone; its workers notice by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask for the end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.database.close()


def check_everything(server: Process, ids: list[str]) -> None:
    """Every accepted job is done once, its pictures are whole, listed once, and no file lies about unlisted."""
    for job_id in ids:
        assert server.jobs.get(job_id).state == "done"
        assert [event.kind for event in server.jobs.events(job_id)].count("done") == 1
    listed = server.pictures.search(limit=100_000)
    expected = sorted((job_id, number) for job_id in ids for number in range(server.jobs.get(job_id).pictures))
    assert sorted((picture.job, picture.number) for picture in listed) == expected
    for picture in listed:
        data = server.file_store.read("pictures", picture.file)
        assert sha256(data).hexdigest() == picture.sha256
        Image.open(io.BytesIO(data)).load()
    kept = {path.name for path in (server.file_store.root / "pictures").iterdir() if not path.name.endswith(".part")}
    assert kept == {picture.file for picture in listed}


def wait_for_all(server: Process, ids: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if all(server.jobs.get(job_id).state in FINISHED for job_id in ids):
            return
        time.sleep(0.1)
    raise TimeoutError(f"not finished: {server.jobs.counts()}")


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


def submit(server: Process, key: str) -> str:
    body = {"request": {"prompt": key, "seed": 3, "count": 2, "num_inference_steps": 3, "width": 32, "height": 32}}
    for _ in range(100):
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(f"{server.url}/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout=30)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])
        time.sleep(0.1)
    raise TimeoutError("the server takes no job")


def retry_poisoned(server: Process, ids: list[str], seconds: float) -> None:
    """A job that was hit three times by chance counts as poison; a user would press "retry", once the kills stop."""
    wait_for_all(server, ids, seconds)
    for job_id in ids:
        if server.jobs.get(job_id).state == "failed":
            server.jobs.retry(job_id)
    wait_for_all(server, ids, seconds)


@pytest.mark.timeout(900)
def test_every_job_survives_two_kills(tmp_path: Path) -> None:
    run_with_kills(tmp_path, count=6, kills=2, pause=(0.5, 1.5), seconds=300)


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
