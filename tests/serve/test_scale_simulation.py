"""The simulation of docs/scale.md against closed forms, and its run of real workers against the simulation."""

from __future__ import annotations

import importlib.util
import json
import math
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


def erlang_c(servers: int, load: float) -> float:
    """Probability that a job waits in M/M/c (Erlang 1917; Kleinrock, Queueing Systems 1, 1975, eq. 3.40)."""
    busy = load**servers / math.factorial(servers) * servers / (servers - load)
    return busy / (sum(load**k / math.factorial(k) for k in range(servers)) + busy)


def test_without_a_lock_it_is_the_queue_of_erlang(simulation: Any) -> None:
    servers, rate, mean, count = 4, 3.0, 1.0, 30_000
    draw = random.Random(2)
    lengths = [draw.expovariate(1 / mean) for _ in range(count)]
    nothing = simulation.Constants(claim=0.0, beside=0.0, poll=0.0)
    made = simulation.simulate(simulation.poisson(rate, count, 1), lengths, servers, nothing)
    expected = erlang_c(servers, rate * mean) * mean / (servers - rate * mean)
    assert made.wait == pytest.approx(expected, rel=0.1)


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
