"""Servers without workers and workers without a server, as processes of their own on one store."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from tests.serve.served import Process, check_everything, submit, wait_for_all

from gouache.serve.settings import Limits, Settings
from gouache.serve.start import make_settings

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
        if self.process.stdout is not None:
            self.process.stdout.close()
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
    from gouache.serve.queue.leases import Leases
    from gouache.serve.store.database import Database
    from gouache.serve.worker.supervisor import Supervisor

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


def streamed(url: str, wanted: set[str], seconds: float) -> set[str]:
    """Jobs of which a server's stream of news says that they are done."""
    import json

    seen: set[str] = set()
    until = time.monotonic() + seconds
    with httpx.stream("GET", f"{url}/v1/events", timeout=seconds) as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == "job":
                job = json.loads(line.removeprefix("data: "))
                if job.get("state") == "done":
                    seen.add(job["id"])
            if wanted <= seen or time.monotonic() > until:
                return seen
    return seen
