"""`gouache serve` as a process of its own that paints with the tiny model, and the faults that befall its store."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image
from sqlalchemy import create_engine

from gouache.errors import StoreAway
from gouache.serve.queue.job import FINISHED
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits, Settings
from gouache.serve.store.database import Database
from gouache.serve.store.gallery import Gallery
from gouache.serve.store.object_store import open_file_store

SCRIPT = Path(__file__).parent / "tiny_server.py"


class Process:
    """A server in a process of its own, on a fixed folder and a port that changes with every life.

    Args:
        folder: the data folder.
        changes: settings.
    """

    def __init__(self, folder: Path, **changes: object) -> None:
        plain = {"data": folder, "port": 0, "page": False, "threads": 1, "lease": 5.0}
        self.settings = Settings.from_dict({**plain, "limits": Limits(queue=5000, free_bytes=1), **changes})
        self.database = Database(self.settings.store_url)
        self.jobs, self.pictures = JobQueue(self.database, self.settings.limits), Gallery(self.database)
        self.file_store = open_file_store(folder, self.settings.files)
        self.log = Path(tempfile.mkstemp(prefix="gouache-log-")[1])
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait for its address."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), self.settings.to_json()],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.process.stdout.close()
        assert self.url.startswith("http://127.0.0.1:"), self.log.read_text()[-2000:]

    def workers(self) -> list[psutil.Process]:
        """The workers that live."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            found: list[psutil.Process] = psutil.Process(self.process.pid).children()
            return found
        return []

    def worker(self) -> psutil.Process:
        """The one worker, once there is one."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if len(found := self.workers()) == 1:
                return found[0]
            time.sleep(0.02)
        raise TimeoutError("no worker")

    def wait_until_ready(self, seconds: float = 300) -> None:
        """Wait for `/readyz`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"not ready: {httpx.get(f'{self.url}/readyz', timeout=10).text}")

    def wait_until_painting(self, job_id: str, seconds: float = 300) -> None:
        """Wait for a job's first step."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.jobs.get(job_id).step >= 1:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{self.jobs.get(job_id)} does not begin")

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
        self.log.unlink(missing_ok=True)


def body_of(key: str, **changes: object) -> dict[str, object]:
    """A small job of two pictures."""
    plain = {"prompt": key, "seed": 3, "count": 2, "num_inference_steps": 3, "width": 32, "height": 32}
    return {"request": {**plain, **changes}}


def submit(server: Process, key: str, seconds: float = 60, **changes: object) -> str:
    """Hand a job in as a client does that comes again as long as nobody answers, or the answer is 503."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            begun = time.monotonic()
            answer = httpx.post(
                f"{server.url}/v1/jobs", json=body_of(key, **changes), headers={"Idempotency-Key": key}, timeout=30
            )
            if answer.status_code == 202:
                return str(answer.json()["id"])
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]
            assert time.monotonic() - begun < 30
        time.sleep(0.1)
    raise TimeoutError("the server takes no job")


def wait_for_all(server: Process, ids: list[str], seconds: float) -> None:
    """Wait until every job is finished."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(StoreAway):
            if all(server.jobs.get(job_id).state in FINISHED for job_id in ids):
                return
        time.sleep(0.1)
    raise TimeoutError(f"not finished: {server.jobs.counts()}\n{server.log.read_text()[-3000:]}")


def check_everything(server: Process, ids: list[str]) -> None:
    """Every accepted job is done once, its pictures are whole, listed once, and no file lies about unlisted."""
    for job_id in ids:
        job = server.jobs.get(job_id)
        assert job.state == "done", (job, server.log.read_text()[-3000:])
        assert [event.kind for event in server.jobs.events(job_id)].count("done") == 1
    listed = server.pictures.search(limit=100_000)
    expected = sorted((job_id, number) for job_id in ids for number in range(server.jobs.get(job_id).pictures))
    assert sorted((picture.job, picture.number) for picture in listed) == expected
    for picture in listed:
        data = server.file_store.read("pictures", picture.file)
        assert sha256(data).hexdigest() == picture.sha256
        Image.open(io.BytesIO(data)).load()
    kept = {name for name in server.file_store.names("pictures") if not name.endswith(".part")}
    assert kept == {picture.file for picture in listed}


class Postgres:
    """A PostgreSQL of Debian's package on a free port, which can be stopped and started. Stop it in the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gouache-postgres-"))
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
            user = {"user": "postgres" if _has_user("postgres") else "nobody"}
            shutil.chown(self.folder, user["user"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._plain: dict[str, Any] = {
            "check": True,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            **user,
        }
        found = programs()
        assert found is not None
        self._programs = found
        made: list[str | Path] = [
            self._programs / "initdb",
            "-D",
            self.folder / "db",
            "-A",
            "trust",
            "-U",
            "gouache",
            "-E",
            "UTF8",
        ]
        subprocess.run(made, **self._plain)
        self.start()

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"postgresql+psycopg://gouache@127.0.0.1:{self.port}/postgres"

    def new_database(self) -> str:
        """URL of an empty one."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        name = f"store{uuid.uuid4().hex[:12]}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url.removesuffix("postgres") + name

    def _control(self, *words: str, check: bool = True) -> None:
        command: list[str | Path] = [self._programs / "pg_ctl", "-D", self.folder / "db", *words]
        subprocess.run(command, **{**self._plain, "check": check})

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c fsync=off -c listen_addresses=127.0.0.1"
        self._control("-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash does."""
        self._control("-w", "-m", "immediate", "stop", check=False)

    def processes(self) -> list[psutil.Process]:
        """The server and those that serve one connection each."""
        number = int((self.folder / "db" / "postmaster.pid").read_text().split()[0])
        return [psutil.Process(number), *psutil.Process(number).children()]

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs, None if they are not installed."""
    folders = [Path("/usr/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def can_mount() -> bool:
    """Whether a small disk can be had. Not in a namespace of its own: the test looks at the server's files."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return made.returncode == 0


class SmallDisk:
    """A real file system of a few MiB.

    Args:
        folder: where it is mounted; made.
        mebibytes: its size.
    """

    def __init__(self, folder: Path, mebibytes: int) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)

    def become_read_only(self) -> None:
        """As a disk does that its system no longer trusts."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "filling").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        """Give the room back."""
        (self.folder / "filling").unlink(missing_ok=True)

    def remove(self) -> None:
        """End it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Lock:
    """SQLite's one lock for writers, in the hands of somebody else while this is entered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._other: sqlite3.Connection | None = None

    def take(self) -> None:
        """Wait for it, and hold it."""
        self._other = sqlite3.connect(self.path, isolation_level=None, timeout=30, check_same_thread=False)
        self._other.execute("BEGIN IMMEDIATE")

    def give(self) -> None:
        """Let it go."""
        assert self._other is not None
        self._other.execute("ROLLBACK")
        self._other.close()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()


@contextlib.contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Processes that live and do nothing."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


class Flapping:
    """A fault that comes and goes until it is told to stop."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
        self.begin, self.end, self.seconds = begin, end, seconds
        self.times = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stopping.wait(self.seconds):
            self.begin()
            self.times += 1
            self._stopping.wait(self.seconds)
            self.end()

    def __enter__(self) -> Flapping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
