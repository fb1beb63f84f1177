"""An hour of steady use of `gouache serve`: the memory of server and worker stays where it was.

Server and worker are processes of their own, as users start them. GOUACHE_SOAK_MINUTES shortens the hour,
GOUACHE_SOAK_PACE (jobs a second) makes it gentler to the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.pipeline.pipeline import untrained_bundle
from gouache.serve.http.ops import resident_bytes

MINUTES = float(os.environ.get("GOUACHE_SOAK_MINUTES", "60"))
PACE = float(os.environ.get("GOUACHE_SOAK_PACE", "4"))
WARM_UP = 1100
"""Jobs before the first measurement: the largest of the server's bounded caches, of 1,024 requests, is full then."""
MOST_GROWTH = 1.02


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int, Callable[[], int]]]:
    """`gouache serve` with a tiny model; gives its address, its process and what finds its worker's."""
    write_model(bundle_to_write(untrained_bundle()), folder / "models" / "tiny", "gouache")
    command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", str(folder), "--no-page"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--model", "tiny", "--threads", "1"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid, lambda: worker_of(process.pid)
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def worker_of(server: int) -> int:
    """The server's child that paints; others decode pictures."""
    tasks = Path(f"/proc/{server}/task").iterdir()
    children = {child for task in tasks for child in (task / "children").read_text().split()}
    (found,) = [child for child in children if b"serve.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(found)


def use(client: httpx.Client, dice: random.Random, seed: int) -> None:
    """What a user does: paint, look on, look around, throw away."""
    request = {"prompt": f"a {dice.choice(['red', 'green', 'blue'])} fox", "seed": seed, "width": 32, "height": 32}
    body = {"request": {**request, "num_inference_steps": 2}}
    job = client.post("/v1/jobs", json=body).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events", params={"previews": seed % 2 == 0}) as events:
        assert "event: done" in list(events.iter_lines())
    (picture,) = client.get(f"/v1/jobs/{job}").json()["pictures"]
    assert client.get(f"/v1/pictures/{picture}/thumbnail").status_code == 200
    assert client.get("/v1/pictures", params={"q": "fox", "limit": 20}).status_code == 200
    assert client.get("/sdapi/v1/progress").status_code == 200
    assert client.get("/metrics").status_code == 200
    if seed % 3 == 0:
        assert client.delete(f"/v1/pictures/{picture}").status_code == 204
    if seed % 5 == 0:
        client.post(f"/v1/jobs/{client.post('/v1/jobs', json=body).json()['id']}/cancel")


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 1800)
def test_memory_stays_where_it_was(tmp_path: Path) -> None:
    dice, sizes = random.Random(1), []
    with serving(tmp_path) as (url, server, worker), httpx.Client(base_url=url, timeout=120) as client:
        for seed in range(WARM_UP):
            use(client, dice, seed)
        first = worker()
        start, seed, told = time.monotonic(), WARM_UP, -1
        while (passed := time.monotonic() - start) < MINUTES * 60:
            use(client, dice, seed)
            seed += 1
            sizes.append((resident_bytes(server), resident_bytes(first)))
            if int(passed / 60) > told:
                told = int(passed / 60)
                mebibytes = ", worker ".join(f"{size / 2**20:.1f} MiB" for size in sizes[-1])
                print(f"minute {told}, {seed} jobs: server {mebibytes}", flush=True)  # noqa: T201
            time.sleep(max(0.0, (seed - WARM_UP) / PACE - (time.monotonic() - start)))
        assert worker() == first, "the worker was started anew"
    tenth = max(1, len(sizes) // 10)
    for k, name in enumerate(("server", "worker")):
        before, after = (statistics.median(one[k] for one in part) for part in (sizes[:tenth], sizes[-tenth:]))
        print(f"{name}: {before / 2**20:.1f} MiB, after {seed} jobs {after / 2**20:.1f} MiB")  # noqa: T201
        assert after <= before * MOST_GROWTH, f"{name} grew from {before} to {after} bytes in {MINUTES} minutes"
