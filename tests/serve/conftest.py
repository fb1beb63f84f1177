"""A studio on a temporary folder, with a real worker process that paints with a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image
from tests.serve.objects import ObjectService
from tests.serve.served import Postgres, programs

from gouache.serve.queue.job import FINISHED, Job
from gouache.serve.server import WebServer, create_app, listen
from gouache.serve.settings import Limits, Settings
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from starlette.testclient import TestClient

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TINY_WORKER = (sys.executable, str(Path(__file__).parent / "tiny_worker.py"))


class Server:
    """A studio that listens on a free port of this machine, in a thread of its own."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.web = WebServer(studio)
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


def until(page: Page, script: str, arg: object = None, seconds: float = 60.0) -> None:
    """Wait until an expression, or a function of `arg`, holds on a page.

    Playwright's own `wait_for_function` compiles texts inside the page, which the page's policy forbids.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        if time.monotonic() > end:
            raise TimeoutError(f"still not so after {seconds:g} s: {script}")
        page.wait_for_timeout(50)


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
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that was started for these tests, from Debian's package."""
    if programs() is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    started = Postgres()
    yield started
    started.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    return str(request.getfixturevalue("postgres").new_database())


MakeClient = Callable[..., "TestClient"]


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[MakeClient]:
    """Clients of studios without workers; `prepare` gets the studio before it opens."""
    from starlette.testclient import TestClient

    made: list[tuple[TestClient, Studio]] = []

    def make(
        prepare: Callable[[Studio], object] | None = None, base_url: str = "http://127.0.0.1", **changes: object
    ) -> TestClient:
        plain: dict[str, object] = {"data": tmp_path / f"data{len(made)}", "workers": 0, "page": False}
        studio = Studio(Settings.from_dict({**plain, **changes}))
        if prepare is not None:
            prepare(studio)
        client = TestClient(create_app(studio), base_url=base_url, raise_server_exceptions=True)
        client.__enter__()
        made.append((client, studio))
        return client

    yield make
    for client, studio in made:
        client.__exit__(None, None, None)
        studio.close()


@pytest.fixture
def studio_page(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "data" / "models"))
    return start_server(page=True)


@pytest.fixture
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def adapters(studio_page: Server) -> None:
    """A LoRA and a textual inversion on the page's studio."""
    folder = studio_page.studio.settings.data / "models"
    import torch
    from safetensors.torch import save_file

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    for kind in ("loras", "embeddings"):
        (folder / kind).mkdir(parents=True)
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 320), f"{name}.lora_up.weight": torch.zeros(320, 2)}
    save_file(tensors, folder / "loras" / "ink.safetensors")
    save_file({"emb_params": torch.zeros(3, 768)}, folder / "embeddings" / "zog.safetensors")


@pytest.fixture
def stopped_run(studio_page: Server) -> None:
    """A run that was stopped after a while, with its loss and a sheet of samples."""
    from gouache.serve.training.plan import PLAN, STATE, STOP, RunState, TrainingPlan, write_text

    folder = studio_page.studio.training.root / "cats"
    (folder / "denoiser" / "samples").mkdir(parents=True)
    plan = TrainingPlan(
        name="cats",
        stage="denoiser",
        data="cats",
        pictures=80,
        model="pocket",
        start=folder,
        size=128,
        minutes=60,
        learning_rate=1e-4,
        batch_size=8,
        created=1.0,
        owner="local",
    )
    write_text(folder / PLAN, plan.to_json())
    write_text(folder / STATE, RunState(step="train", trained=1860.0, result="stopped").to_json())
    (folder / STOP).touch()
    lines = [{"images_seen": 32.0 * k, "loss": 0.2 + 0.8 / k + 0.05 * (k % 5)} for k in range(1, 200)]
    lines.append({"images_seen": 6400.0, "validation/score": 0.31})
    (folder / "denoiser" / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for seen in (3200, 6400):
        Image.effect_noise((512, 256), 60).convert("RGB").save(folder / "denoiser" / "samples" / f"{seen}.png")


@pytest.fixture(scope="session")
def object_service() -> Iterator[ObjectService]:
    """moto's server, in a process of its own."""
    started = ObjectService()
    yield started
    started.stop()
