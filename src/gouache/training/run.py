"""One session of training, from files to files: what `gouache train` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gouache.errors import unknown_name
from gouache.training.build import Preparing, Ready, assemble, stage_config, stage_run
from gouache.training.config import STAGES, StageName, read_config
from gouache.training.loop import Progress, make_accelerator, train
from gouache.training.state import full_disk_reported


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

    `stop` is asked while data are encoded, too; what was encoded whole stays.

    Raises:
        UnknownName, ConfigError, DataError, TrainingError, CheckpointError: as the parts raise them; nothing is lost.
    """
    if threads:
        torch.set_num_threads(threads)
    name = _checked(stage)
    settings = read_config(config, stage)
    accelerator = make_accelerator(stage_config(settings, name))
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    ready = None
    with full_disk_reported(stage_run(run, stage)):
        for event in assemble(name, settings, data, run):
            if isinstance(event, Ready):
                ready = event
                continue
            if accelerator.is_main_process:
                yield event
            if stop():
                break  # whole shards stay
    if accelerator.is_main_process:
        # What the main process encoded, the others only read.
        accelerator.wait_for_everyone()
    if ready is not None:
        folder = stage_run(run, stage)
        yield from train(ready.stage, ready.config, folder, minutes=minutes, stop=stop, accelerator=accelerator)


def _checked(stage: str) -> StageName:
    for name in STAGES:
        if name == stage:
            return name
    raise unknown_name("stage", stage, STAGES)
