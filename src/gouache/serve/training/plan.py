"""What a training run that was started from here does: a plan, the commands it stands for, and its state on disk.

A run's folder holds `plan.json` (never changed but for its minutes), `config.toml`, `state.json` and `output.log`,
which the run's own process writes, `pictures/` (the packed data set) and what `gouache train` leaves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gouache.config import Config
from gouache.training.tuning.planner import MOST_EXAMPLES, Chosen, Method, Tuning, loop_tables, parts_of, to_toml

PlanStage = Literal["lora", "denoiser", "decoder", "vae"]
STAGES: tuple[PlanStage, ...] = ("lora", "denoiser", "decoder", "vae")
PlanPart = Literal["lora", "prior", "denoiser", "vae"]
"""A stage of `gouache train` that a plan takes; each is a step of the same name."""
RunResult = Literal["", "done", "stopped", "failed"]
Minutes = Annotated[float, Field(gt=0, le=60 * 24 * 30)]
PLAN, STATE, OUTPUT, STOP, LOCK, CONFIG = "plan.json", "state.json", "output.log", "stop", "lock", "config.toml"
NEW_AUTOENCODER: dict[str, Any] = {
    "image_channels": 4,
    "latent_channels": 8,
    "channels": [64, 160],
    "layers_per_level": 1,
    "norm_groups": 16,
    "patch_size": 4,
}
SMALLEST_SIDE, LARGEST_SIDE = 32, 2048


class TrainingPlan(Config):
    """What to train."""

    name: str
    """Of the run, and of the model that it makes."""
    stage: PlanStage
    """lora: teach a model these pictures by a small file beside it. denoiser: by a model of its own. decoder: how it
    draws their details. vae: an autoencoder from nothing."""
    data: str
    """Name of a set of pictures."""
    pictures: int
    """How many it had at the start."""
    model: str = ""
    """Name of the model that is trained further; empty for an autoencoder from nothing."""
    start: Path | None = None
    """Where that model lies."""
    family: str = ""
    """Of that model, by name."""
    size: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=8)]
    """Side of the pictures in pixels."""
    minutes: Minutes
    """Training time, over all sessions."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1, le=1024)]
    flip: bool = False
    """Whether half of the pictures are mirrored."""
    drafts: bool = False
    """Whether the model begins with drafts of its own: then the network that draws them learns the pictures first."""
    created: float
    owner: str

    @property
    def parts(self) -> tuple[PlanPart, ...]:
        """What is trained, in order."""
        method = self.method
        return ("vae",) if method is None else parts_of(method, drafts=self.drafts)

    @property
    def part_minutes(self) -> float:
        """Training time of each part."""
        return self.minutes / len(self.parts)

    @property
    def method(self) -> Method | None:
        """What `gouache finetune` calls the same; None for what it doesn't do."""
        methods: dict[PlanStage, Method] = {"lora": "lora", "denoiser": "whole"}
        return methods.get(self.stage)

    @property
    def is_packed(self) -> bool:
        """Whether the result is a part of a model, which is made whole in the end."""
        return self.start is not None and self.stage != "lora"


class RunState(Config):
    """How far the run's process has come."""

    pid: int = 0
    """Of the process that runs the commands."""
    child: int = 0
    """Of the command that runs."""
    step: str = ""
    """Name of the command: data, a part of the plan, or pack."""
    finished: tuple[str, ...] = ()
    """Parts that have used up their time, each with it, as "prior 1.5"."""
    since: float = 0.0
    """When this session's training began; 0 before."""
    trained: float = 0.0
    """Seconds of training in the sessions before."""
    attempts: int = 0
    """Sessions that ended without a word since the last that ended well."""
    result: RunResult = ""
    ended: float = 0.0
    error: str = ""
    """The text of the error that ended it."""


def commands(plan: TrainingPlan, folder: Path, source: Path) -> dict[str, list[str]]:
    """The arguments of `gouache` for each step by its name, in order; what they leave lies in `folder`.

    Args:
        source: the folder of pictures.
    """
    config, pictures = str(folder / CONFIG), str(folder / "pictures")
    steps = {
        "data": ["data", "build", "pictures", pictures, "--from", str(source), "--size", str(plan.size)],
    }
    for part in plan.parts:
        where = ["--config", config, "--data", pictures, "--out", str(folder)]
        steps[part] = ["train", part, *where, "--minutes", f"{plan.part_minutes:g}"]
    if plan.is_packed:
        steps["pack"] = ["pack", str(folder), str(folder / "model"), "--config", config, "--name", plan.name]
    return steps


def toml_of(plan: TrainingPlan) -> str:
    """The training's config. Time ends it, not a number of images."""
    if plan.method is not None and plan.start is not None:
        return Tuning(
            method=plan.method,
            start=plan.start,
            family=plan.family,
            drafts=plan.drafts,
            size=plan.size,
            minutes=plan.minutes,
            chosen=Chosen(plan.learning_rate, plan.batch_size),
            flip=plan.flip,
        ).toml()
    tables: dict[str, dict[str, Any]] = {"data": {"size": plan.size, "examples": MOST_EXAMPLES}}
    if plan.stage == "vae":
        tables["vae"] = {"l2": 2.0, "kl": 2e-4}
        tables["vae.network"] = NEW_AUTOENCODER
    else:
        # What makes latents stays as it is, so that the model's other parts still fit to them.
        tables["vae"] = {"start": plan.start, "freeze": ["encoder"]}
    return to_toml(tables | loop_tables("vae", plan.minutes, plan.minutes, plan.learning_rate, plan.batch_size))


def read_state(folder: Path) -> RunState:
    """The state, or a fresh one if there is none yet."""
    try:
        return RunState.from_json((folder / STATE).read_text(encoding="utf-8"), where=str(folder / STATE))
    except FileNotFoundError:
        return RunState()


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
