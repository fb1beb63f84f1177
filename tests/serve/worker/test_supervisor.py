"""Supervision of real processes that speak as workers do: watched, ended and replaced, store or no store."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.serve.served import Lock

from gouache.pipeline.request import Request
from gouache.serve.studio import Studio
from gouache.serve.worker import supervisor as watching
from gouache.serve.worker.supervisor import Supervisor, free_dead

SPEAKER = """
import os, select, socket, sys
sys.stdin.readline()
print(f"ready {socket.gethostname()}:{os.getpid()}:%x" % __import__("time").time_ns(), flush=True)
print(sys.argv[1], flush=True)
while not select.select([0], [], [], 0.1)[0] or os.read(0, 99):
    print("beat", flush=True)
"""
COMMAND = (sys.executable, "-S", "-E", "-c", SPEAKER)
Watch = Callable[..., Supervisor]


@pytest.fixture
def watch(studio: Studio) -> Iterator[Watch]:
    """Starts a supervisor of one worker; it is stopped in the end."""
    started: list[Supervisor] = []

    def start(command: Sequence[str] = (*COMMAND, "loaded")) -> Supervisor:
        settings = studio.settings.model_copy(update={"workers": 1, "lease": 0.5})
        started.append(Supervisor(settings, studio.leases, lambda _: None, command))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def wait_for(true: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.01)


def test_a_worker_that_hangs_is_seen_ended_and_replaced(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.1), ("QUIET_SECONDS", 0.5), ("HANG_SECONDS", 1.0)):
        monkeypatch.setattr(watching, name, seconds)
    supervisor = watch()
    wait_for(lambda: supervisor.readiness() == "ready")
    (hung,) = supervisor.processes()
    os.kill(hung, signal.SIGSTOP)
    wait_for(lambda: supervisor.readiness() == "the worker does not answer")
    wait_for(lambda: supervisor.processes() not in ([], [hung]) and supervisor.readiness() == "ready")
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_a_worker_dies_while_the_store_is_locked(watch: Watch, studio: Studio, tmp_path: Path) -> None:
    """Another is started all the same, and the dead one's job is free as soon as the lock is."""
    job, _ = studio.submit(Request(prompt="x", seed=1), owner="ada", source="v1")
    supervisor = watch()
    wait_for(lambda: supervisor.readiness() == "ready")
    (slot,) = supervisor._slots
    assert slot.name is not None
    studio.leases.claim(slot.name, 1000)
    (first,) = supervisor.processes()
    with Lock(tmp_path / "studio.sqlite3"):
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supervisor.processes() not in ([], [first]))
        assert studio.jobs.get(job.id).state == "running"
        assert supervisor.is_sound()
    wait_for(lambda: studio.jobs.get(job.id).state == "queued")


def test_a_worker_that_cant_be_started_is_tried_again(watch: Watch, tmp_path: Path) -> None:
    late = tmp_path / "late"
    supervisor = watch([str(late)])
    time.sleep(0.3)
    assert supervisor.is_sound()
    assert supervisor.readiness() == "no worker"
    (tmp_path / "new").write_text(f"#!/bin/sh\nexec {sys.executable} -S -E -c '{SPEAKER}' loaded\n")
    (tmp_path / "new").chmod(0o700)
    (tmp_path / "new").rename(late)
    wait_for(lambda: supervisor.readiness() == "ready")


@pytest.mark.parametrize(
    ("told", "status"), [("job", "the worker starts"), ("unusable {}", "the default model can't be used")]
)
def test_ready_means_that_the_worker_has_its_model(watch: Watch, told: str, status: str) -> None:
    supervisor = watch((*COMMAND, told))
    wait_for(lambda: supervisor.readiness() == status)
    time.sleep(0.3)
    assert supervisor.readiness() == status


def test_a_dead_workers_number_may_be_another_processs_by_now(studio: Studio) -> None:
    """In a container every start gives the same numbers."""
    host = os.uname().nodename
    names = {f"{host}:{os.getpid()}:{(time.time_ns() - ago * 10**9):x}": ago for ago in (0, 10**6)}
    for name in names:
        studio.submit(Request(prompt=name, seed=1), owner="ada", source="v1")
        studio.leases.claim(name, 1000)
    assert free_dead(studio.leases) == 1
    assert [names[name] for name in studio.leases.workers()] == [0]
