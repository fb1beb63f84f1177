"""The prompts of an evaluation painted on a cluster: the batches of `training/evaluation/painting.py`, anywhere."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gouache.errors import ClusterError
from gouache.pipeline.output.recipe import model_ref, package_versions
from gouache.pipeline.pipeline import Pipeline
from gouache.scale.cluster import Cluster, connected
from gouache.scale.painting import checked_pipeline
from gouache.scale.spread import Failed, Room, spread
from gouache.training.evaluation.figures import Evaluation
from gouache.training.evaluation.measure import evaluate_files
from gouache.training.evaluation.painting import BATCH, Paint, PaintedPictures, Setting, painter
from gouache.training.evaluation.suite import EvaluationSettings, Painting
from gouache.training.stage import batched


@dataclass(frozen=True, slots=True)
class Spreading:
    """How a cluster paints an evaluation's prompts.

    Attributes:
        address: of the cluster, as `connected` has it.
        actors: at most so many; None is as many as there is room for.
        device: where the model works there; None chooses.
        bf16: as `painter`.
    """

    address: str
    actors: int | None = None
    device: str | None = None
    bf16: bool = False


def evaluate_on_cluster(
    model: str,
    data: Path,
    judge: Path,
    settings: EvaluationSettings,
    spreading: Spreading,
    *,
    threads: int = 0,
    runs: int = 3,
) -> Iterator[str | Painting | Evaluation]:
    """As `evaluate_files`, the prompts painted on a cluster; all else, times too, is measured on this machine.

    Raises:
        ClusterError: the cluster can't be reached or is lost.
        ModelNotFound, CheckpointError, DataError: as `evaluate_files`.
    """
    device, bf16 = spreading.device, spreading.bf16
    with connected(spreading.address) as cluster:
        paint_by = painter_on(cluster, model, spreading)
        yield from evaluate_files(
            model, data, judge, settings, device=device, threads=threads, runs=runs, bf16=bf16, paint_by=paint_by
        )


def painter_on(cluster: Cluster, model: str, spreading: Spreading) -> Callable[[Pipeline], Paint]:
    """Makes of a pipeline what `painter` makes of it, except that the cluster paints: the same batches, the same bits.

    Args:
        cluster: connected.
        model: path or name, on every machine.
        spreading: its actors.
    """

    def of(pipeline: Pipeline) -> Paint:
        arguments = (model, spreading.device, model_ref(pipeline.bundle).sha256, package_versions(), spreading.bf16)
        room = Room(torch.get_num_threads(), int(spreading.device != "cpu" and cluster.has_gpus()), spreading.actors)

        def paint(prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> PaintedPictures:
            tasks = {
                k: json.dumps([[prompts[i] for i in part], [int(seeds[i]) for i in part], asdict(setting)])
                for k, part in enumerate(batched(len(prompts), BATCH))
            }
            found: dict[int, PaintedPictures] = {}
            for event in spread(cluster, tasks, EvaluationWork, arguments, room, _check):
                if isinstance(event, Failed):
                    raise event.error
                found[event.key] = _pictures(event.data)
            return np.concatenate([found[k] for k in tasks])

        return paint

    return of


class EvaluationWork:
    """Paints batches of prompts in an actor of a cluster.

    Args:
        model, device, digest, versions: as `checked_pipeline`.
        bf16: as `painter`.
    """

    def __init__(
        self, model: str, device: str | None, digest: str | None, versions: Mapping[str, str], bf16: bool
    ) -> None:
        self._paint = painter(checked_pipeline(model, device, None, digest, versions), bf16=bf16)

    def __call__(self, task: str) -> Iterator[tuple[int, bytes]]:
        """The pictures of one batch, as a numpy file."""
        prompts, seeds, setting = json.loads(task)
        buffer = io.BytesIO()
        np.save(buffer, self._paint(prompts, seeds, Setting(**setting)), allow_pickle=False)
        yield 0, buffer.getvalue()


def _pictures(data: bytes) -> PaintedPictures:
    pictures: PaintedPictures = np.load(io.BytesIO(data), allow_pickle=False)
    return pictures


def _check(key: int, part: int, data: bytes) -> None:
    try:
        right = _pictures(data).dtype == np.uint8
    except (ValueError, EOFError):
        right = False
    if not right:
        raise ClusterError("a worker", given=f"no pictures for batch {key}, part {part}", expected="painted pictures")
