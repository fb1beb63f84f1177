"""One session of training, from files to files: what `gouache train` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gouache.training.build import assemble, assemble_from_packed
from gouache.training.config import TrainConfig, read_config, stage_config
from gouache.training.inputs import stage_run
from gouache.training.loop import TrainingProgress, make_accelerator, train
from gouache.training.stage import Preparing, Ready
from gouache.training.state import full_disk_reported


def train_stage(
    stage: str,
    config: Path,
    data: Path,
    run: Path,
    *,
    minutes: float | None = None,
    threads: int = 0,
    from_packed: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Preparing | TrainingProgress]:
    """Train `stage` as the TOML file `config` says on the data set `data` into `run`/`stage`; resume an existing run.

    With `from_packed`, a model that `gouache pack` wrote, results that the run lacks and the stage's first weights come
    from that model; a run that has a checkpoint of the stage resumes from the checkpoint.

    `stop` is asked while data are encoded, too; what was encoded whole stays.

    Raises:
        UnknownName, ConfigError, DataError, TrainingError, CheckpointError: as the parts raise them; nothing is lost.
    """
    if threads:
        torch.set_num_threads(threads)
    settings = read_config(config, stage)
    accelerator = make_accelerator(stage_config(settings, stage))
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    ready = None
    with full_disk_reported(stage_run(run, stage)):
        for event in _events(stage, settings, data, run, from_packed):
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


def _events(
    name: str, settings: TrainConfig, data: Path, run: Path, from_packed: Path | None
) -> Iterator[Preparing | Ready]:
    if from_packed is None:
        return assemble(name, settings, data, run)
    return assemble_from_packed(name, settings, data, run, from_packed)
