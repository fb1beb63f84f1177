"""How many workers one queue feeds: a simulation of it, the constants it needs, and a run that it has to reproduce.

    python benchmarks/scale_simulation.py --store postgresql+psycopg://user@host/empty measure
    python benchmarks/scale_simulation.py --store postgresql+psycopg://user@host/empty check
    python benchmarks/scale_simulation.py plan                  # the tables of docs/scale.md, from the constants below

`measure` times claims, jobs and idle looks on the store and weighs its rows. `check` paints jobs of known length with
one and with two worker processes, takes the time that a job costs beside its painting from the first run, and compares
the second with the simulation. Without --store it is SQLite in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import simpy
from PIL import Image
from sqlalchemy import text

from gouache.pipeline.generate.generation import Event, Painted, Progress
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe
from gouache.pipeline.request import Request
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.queue import JobQueue, fingerprint_of
from gouache.serve.settings import Limits, Settings
from gouache.serve.store.database import Database
from gouache.serve.worker.process import POLL_SECONDS, main

STEP_SECONDS = 0.05
"""Length of one step of the jobs of known length."""
DAY = 86_400.0


@dataclass(frozen=True)
class Constants:
    """What the simulation knows of a store. The defaults were measured as docs/scale.md says."""

    claim: float = 0.0046
    """Seconds for which one claim holds the lock of claims."""
    beside: float = 0.06
    """Further seconds that a worker is busy with a job beside painting: its picture, its rows, its reports."""
    poll: float = POLL_SECONDS
    """Seconds between two looks of an idle worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs of one simulation.

    Attributes:
        seconds: from the first arrival to the last picture.
        waits: seconds that each job waited until a worker took it.
        lock: share of the time in which the lock of claims was held.
    """

    seconds: float
    waits: tuple[float, ...]
    lock: float

    @property
    def wait(self) -> float:
        """Mean wait in seconds."""
        return statistics.fmean(self.waits)


def simulate(
    arrivals: Sequence[float], lengths: Sequence[float], workers: int, constants: Constants, seed: int = 0
) -> Outcome:
    """Workers take jobs from one queue, in the order of their arrival, one claim at a time.

    Args:
        arrivals: seconds at which the jobs come, ascending.
        lengths: seconds of painting of each.
        workers: how many paint.
        constants: of the store.
        seed: of the moments at which idle workers look.
    """
    world = simpy.Environment()
    waiting: simpy.Store = simpy.Store(world)
    lock = simpy.Resource(world, capacity=1)
    draw = random.Random(seed)
    waits, left, held = [0.0] * len(arrivals), [len(arrivals)], [0.0]
    over = world.event()

    def arrive() -> Generator[Any, Any, None]:
        for number, moment in enumerate(arrivals):
            yield world.timeout(moment - world.now)
            yield waiting.put(number)

    def work() -> Generator[Any, Any, None]:
        while True:
            was_idle = not waiting.items
            number = yield waiting.get()
            if was_idle:  # It sleeps, and looks a little later; a server wakes only the workers beside it.
                yield world.timeout(draw.uniform(0.0, constants.poll))
            with lock.request() as mine:
                yield mine
                yield world.timeout(constants.claim)
                held[0] += constants.claim
            waits[number] = world.now - arrivals[number]
            yield world.timeout(lengths[number] + constants.beside)
            left[0] -= 1
            if not left[0]:
                over.succeed()

    world.process(arrive())
    for _ in range(workers):
        world.process(work())
    world.run(until=over)
    return Outcome(world.now - arrivals[0], tuple(waits), held[0] / (world.now or 1.0))


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Moments at which `count` jobs come, `rate` a second on average."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(now)
    return found


class KnownPainter:
    """Paints one grey picture in a time that the request says: steps times `STEP_SECONDS`."""

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        """As `Pipeline.run`."""
        del attachments
        steps = request.num_inference_steps or 1
        image = Image.new("RGB", (request.width or 64, request.height or 64), "grey")
        for step in range(steps):
            time.sleep(STEP_SECONDS)
            yield Progress(0, 1, step + 1, steps, 1.0, lambda: image)
        machine = Machine(device="cpu", dtype="float32", processor="none", threads=1)
        model = ModelRef(name="grey", family="sd1")
        yield Painted(
            0, image, Recipe(request=request, model=model, machine=machine, versions={}), steps * STEP_SECONDS
        )


def filled(url: str, lengths: Sequence[int]) -> list[str]:
    """Put jobs of so many steps into the queue; gives their ids."""
    database = Database(url)
    queue = JobQueue(database, Limits(queue=10**6, queue_per_user=10**6), lambda _: None)
    ids = []
    for number, steps in enumerate(lengths):
        request = Request(prompt=f"job {number}", seed=number, num_inference_steps=steps, width=64, height=64)
        mark = fingerprint_of(request.to_json())
        ids.append(queue.submit(request, owner=f"user{number % 7}", source="v1", fingerprint=mark)[0].id)
    database.close()
    return ids


def claim_all(url: str) -> int:
    """Take jobs until there are none, and end each at once; gives how many."""
    database, taken = Database(url), 0
    leases = Leases(database)
    while (job := leases.claim(f"bench:{os.getpid()}", 60.0)) is not None:
        taken += 1
        with database.write() as connection:
            leases.finish(connection, job)
    database.close()
    return taken


def measure(url: str, jobs: int) -> dict[str, float]:
    """Claims a second by processes that claim, seconds of an idle look, and bytes of a job's rows."""
    found: dict[str, float] = {}
    for processes in (1, 2, 4, 8):
        filled(url, [1] * jobs)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(abs, range(processes)))  # They are there, and have read their libraries.
            begun = time.perf_counter()
            taken = sum(pool.map(claim_all, [url] * processes))
        found[f"jobs a second, {processes} claim"] = taken / (time.perf_counter() - begun)
    database = Database(url)
    leases = Leases(database)
    begun = time.perf_counter()
    for _ in range(500):
        leases.claim("bench", 60.0)
    found["seconds of an idle look"] = (time.perf_counter() - begun) / 500
    for waiting in (100, 1000, 4000):
        filled(url, [1] * waiting)
        begun = time.perf_counter()
        for _ in range(20):
            leases.claim("bench", 60.0)
        found[f"seconds of a claim, {waiting} wait"] = (time.perf_counter() - begun) / 20
        claim_all(url)
    if not database.sqlite:
        with database.read() as connection:
            size = "SELECT sum(pg_total_relation_size(c)) FROM unnest(ARRAY['jobs','events']::regclass[]) c"
            rows = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()
            found["bytes of a job's rows"] = float(connection.execute(text(size)).scalar_one()) / rows
    database.close()
    return found


