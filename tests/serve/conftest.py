"""A studio on a temporary folder, with a real worker process that paints with a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import create_engine

from gouache.serve.app import create_app
from gouache.serve.connections import listen, uvicorn_config
from gouache.serve.job import FINISHED, Job
from gouache.serve.settings import Limits, Settings
from gouache.serve.studio import Studio

TINY_WORKER = (sys.executable, str(Path(__file__).parent / "tiny_worker.py"))


class Server:
    """A studio that listens on a free port of this machine, in a thread of its own."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.web = uvicorn.Server(uvicorn_config(create_app(studio), studio.settings))
        self._socket = listen(studio.settings)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.run(self.web.serve(sockets=[self._socket]))

    def start(self) -> Server:
        """Serve, and wait until it answers."""
        self._thread.start()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/v1/capabilities", timeout=5)
                return self
            time.sleep(0.05)
        raise TimeoutError("the server did not start")

    def stop(self) -> None:
        """End the server and its workers."""
        self.web.should_exit = True
        self._thread.join(60)
        self.studio.close()

    def wait(self, job_id: str, seconds: float = 180) -> Job:
        """Wait for a job's end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self.studio.jobs.get(job_id)
            if job.state in FINISHED:
                return job
            time.sleep(0.01)
        raise TimeoutError(f"job {job_id} is {job.state} after {seconds} s")


def make_settings(folder: Path, **changes: object) -> Settings:
    """Settings of a small studio without a page."""
    plain: dict[str, object] = {"data": folder, "port": 0, "page": False, "threads": 1, "grace": 2.0}
    return Settings.from_dict({**plain, **changes})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a studio without workers."""
    return make_settings(tmp_path, workers=0)


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    """A studio that nobody works for."""
    made = Studio(settings)
    yield made
    made.close()


StartServer = Callable[..., Server]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers with the given settings; all of them are stopped in the end."""
    started: list[Server] = []

    def start(*, prepare: Callable[[Studio], object] | None = None, **changes: object) -> Server:
        studio = Studio(make_settings(tmp_path / "data", **changes), TINY_WORKER)
        if prepare is not None:
            prepare(studio)
        started.append(Server(studio).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with one worker, shared by the tests that only hand in jobs and look."""
    folder = tmp_path_factory.mktemp("studio")
    shared = Server(Studio(make_settings(folder, limits=Limits(steps=100)), TINY_WORKER)).start()
    yield shared
    shared.stop()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """Speaks to the shared server."""
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL that was started for these tests, from Debian's package."""
    programs = [Path("/usr/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = [folder for folder in programs if (folder / "initdb").is_file()]
    if not found:
        pytest.skip("PostgreSQL's server programs are not installed")
    folder = Path(tempfile.mkdtemp(prefix="gouache-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root.
        user = {"user": "postgres" if _has_user("postgres") else "nobody"}
        shutil.chown(folder, user["user"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    subprocess.run([found[-1] / "initdb", "-D", folder / "db", "-A", "trust", "-U", "gouache", "-E", "UTF8"], **plain)
    options = f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1"
    control: list[str | Path] = [found[-1] / "pg_ctl", "-D", folder / "db"]
    subprocess.run([*control, "-w", "-l", folder / "log", "-o", options, "start"], **plain)
    yield f"postgresql+psycopg://gouache@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], **{**plain, "check": False})
    shutil.rmtree(folder, ignore_errors=True)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    url = str(request.getfixturevalue("postgres"))
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"store{uuid.uuid4().hex[:12]}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.removesuffix("postgres") + name
