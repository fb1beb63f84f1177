"""Workers of a studio as actors of Ray: the loop of `process.py`, on whichever machines of a cluster have room.

The queue stays the store's: Ray places actors and starts them again elsewhere when a machine is lost. What a lost one
painted goes back by its lease, like that of any other worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from gouache.environment import Variable
from gouache.errors import ClusterError, GouacheError
from gouache.scale.cluster import connected, told
from gouache.serve.logs import log_to_stderr
from gouache.serve.settings import Settings
from gouache.serve.store.database import Database
from gouache.serve.store.object_store import open_file_store
from gouache.serve.store.outages import outlast
from gouache.serve.worker.host import started, stop_at_signals
from gouache.serve.worker.loaded_models import OpenModel, open_pipeline
from gouache.serve.worker.process import Wakes, Worker, work_on

LOOK_SECONDS = 1.0
"""Time between two looks at the actors."""
LEAVE_SECONDS = 10.0
"""What is added to the grace time for leaving libraries and closing files."""


class RayWorker:
    """One worker, as an actor.

    Args:
        settings: of the studio, as JSON.
        open_model: loads models.
    """

    def __init__(self, settings: str, open_model: OpenModel) -> None:
        self.settings, self.open_model = Settings.from_json(settings, where="worker settings"), open_model
        self._wakes = Wakes()
        self._worker: Worker | None = None
        self._is_stopped = False

    def run(self) -> dict[str, str] | None:
        """Work until `stop` is called; gives the error, in parts, if it can't. Ray calls it again on a new machine."""
        log_to_stderr()
        if self.settings.safety_checker is not None:
            os.environ[Variable.SAFETY_CHECKER] = str(self.settings.safety_checker)
        try:
            # Nobody listens: servers look by themselves for what changed.
            self._worker = outlast(lambda: Worker(self.settings, self.open_model, _nobody), who="worker")
            if self._is_stopped:
                return None
            work_on(self._worker, self._wakes)
        except GouacheError as error:  # As it stands no other process could read it.
            return error.to_dict()
        return None

    def stop(self) -> None:
        """Take no further job; the running one has the grace time."""
        self._is_stopped = True
        if self._worker is not None:
            self._worker.stop(self.settings.grace)
        self._wakes.all()


def _nobody(what: str, detail: str = "", /) -> None:
    """Takes reports that nobody waits for."""


def run_on_ray(
    settings: Settings,
    address: str,
    gpus: float,
    announce: Callable[[str], object],
    open_model: OpenModel = open_pipeline,
) -> None:
    """Keep workers on a cluster until a signal asks for the end.

    Args:
        settings: of the studio; `workers` says how many, `threads` how many CPUs each takes.
        address: of the cluster, as `gouache.scale.cluster.connected`.
        gpus: GPUs that each takes.
        announce: told when they are asked for.
        open_model: loads models.

    Raises:
        ClusterError: the cluster can't be reached, or its head node is lost. No job is.
        StoreError, StoreAway: the store or the files can't be used.
        ModuleNotFoundError: Ray is not installed.
    """
    # What every worker would only write to the log of its machine, again and again.
    Database(settings.store_url).close()
    open_file_store(settings.data, settings.files)
    with connected(address) as cluster:
        import ray

        stop = stop_at_signals()  # After Ray has set handlers of its own, which would end this process at once.
        actors = _actors(settings, gpus, open_model)
        runs = [actor.run.remote() for actor in actors]
        announce(f"{started(settings)} on Ray")

        def looks() -> Iterator[None]:
            while not stop.is_set():
                for done in ray.wait(runs, timeout=LOOK_SECONDS)[0]:
                    _check_run(done)
                yield

        for _ in told(cluster, looks()):
            pass
        for actor in actors:
            actor.stop.remote()
        ray.wait(runs, num_returns=len(runs), timeout=settings.grace + LEAVE_SECONDS)


def _actors(settings: Settings, gpus: float, open_model: OpenModel) -> list[Any]:
    import ray

    # Two calls at once: `stop` must be heard while `run` runs. Both may be made again on another machine.
    plan = {"num_cpus": settings.threads or 1, "num_gpus": gpus, "max_concurrency": 2}
    kind = ray.remote(**plan, max_restarts=-1, max_task_retries=-1)(RayWorker)
    return [kind.remote(settings.to_json(), open_model) for _ in range(settings.workers)]


def _check_run(done: Any) -> None:
    """A worker that ends before it was told to has something to say.

    Raises:
        GouacheError: what it said.
    """
    import ray

    try:
        parts = ray.get(done)
    except ray.exceptions.RayError as error:
        raise ClusterError(
            "a worker on Ray",
            given=str(error).partition("\n")[0][:300],
            expected="one that can be started on a machine of the cluster",
            cure="Look into the logs of Ray; no job is lost.",
        ) from error
    if parts is not None:
        raise GouacheError.from_dict(parts)
    raise ClusterError("a worker on Ray", given="one that ended", expected="one that works until it is told to stop")
