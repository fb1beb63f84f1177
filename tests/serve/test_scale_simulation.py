"""The simulation of docs/scale.md against closed forms, and its run of real workers against the simulation."""

from __future__ import annotations

import heapq
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("scale_simulation", SCRIPT)
    assert spec is not None, "the script is there"
    assert spec.loader is not None, "the script is Python"
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_simulation"] = module  # Its dataclasses look themselves up there.
    spec.loader.exec_module(module)
    return module


def test_without_a_lock_each_job_waits_as_in_a_queue_of_many_servers(simulation: Any) -> None:
    """Kiefer and Wolfowitz (1955): a job starts when it is there and the first of the servers is free."""
    servers, count = 4, 2000
    draw = random.Random(2)
    lengths = [draw.expovariate(1.0) for _ in range(count)]
    arrivals = simulation.poisson(3.0, count, 1)
    free, expected = [0.0] * servers, []
    for arrival, length in zip(arrivals, lengths, strict=True):
        start = max(arrival, heapq.heappop(free))
        expected.append(start - arrival)
        heapq.heappush(free, start + length)
    made = simulation.simulate(arrivals, lengths, servers, simulation.Constants(claim=0.0, beside=0.0, poll=0.0))
    assert made.waits == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 1.0, "some of them wait"


def test_jobs_of_one_length_come_in_rounds_and_the_lock_bounds_the_rate(simulation: Any) -> None:
    nothing = simulation.Constants(claim=0.0, beside=0.0, poll=0.0)
    assert simulation.simulate([0.0] * 9, [2.0] * 9, 4, nothing).seconds == pytest.approx(6.0)
    slow = simulation.Constants(claim=0.1, beside=0.0, poll=0.0)
    made = simulation.simulate([0.0] * 200, [0.0] * 200, 50, slow)
    assert made.seconds == pytest.approx(20.0)
    assert made.lock == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_real_workers_take_as_long_as_it_says() -> None:
    """Needs both cores for itself: work of others lengthens what a job costs beside its painting."""
    done = subprocess.run([sys.executable, str(SCRIPT), "check", "--jobs", "16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["simulated / measured"] == pytest.approx(1.0, abs=0.1)
