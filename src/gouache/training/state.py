"""The whole state of a run in one file: weights, averages, optimizer, position. Written atomically, the last K kept.

There is no state of the data or of random generators to save: both are pure functions of the images seen.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.errors import CheckpointError, InvalidInput, TrainingError
from gouache.training.ema import PowerEma, Weights
from gouache.training.loop_config import StageConfig
from gouache.training.sharding import gathered, placed
from gouache.training.stage import Stage

NUMBERS = "optimizer_group."
"""What the names of an optimizer's own numbers begin with; a group's number and the number's name follow."""
SCALER, FOUND = "scaler.", ("scale", "_growth_tracker")
"""What the names of a gradient scaler's numbers begin with, and what it finds during a run, by torch's names."""
SET_BY_CONFIG = ("lr", "weight_decay", "eps")
"""Numbers of a group that the config decides, which may change between two sessions."""


@dataclass
class Position:
    """Position of a run.

    Attributes:
        images_seen: images trained on.
        steps: optimizer steps taken.
        seconds: time spent training, over all sessions of the run.
        best: lowest validation score so far, and when.
        bad_validations: validations since then.
        next_validation: images at which to validate next.
    """

    images_seen: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    best_images: int = 0
    bad_validations: int = 0
    next_validation: int = 0
    losses: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainState:
    """Everything that changes during a run."""

    stage: Stage[Any]
    optimizer: torch.optim.Optimizer
    ema: PowerEma
    position: Position
    scaler: torch.amp.GradScaler | None = None
    """What keeps gradients in fp16 from vanishing; its scale is found during the run."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by a name that says what it is."""
        named = {f"network.{name}": value for name, value in self.stage.saved().items()}
        for length, average in self.ema.averages.items():
            named |= {f"ema.{length}.{name}": value for name, value in average.items()}
        for name, slots in self._optimizer_slots().items():
            # bitsandbytes counts its steps in plain integers.
            named |= {f"optimizer.{name}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        for name, number in self._optimizer_numbers().items():
            named[name] = torch.tensor(number, dtype=torch.float64)
        if self.scaler is not None:
            found = self.scaler.state_dict()
            named |= {f"{SCALER}{key}": torch.tensor(float(found[key]), dtype=torch.float64) for key in FOUND}
        return named

    def load(self, tensors: dict[str, Tensor], where: str) -> None:
        """Restore what `tensors` returned; the network must already have its shape.

        Raises:
            CheckpointError: tensors are missing or left over.
        """
        # The optimizer makes its slots at its first step, so a new one has none to compare the checkpoint's with.
        own = self.tensors()
        numbers = {name for name in tensors if name.startswith(NUMBERS)}
        scaler = {name for name in tensors if name.startswith(SCALER)}
        optimizer = {name for name in tensors if name.startswith("optimizer.")}
        wanted = {name for name in own if not name.startswith(("optimizer.", NUMBERS, SCALER))}
        if wanted != (whole := tensors.keys() - optimizer - numbers - scaler):
            odd = sorted(wanted ^ whole)
            raise CheckpointError(
                where,
                given=f"{len(odd)} tensors that differ, the first {odd[0]}",
                expected="the state of this config",
                cure="Resume with the config that the run was started with.",
            )
        with torch.no_grad():
            for name in wanted:
                own[name].copy_(placed(tensors[name], own[name]))
        self._load_optimizer({name: tensors[name] for name in optimizer})
        self._load_numbers({name: float(tensors[name]) for name in numbers})
        if self.scaler is not None and scaler:
            found = {key: float(tensors[f"{SCALER}{key}"]) for key in FOUND}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **found, FOUND[1]: int(found[FOUND[1]])})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.stage.named_parameters() if p.requires_grad}

    def _optimizer_slots(self) -> dict[str, dict[str, Tensor | int]]:
        state = self.optimizer.state
        return {name: dict(state[p]) for name, p in self._parameters().items() if p in state}

    def _optimizer_numbers(self) -> dict[str, float]:
        """What an optimizer keeps of a whole group and changes itself: Prodigy's d, the weights of Schedule-Free."""
        return {
            f"{NUMBERS}{index}.{key}": value
            for index, group in enumerate(self.optimizer.param_groups)
            for key, value in group.items()
            if type(value) in (int, float) and key not in SET_BY_CONFIG
        }

    def _load_numbers(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            index, _, key = name.removeprefix(NUMBERS).partition(".")
            group = self.optimizer.param_groups[int(index)]
            group[key] = int(value) if type(group.get(key)) is int else value

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = self._parameters()
        for key, value in tensors.items():
            name, _, slot = key.removeprefix("optimizer.").rpartition(".")
            parameter = parameters[name]
            if value.shape == parameter.shape:
                # With the parameter's strides: the fused optimizer walks all of them in the order of memory.
                empty = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                value = empty.copy_(placed(value, parameter))
            own: Tensor | int = value.to(parameter.device)
            if slot == "step":
                own = value.clone() if value.is_floating_point() else int(value)
            self.optimizer.state[parameter][slot] = own


def checkpoint_path(run: Path, images_seen: int) -> Path:
    """File of the checkpoint at `images_seen`."""
    return run / "checkpoints" / f"{images_seen:012d}.safetensors"


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("*.safetensors"))


