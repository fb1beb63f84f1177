"""Servers without workers and workers without a server, as processes of their own on one store."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from tests.serve.objects import ObjectService
from tests.serve.served import Postgres, Process, check_everything, frozen, submit, wait_for_all
from tests.serve.test_durability import retry_poisoned

from gouache.pipeline.request import Request
from gouache.serve.queue.leases import Leases
from gouache.serve.settings import Limits, Settings
from gouache.serve.start import make_settings
from gouache.serve.store.database import Database
from gouache.serve.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from tests.serve.conftest import StartServer

SCRIPT = Path(__file__).parents[1] / "tiny_host.py"
ROOT = Path(__file__).parents[3]


class Host:
    """`gouache worker` in a process of its own.

    Args:
        folder: its data folder.
        words: further arguments of the script.
        changes: settings.
    """

    def __init__(self, folder: Path, *words: str, **changes: object) -> None:
        plain = {"data": folder, "threads": 1, "lease": 5.0, "limits": Limits(free_bytes=1)}
        self.settings, self.words = Settings.from_dict({**plain, **changes}), words
        self.log = Path(tempfile.mkstemp(prefix="gouache-log-")[1])
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it; gives what it announces."""
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), self.settings.to_json(), *self.words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        self.process.stdout.close()
        assert said, self.log.read_text()[-2000:]
        return said

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            found: list[psutil.Process] = psutil.Process(self.process.pid).children()
            return found
        return []

    def kill(self) -> None:
        """kill -9 of it and its workers, as when the machine is lost."""
        assert self.process is not None
        lost = [*self.workers(), psutil.Process(self.process.pid)]
        for process in lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask for the end; gives the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.log.unlink(missing_ok=True)
        return code


@contextlib.contextmanager
def running(parts: Sequence[Process | Host]) -> Iterator[None]:
    """Started, and stopped whatever happens."""
    try:
        for part in parts:
            part.start()
        yield
    finally:
        for part in reversed(parts):
            part.stop()


