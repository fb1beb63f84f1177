"""Figures of the studio: time it adds, requests held at once, pollers, jobs that survive kill -9.

    python benchmarks/serve.py                # a few minutes on two cores
    python benchmarks/serve.py --pollers 200 --jobs 40 --json serve.json

The durability figures (1,000 jobs, 50 kills) come from
    python -m pytest -m slow tests/serve/test_durability.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from gouache.pipeline.library import open_pipeline
from gouache.pipeline.request import Request

SIZE, STEPS = 64, 4
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


def bare(count: int) -> list[float]:
    """Seconds of the same pictures by the pipeline alone, encoded as PNG."""
    pipeline, _ = open_pipeline(None, device="cpu")
    seconds = []
    for seed in range(count + 1):
        start = time.perf_counter()
        pipeline.paint(Request.from_dict(BODY | {"seed": seed}))[0].encode("png")
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def polled(url: str, pollers: int, seconds: float) -> tuple[float, int]:
    """Requests a second that so many pollers get answered, and how many failed."""
    job = httpx.get(f"{url}/v1/jobs?limit=1").json()["jobs"][0]["id"]
    counts, failures = [0] * pollers, [0] * pollers
    until = time.monotonic() + seconds

    def poll(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while time.monotonic() < until:
                answer = client.get(f"/v1/jobs/{job}")
                counts[number] += 1
                failures[number] += answer.status_code != 200

    threads = [threading.Thread(target=poll, args=(number,)) for number in range(pollers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds, sum(failures)


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
    parser.add_argument("--pollers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0, help="of polling")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    alone = statistics.median(bare(chosen.jobs))
    with served(chosen.threads) as url, httpx.Client(base_url=url, timeout=120) as client:
        painted(client, 0)  # loads the model
        through = statistics.median(painted(client, seed) for seed in range(1, chosen.jobs + 1))
        done, seconds = held(url, chosen.jobs)
        rate, failed = polled(url, chosen.pollers, chosen.seconds)
    figures = {
        "bare pipeline, ms (median)": round(alone * 1000, 1),
        "through the server, ms (median)": round(through * 1000, 1),
        "added by the server, ms": round((through - alone) * 1000, 1),
        f"of {chosen.jobs} jobs held at once, done": done,
        "seconds for them": round(seconds, 2),
        f"requests/s of {chosen.pollers} pollers": round(rate, 1),
        "failed polls": failed,
    }
    for name, value in figures.items():
        print(f"{name:40} {value}")  # noqa: T201
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
