"""An hour of steady use: memory of server and worker stays where it was. Minutes: GOUACHE_SOAK_MINUTES."""

from __future__ import annotations

import os
import random
import statistics
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from gouache.serve.ops import resident_bytes

if TYPE_CHECKING:
    from tests.serve.conftest import Server, StartServer

MINUTES = float(os.environ.get("GOUACHE_SOAK_MINUTES", "60"))
MOST_GROWTH = 1.02


def use(client: httpx.Client, server: Server, dice: random.Random, seed: int) -> None:
    """What a user does: paint, look on, look around, throw away."""
    body = {"prompt": f"a {dice.choice(['red', 'green', 'blue'])} fox", "seed": seed, "num_inference_steps": 2}
    job = client.post("/v1/jobs", json={"request": body}).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["state"] not in ("done", "failed", "cancelled"):
        time.sleep(0.02)
    (picture,) = client.get(f"/v1/jobs/{job}").json()["pictures"]
    assert client.get(f"/v1/pictures/{picture}/thumbnail").status_code == 200
    assert client.get("/v1/pictures", params={"q": "fox", "limit": 20}).status_code == 200
    assert client.get("/sdapi/v1/progress").status_code == 200
    assert client.get("/metrics").status_code == 200
    if seed % 3 == 0:
        assert client.delete(f"/v1/pictures/{picture}").status_code == 204
    if seed % 5 == 0:
        client.post(f"/v1/jobs/{client.post('/v1/jobs', json={'request': body}).json()['id']}/cancel")
    server.studio.jobs.counts()


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_memory_stays_where_it_was(start_server: StartServer) -> None:
    server = start_server()
    dice, seed = random.Random(1), 0
    sizes: list[tuple[int, int]] = []
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(10):  # Every cache and pool has been used once.
            seed += 1
            use(client, server, dice, seed)
        until = time.monotonic() + MINUTES * 60
        while time.monotonic() < until:
            seed += 1
            use(client, server, dice, seed)
            (worker,) = server.studio.supervisor.processes()
            sizes.append((resident_bytes(None), resident_bytes(worker)))
    tenth = max(1, len(sizes) // 10)
    for name, series in (("server", [one[0] for one in sizes]), ("worker", [one[1] for one in sizes])):
        before, after = statistics.median(series[:tenth]), statistics.median(series[-tenth:])
        print(f"{name}: {before / 2**20:.1f} MiB, after {seed} jobs {after / 2**20:.1f} MiB")  # noqa: T201
        assert after <= before * MOST_GROWTH, f"{name} grew from {before} to {after} bytes in {MINUTES} minutes"
