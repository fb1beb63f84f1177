"""What can't serve does not start: it ends with one sentence that says why, before anybody waits for it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from tests.serve.served import Process, SmallDisk, can_mount

from gouache.errors import DeviceUnavailable, GouacheError, ModelNotFound, StoreAway, StoreError
from gouache.serve.server import run
from gouache.serve.start import make_settings
from gouache.serve.studio import Studio


def start(**given: object) -> None:
    """As `gouache serve` does; no test here gets as far as listening."""

    def announce(address: str) -> None:
        raise AssertionError(f"it listens on {address}")

    studio = Studio(make_settings({"port": 0, "page": False, **given}))
    try:
        run(studio, announce)
    finally:
        studio.close()


def nowhere(folder: Path) -> dict[str, object]:
    return {"models": [folder / "nowhere"]}


def a_files_place(folder: Path) -> dict[str, object]:
    (folder / "file").write_text("x")
    return {"data": folder / "file"}


def below_a_file(folder: Path) -> dict[str, object]:
    (folder / "file").write_text("x")
    return {"data": folder / "file" / "data"}


def a_file_in_the_way(folder: Path) -> dict[str, object]:
    (folder / "data").mkdir()
    (folder / "data" / "pictures").write_text("x")
    return {"data": folder / "data"}


def a_damaged_store(folder: Path) -> dict[str, object]:
    (folder / "studio.sqlite3").write_bytes(b"no database" * 1000)
    return {"data": folder}


def an_empty_model(folder: Path) -> dict[str, object]:
    (folder / "models").mkdir()
    (folder / "models" / "broken.safetensors").write_bytes(b"x")
    return {"models": [folder / "models"], "default_model": "broken"}


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda _: {"default_model": "nope"}, ModelNotFound, "'nope'"),
        (lambda _: {"device": "gpu"}, DeviceUnavailable, "'gpu'"),
        (lambda _: {"device": "cuda:99"}, DeviceUnavailable, "cuda:99"),
        (nowhere, ModelNotFound, "expected a folder that exists"),
        (an_empty_model, GouacheError, "broken"),
        (a_files_place, StoreError, "Choose another with --data"),
        (below_a_file, StoreError, "Choose another with --data"),
        (a_file_in_the_way, StoreError, "Choose another with --data"),
        (a_damaged_store, StoreAway, "Check the URL"),
        (lambda _: {"store": "postgresql+psycopg://nobody@127.0.0.1:1/nothing"}, StoreAway, "that the server runs"),
        (lambda _: {"store": "no url"}, StoreError, "Check the URL"),
    ],
)
def test_what_cant_serve_does_not_start(
    make: Callable[[Path], dict[str, object]], kind: type[GouacheError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        start(**{"data": tmp_path / "studio", **make(tmp_path)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_no_start(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="expected one of cpu"):
        start(data=tmp_path, device="cuda")


@pytest.mark.skipif(not can_mount(), reason="a small disk needs leave to mount one")
def test_a_data_folder_that_can_only_be_read(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", 1)
    try:
        Studio(make_settings({"data": disk.folder, "workers": 0})).close()
        disk.become_read_only()
        with pytest.raises(StoreError, match="read-only"):
            start(data=disk.folder)
    finally:
        disk.remove()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_data_folder_that_is_somebody_elses(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission denied"):
        start(data=tmp_path / "data")
    tmp_path.chmod(0o700)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code"), [(["--model", "nope"], 3), (["--data", "/dev/null"], 2)])
def test_the_command_ends_with_one_sentence(words: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "expected" in done.stderr


@pytest.mark.slow
def test_the_command_as_it_stands_gets_ready(tmp_path: Path) -> None:
    """The shipped model, the page, every default but the port and the folder."""
    command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            seen = set()
            while (answer := httpx.get(f"{url}/readyz", timeout=120)).status_code != 200:
                seen.add(answer.json()["status"])
            assert seen <= {"no worker", "the worker starts"}
            assert httpx.head(f"{url}/readyz", timeout=60).status_code == 200
            job = httpx.post(f"{url}/v1/jobs", json={"request": {"prompt": "x", "num_inference_steps": 1}}, timeout=60)
            assert job.status_code == 202
        finally:
            process.terminate()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_the_web_process_never_loads_torch(tmp_path: Path) -> None:
    server = Process(tmp_path / "data", page=True, workers=1)
    server.start()
    server.wait_until_ready()
    try:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), "red").save(picture, "PNG")
            name = client.post("/v1/attachments", content=picture.getvalue()).raise_for_status().json()["name"]
            sent = {"prompt": "a red apple", "init_image": name, "strength": 0.5, "seed": 1, "num_inference_steps": 2}
            job = client.post("/v1/jobs", json={"request": sent}).raise_for_status().json()["id"]
            for path in (
                "/",
                "/v1/page",
                "/v1/models",
                "/v1/models/inspect?model=pocket",
                "/v1/models/adapters",
                "/v1/models/controls",
                "/v1/models/ip-adapters",
                "/v1/training/runs",
                "/v1/pictures?meaning=fruit",
                "/v1/capabilities",
                "/sdapi/v1/sd-models",
                "/sdapi/v1/samplers",
                "/sdapi/v1/memory",
                "/controlnet/model_list",
                "/metrics",
            ):
                client.get(path).raise_for_status()
            with client.stream("GET", f"/v1/jobs/{job}/events") as events:
                assert "event: done" in list(events.iter_lines())
            shown = client.get("/v1/pictures").json()["pictures"][0]
            for part in ("file?format=webp", "thumbnail", "recipe"):
                client.get(f"/v1/pictures/{shown['id']}/{part}").raise_for_status()
            client.post("/sdapi/v1/txt2img", json={"prompt": "an apple", "steps": 2}).raise_for_status()
        assert server.process is not None
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "sqlite" in loaded
        assert "libtorch" not in loaded
    finally:
        server.stop()
