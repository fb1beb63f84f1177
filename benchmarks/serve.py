"""Figures of the studio: time it adds, requests held at once, pollers, jobs that survive kill -9.

    python benchmarks/serve.py                # a few minutes on two cores
    python benchmarks/serve.py --jobs 40 --json serve.json
    python benchmarks/serve.py --quick        # only the time it adds

The durability figures (1,000 jobs, 50 kills) come from
    python -m pytest -m slow tests/serve/test_durability.py
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from gouache.pipeline.pipeline import open_pipeline
from gouache.pipeline.request import Request

SIZE, STEPS = 64, 4
PACE = 600.0
"""Requests a second of all paced pollers together."""
BODY = {"prompt": "a red apple", "width": SIZE, "height": SIZE, "num_inference_steps": STEPS, "seed": 1}


@contextlib.contextmanager
def served(threads: int) -> Iterator[str]:
    """The command as users start it, on an empty folder and a free port; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", folder, "--no-page"]
        process = subprocess.Popen(
            [*command, "--threads", str(threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            url = process.stdout.readline().strip()
            for _ in range(300):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                        break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def painted(client: httpx.Client, seed: int) -> float:
    """Seconds from handing a job in until it is done, waiting for its events."""
    start = time.perf_counter()
    job = client.post("/v1/jobs", json={"request": BODY | {"seed": seed}}).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        for line in stream.iter_lines():
            if line == "event: done":
                return time.perf_counter() - start
    raise RuntimeError(f"job {job} did not end well")


def compared(client: httpx.Client, count: int, threads: int) -> tuple[list[float], list[float]]:
    """Seconds of the same pictures by the pipeline alone, encoded as PNG, and as jobs.

    They take turns, on as many threads, so that whatever else the machine does falls on both.
    """
    torch.set_num_threads(threads)
    pipeline, _ = open_pipeline(None, device="cpu")
    alone, through = [], []
    for seed in range(count + 1):
        start = time.perf_counter()
        pipeline.paint(Request.from_dict(BODY | {"seed": seed}))[0].encode("png")
        alone.append(time.perf_counter() - start)
        through.append(painted(client, seed))
    return alone[1:], through[1:]  # The first ones load the model.


def added_time(client: httpx.Client, count: int, threads: int) -> dict[str, float]:
    """What the server adds to a picture, in milliseconds."""
    alone, through = compared(client, count, threads)
    added = [1000 * (ours - bare) for bare, ours in zip(alone, through, strict=True)]
    return {
        "bare pipeline, ms (median)": round(1000 * statistics.median(alone), 1),
        "through the server, ms (median)": round(1000 * statistics.median(through), 1),
        "added by the server, ms (median of the pairs)": round(statistics.median(added), 1),
    }


def under_load(url: str, client: httpx.Client, jobs: int, pollers: int, seconds: float) -> dict[str, float]:
    """Many jobs at once, and many who ask."""
    done, spent = held(url, jobs)
    rate, failed = polled(url, pollers, seconds, 0.0)
    paced, slower = beside_pollers(url, client, pollers, seconds, jobs)
    return {
        f"of {jobs} jobs held at once, done": done,
        "seconds for them": round(spent, 2),
        f"requests/s of {pollers} pollers": round(rate, 1),
        "failed polls": failed,
        f"requests/s of {pollers} paced pollers beside the worker": round(paced, 1),
        "worker's time a job beside them, % more": round(100 * (slower - 1), 1),
    }


async def _poller(address: tuple[str, int], path: str, until: float, pause: float, counts: Counter[int]) -> None:
    """One client on one connection; written on bare sockets, so that the server is measured and not the client."""
    reader, writer = await asyncio.open_connection(*address)
    asked = f"GET {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode()
    await asyncio.sleep(pause * random.random())
    while (start := time.monotonic()) < until:
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        counts[int(head.split(b" ", 2)[1])] += 1
        await asyncio.sleep(max(0.0, pause - (time.monotonic() - start)))
    writer.close()


def polled(url: str, pollers: int, seconds: float, pause: float) -> tuple[float, int]:
    """Requests a second that so many pollers get answered, each on a job of its own, and how many failed.

    Args:
        url: of the server.
        pollers: connections.
        seconds: to go on.
        pause: seconds between a poller's requests; 0 asks again at once.
    """
    jobs = [job["id"] for job in httpx.get(f"{url}/v1/jobs?limit=200", timeout=30).json()["jobs"]]
    host, _, port = url.removeprefix("http://").rpartition(":")
    counts: Counter[int] = Counter()
    paths = [f"/v1/jobs/{jobs[k % len(jobs)]}" for k in range(pollers)]

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_poller((host, int(port)), path, until, pause, counts) for path in paths))

    asyncio.run(all_of_them())
    return counts[200] / seconds, counts.total() - counts[200]


def working(client: httpx.Client, count: int) -> float:
    """Median seconds that the worker itself takes for a job, of so many handed in at once."""
    body = BODY | {"num_inference_steps": 5 * STEPS}
    ids = [client.post("/v1/jobs", json={"request": body | {"seed": k}}).json()["id"] for k in range(count)]
    views: list[dict[str, float]] = []
    for job in ids:
        while (view := client.get(f"/v1/jobs/{job}").json())["state"] not in ("done", "failed"):
            time.sleep(0.2)
        views.append(view)
    return statistics.median(view["finished"] - view["started"] for view in views)


def beside_pollers(url: str, client: httpx.Client, pollers: int, seconds: float, jobs: int) -> tuple[float, float]:
    """Requests a second of paced pollers while the worker paints, and its time a job with them over that without."""
    alone = working(client, jobs)
    with ThreadPoolExecutor(1) as pool:
        rate = pool.submit(polled, url, pollers, seconds, pollers / PACE)
        time.sleep(0.5)
        slowed = working(client, jobs)
        return rate.result()[0], slowed / alone


def held(url: str, count: int) -> tuple[int, float]:
    """Hand in so many jobs at once; how many ended done, and the seconds it took."""
    start = time.perf_counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        ids = [client.post("/v1/jobs", json={"request": BODY | {"seed": k}}).json()["id"] for k in range(count)]
        while not all(client.get(f"/v1/jobs/{job}").json()["state"] == "done" for job in ids[-3:]):
            time.sleep(0.1)
        done = sum(client.get(f"/v1/jobs/{job}").json()["state"] == "done" for job in ids)
    return done, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20, help="jobs for the added time, and held at once")
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="of polling")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only the added time")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with served(chosen.threads) as url, httpx.Client(base_url=url, timeout=120) as client:
        figures = added_time(client, chosen.jobs, chosen.threads)
        if not chosen.quick:
            figures |= under_load(url, client, chosen.jobs, chosen.pollers, chosen.seconds)
    for name, value in figures.items():
        print(f"{name:56} {value}")  # noqa: T201
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