def run_of(url: str, data: Path, lengths: Sequence[int], workers: int) -> float:
    """Paint jobs of known length with real worker processes; gives seconds from the first claim to the last picture."""
    settings = Settings(data=data, store=url, threads=1)
    command = [sys.executable, str(Path(__file__).resolve()), "worker"]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)]
    try:
        for process in started:
            assert process.stdin is not None, "a pipe was asked for"
            assert process.stdout is not None, "a pipe was asked for"
            process.stdin.write(settings.to_json().encode() + b"\n")
            process.stdin.flush()
            while not process.stdout.readline().startswith(b"loaded"):
                pass  # It reads its libraries.
        ids = filled(url, lengths)
        database = Database(url)
        queue = JobQueue(database, Limits(), lambda _: None)
        while any(queue.get(job).state in ("queued", "running") for job in ids[-3 * workers :]) or any(
            queue.get(job).state in ("queued", "running") for job in ids
        ):
            time.sleep(0.2)
        jobs = [queue.get(job) for job in ids]
        database.close()
    finally:
        for process in started:
            assert process.stdin is not None, "a pipe was asked for"
            assert process.stdout is not None, "a pipe was asked for"
            process.stdin.close()
            process.terminate()
            process.wait(60)
            process.stdout.close()
    odd = [job for job in jobs if job.state != "done"]
    if odd:
        raise RuntimeError(f"jobs that are not done: {[job.error for job in odd][:3]}")
    return max(job.finished or 0.0 for job in jobs) - min(job.started or math.inf for job in jobs)


def check(url: str, data: Path, jobs: int, seed: int = 1) -> dict[str, float]:
    """Run jobs of known length with one worker and with two, and simulate the second run."""
    draw = random.Random(seed)
    lengths = [draw.randint(10, 60) for _ in range(jobs)]
    seconds = [STEP_SECONDS * steps for steps in lengths]
    alone = run_of(url, data, lengths, 1)
    claim = Constants().claim
    constants = replace(Constants(), beside=(alone - sum(seconds)) / jobs - claim)
    predicted = simulate([0.0] * jobs, seconds, 2, constants).seconds
    measured = run_of(url, data, lengths, 2)
    return {
        "one worker, seconds": alone,
        "beside painting, seconds a job": constants.beside,
        "two workers, seconds": measured,
        "two workers, simulated": predicted,
        "simulated / measured": predicted / measured,
    }


def plan(constants: Constants, seconds: float, jobs: int) -> list[dict[str, float]]:
    """Rates at which jobs come to 1,000 workers, and what that does."""
    found = []
    for million in (1, 5, 10, 15, 20):
        rate = million * 1e6 / DAY
        draw = random.Random(0)
        lengths = [seconds * draw.uniform(0.5, 1.5) for _ in range(jobs)]
        made = simulate(poisson(rate, jobs, 1), lengths, 1000, constants)
        late = sorted(made.waits[jobs // 2 :])
        found.append(
            {
                "million a day": million,
                "jobs a second": rate,
                "workers that paint": rate * (seconds + constants.beside),
                "lock of claims held": made.lock,
                "wait, median s": late[len(late) // 2],
                "wait, 99 % s": late[int(0.99 * len(late))],
            }
        )
    return found


def command_line() -> None:
    """Run one of the words above and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("what", choices=("measure", "check", "plan", "worker"))
    parser.add_argument("--store", help="URL of an empty store.")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="plan: seconds of a picture.")
    given = parser.parse_args()
    if given.what == "worker":
        main(lambda _entry, _device: KnownPainter())
        return
    with tempfile.TemporaryDirectory() as folder:
        url = given.store or f"sqlite:///{folder}/store.sqlite3"
        if given.what == "measure":
            told: object = measure(url, given.jobs or 400)
        elif given.what == "check":
            told = check(url, Path(folder), given.jobs or 30)
        else:
            told = plan(Constants(), given.seconds, given.jobs or 20_000)
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    command_line()
