"""One session of training, from files to files: what `gouache train` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gouache.errors import unknown_name
from gouache.training.assemble import Preparing, Ready, assemble, stage_run
from gouache.training.config import STAGES, StageName, read_config
from gouache.training.loop import Progress, train


def train_stage(
    stage: str,
    config: Path,
    data: Path,
    run: Path,
    *,
    minutes: float | None = None,
    threads: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Preparing | Progress]:
    """Train `stage` as the TOML file `config` says on the data set `data` into `run`/`stage`; go on if it is there.

    Raises:
        UnknownName, ConfigError, DataError, TrainingError, CheckpointError: as the parts raise them; nothing is lost.
    """
    if threads:
        torch.set_num_threads(threads)
    settings = read_config(config, stage)
    for event in assemble(_checked(stage), settings, data, run):
        if isinstance(event, Preparing):
            yield event
        else:
            yield from _train(event, stage_run(run, stage), minutes, stop)


def _train(ready: Ready, run: Path, minutes: float | None, stop: Callable[[], bool]) -> Iterator[Progress]:
    yield from train(ready.stage, ready.config, run, minutes=minutes, stop=stop)


def _checked(stage: str) -> StageName:
    for name in STAGES:
        if name == stage:
            return name
    raise unknown_name("stage", stage, STAGES)