@contextmanager
def full_disk_reported(run: Path) -> Iterator[None]:
    """Report a full disk, whatever was being written.

    Raises:
        TrainingError: it is; the checkpoints before are whole.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = checkpoints(run)
        raise TrainingError(
            str(error.filename or run),
            given="a full disk",
            expected="room to write",
            cure=f"Free some space and resume; the last whole checkpoint is {kept[-1].name if kept else 'none'}.",
        ) from error


def tracked_average(run: Path, length: float) -> Weights:
    """The averaged weights of one relative width, from the last checkpoint of a stage: the choice after training.

    Raises:
        TrainingError: the stage has no checkpoint.
        InvalidInput: the width was not tracked.
    """
    saved = checkpoints(run)
    if not saved:
        raise TrainingError(
            str(run),
            given="no checkpoint",
            expected="a stage that was trained",
            cure="Train it, or leave out the width.",
        )
    tensors = load_tensors(saved[-1])
    # The width is a number with a point of its own: "ema.0.05.conv_in.weight".
    prefix = f"ema.{float(length)}."
    if average := {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}:
        return average
    table = json.loads(read_header(saved[-1]).metadata["config"])
    if table["optimizer"].get("name") == "schedule_free":
        raise InvalidInput("ema", given=length, expected="no width: schedule_free keeps one average, its own")
    widths = ", ".join(map(str, table["ema"]["lengths"]))
    raise InvalidInput("ema", given=length, expected=f"a width that was tracked: {widths}")


def save_state(run: Path, config: StageConfig, state: TrainState, *, write: bool = True) -> Path:
    """Write a checkpoint and delete the oldest ones over `config.loop.keep`.

    Args:
        run: folder of the run.
        config: kept in the checkpoint.
        state: what is written. Every process gives its own, since sharded tensors are gathered first.
        write: whether this is the process that writes.

    Raises:
        TrainingError: the disk is full; the checkpoints before this one are whole.
    """
    path = checkpoint_path(run, state.position.images_seen)
    # All processes take part in gathering, also those that write nothing: a missing one would block the others.
    tensors = gathered(state.tensors(), keep=write)
    if not write:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(".*.part"):
        part.unlink()  # left by a process that was killed while it wrote
    metadata = {"stage": state.stage.name, "config": config.to_json(), "position": json.dumps(asdict(state.position))}
    with full_disk_reported(run):
        save_tensors(path, tensors, metadata)
    # Deleted only once the new one is whole, so that there is always one to resume from.
    for old in checkpoints(run)[: -config.loop.keep]:
        old.unlink()
    return path


def load_state(path: Path, config: StageConfig, state: TrainState) -> None:
    """Restore a checkpoint into `state`.

    Raises:
        CheckpointError: it belongs to another stage or to a network of another shape.
    """
    header, stage = read_header(path), state.stage.name
    if header.metadata.get("stage") != stage:
        raise CheckpointError(
            str(path),
            given=f"stage {header.metadata.get('stage')!r}",
            expected=f"stage {stage!r}",
            cure="Choose another --out folder, or the stage that this run trains.",
        )
    old = type(config).from_json(_renamed(header.metadata["config"]), where=str(path))
    # How long and how fast to train may change, and what is shown of it; what is trained, and on which draws, may not.
    fixed = [key for key in type(config).model_fields if key not in ("loop", "optimizer", "prompts")]
    changed = [key for key in fixed if getattr(old, key) != getattr(config, key)]
    changed += ["seed"] if old.loop.seed != config.loop.seed else []
    # Its moments are no other optimizer's.
    changed += ["optimizer.name"] if old.optimizer.name != config.optimizer.name else []
    if changed:
        raise CheckpointError(
            str(path),
            given=f"another {', '.join(changed)} in [{stage}]",
            expected="the config it was started with",
            cure="Resume with that config, or train into a new folder.",
        )
    state.load(load_tensors(path), str(path))
    state.position = Position(**json.loads(header.metadata["position"]))


def _renamed(config: str) -> str:
    """The config of a checkpoint that was written before the optimizer had a name, as it reads now."""
    values = json.loads(config)
    optimizer = values.get("optimizer", {})
    if "eight_bit" in optimizer:
        optimizer["name"] = "adamw8bit" if optimizer.pop("eight_bit") else "adamw"
    return json.dumps(values)