@pytest.mark.timeout(120)
def test_a_worker_paints_what_a_server_without_workers_takes(tmp_path: Path) -> None:
    server, host = Process(tmp_path, workers=0), Host(tmp_path)
    with running((server, host)):
        ids = [submit(server, key) for key in ("one", "two")]
        wait_for_all(server, ids, 60)
        check_everything(server, ids)
        (worker,) = host.workers()
        assert host.stop() == 0
        assert not worker.is_running(), "its workers end with it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--store", "no url"), "Check the URL"),
        (("--store", "postgresql+psycopg://nobody@127.0.0.1:1/nothing"), "that the server runs"),
        (("--files", "gopher://bucket"), "s3://BUCKET"),
        (("--data", "s3://bucket/studio"), "--files s3://BUCKET"),
        (("--model", "nope"), "'nope'"),
        (("--devices", "cpu,cpu", "--workers", "1"), "--workers 2"),
    ],
)
def test_what_cant_work_says_so_and_ends(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    folder = () if "--data" in words else ("--data", str(tmp_path))
    command = [sys.executable, "-m", "gouache", "worker", *folder, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_each_worker_has_a_device_of_its_own(tmp_path: Path) -> None:
    told = (sys.executable, "-c", "import json,sys; print(json.loads(sys.stdin.readline())['device'], flush=True)")
    heard: list[str] = []
    settings = Settings(data=tmp_path, workers=3, device="cuda:0, cuda:1")
    database = Database(settings.store_url)
    supervisor = Supervisor(settings, Leases(database), heard.append, told)
    supervisor.start()
    until = time.monotonic() + 20
    while len([word for word in heard if word]) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    supervisor.stop()
    database.close()
    assert sorted(word for word in heard if word)[:3] == ["cuda:0", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(("device", "workers"), [(None, 1), ("cpu", 1), ("cpu,cpu", 2), ("cuda:0, cuda:1, cuda:2", 3)])
def test_there_is_a_worker_for_each_device(tmp_path: Path, device: str | None, workers: int) -> None:
    assert make_settings({"data": tmp_path, "device": device}).workers == workers
    assert make_settings({"data": tmp_path, "device": device, "workers": 4}).workers == 4


class Reader(threading.Thread):
    """Follows a server's stream of news from now on.

    Attributes:
        done: ids of the jobs of which it was told that they are done.
        pictures: ids of the pictures that it was told of, in their order.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.done, self.pictures = url, set[str](), list[str]()
        self.follows = threading.Event()

    def run(self) -> None:
        """Read until the server ends it."""
        kind = ""
        with contextlib.suppress(httpx.HTTPError), httpx.stream("GET", f"{self.url}/v1/events", timeout=60) as stream:
            for line in stream.iter_lines():
                name, _, text = line.partition(": ")
                if name == "event":
                    kind = text
                    self.follows.set()
                elif name == "data" and kind == "job" and (job := json.loads(text))["state"] == "done":
                    self.done.add(job["id"])
                elif name == "data" and kind == "picture":
                    self.pictures.append(json.loads(text)["id"])

    def wait_for(self, ids: list[str], seconds: float) -> None:
        """Wait until all of them are done."""
        until = time.monotonic() + seconds
        while not set(ids) <= self.done:
            assert time.monotonic() < until, f"told of {len(self.done)} of {len(ids)} jobs"
            time.sleep(0.05)


def test_a_job_that_one_server_takes_is_seen_at_another(start_server: StartServer) -> None:
    first, second = start_server(workers=0), start_server(workers=0)
    reader = Reader(second.url)
    reader.start()
    assert reader.follows.wait(30)
    request = Request(prompt="a fox", seed=1, num_inference_steps=2, width=32, height=32)
    job, _ = first.studio.submit(request, owner="local", source="v1")
    third = start_server(workers=1)
    reader.wait_for([job.id], 60)
    picture = f"{second.url}/v1/pictures/{reader.pictures[0]}/file"
    assert (
        httpx.get(picture, timeout=30).content == httpx.get(picture.replace(second.url, third.url), timeout=30).content
    )
    assert httpx.get(f"{first.url}/v1/jobs/{job.id}", timeout=30).json()["state"] == "done"


JOBS, KILLS = (
    int(os.environ.get(name, default)) for name, default in (("GOUACHE_TEST_JOBS", "60"), ("GOUACHE_TEST_KILLS", "12"))
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_servers_and_two_hosts_on_one_postgresql_and_one_object_store_lose_nothing(
    tmp_path: Path, postgres: Postgres, object_service: ObjectService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of any of them, in turns of chance; the object store hangs for a while in between."""
    for name, value in object_service.environment.items():
        monkeypatch.setenv(name, value)
    shared = {"store": postgres.new_database(), "files": object_service.new_bucket()}
    servers = [Process(tmp_path / f"server{k}", workers=0, **shared) for k in range(2)]
    hosts = [Host(tmp_path / f"host{k}", **shared) for k in range(2)]
    generator, ids = random.Random(3), list[str]()
    keys = [f"key-{k}" for k in range(JOBS)]
    with running((*servers, *hosts)):
        for turn in range(KILLS):
            for key in keys[turn * JOBS // KILLS : (turn + 1) * JOBS // KILLS]:
                ids.append(submit(generator.choice(servers), key))
            time.sleep(generator.uniform(0.5, 4.0))
            if turn == KILLS // 2:
                with frozen(object_service.processes()):
                    time.sleep(4.0)
            everyone: list[Process | Host] = [*servers, *hosts]
            lost = generator.choice(everyone)
            lost.kill()
            lost.start()
        assert [submit(servers[0], key) for key in keys] == ids, "the keys make them the same jobs"
        reader = Reader(servers[1].url)
        reader.start()
        assert reader.follows.wait(30)
        late = [submit(servers[0], "late")]
        reader.wait_for(late, 600)
        assert len(reader.pictures) == len(set(reader.pictures))
        retry_poisoned(servers[0], ids + late, 900)
        check_everything(servers[1], ids + late)
        views = [httpx.get(f"{server.url}/v1/pictures?limit=200", timeout=60).json() for server in servers]
        assert views[0] == views[1]
