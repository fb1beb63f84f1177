"""What a training run that was started from here does: a plan, the commands it stands for, and its state on disk.

A run's folder holds `plan.json` (never changed but for its minutes), `config.toml`, `state.json` and `output.log`,
which the run's own process writes, `pictures/` (the packed data set) and what `gouache train` leaves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gouache.config import Config

PlanStage = Literal["denoiser", "decoder", "vae"]
STAGES: tuple[PlanStage, ...] = ("denoiser", "decoder", "vae")
PlanPart = Literal["prior", "denoiser", "vae"]
"""A stage of `gouache train` that a plan takes; each is a step of the same name."""
RunResult = Literal["", "done", "stopped", "failed"]
Minutes = Annotated[float, Field(gt=0, le=60 * 24 * 30)]
PLAN, STATE, OUTPUT, STOP, LOCK, CONFIG = "plan.json", "state.json", "output.log", "stop", "lock", "config.toml"
SHEETS, SHORTEST_SHEET = 5, 1.0
"""Sample sheets of a part, and the fewest minutes between two: drawing one takes some seconds."""
MOST_EXAMPLES = 20_000
SMALL_SET = 40
"""Pictures below which none is held out; as `training/batches/sources.py` has it, without loading torch."""
PRIOR_RATE = 2.5
"""The learning rate of the network that draws drafts, as a multiple of the denoiser's; it was trained with twice it."""
SMALLEST_SIDE, LARGEST_SIDE = 32, 2048


class TrainingPlan(Config):
    """What to train."""

    name: str
    """Of the run, and of the model that it makes."""
    stage: PlanStage
    """denoiser: teach a model these pictures. decoder: how it draws their details. vae: an autoencoder from nothing."""
    data: str
    """Name of a set of pictures."""
    pictures: int
    """How many it had at the start."""
    model: str = ""
    """Name of the model that is trained further; empty for an autoencoder from nothing."""
    start: Path | None = None
    """Where that model lies."""
    size: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=8)]
    """Side of the pictures in pixels."""
    minutes: Minutes
    """Training time, over all sessions."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1, le=1024)]
    drafts: bool = False
    """Whether the model begins with drafts of its own: then the network that draws them learns the pictures first."""
    created: float
    owner: str

    @property
    def parts(self) -> tuple[PlanPart, ...]:
        """What is trained, in order."""
        return ("prior", "denoiser") if self.drafts else (self.table,)

    @property
    def part_minutes(self) -> float:
        """Training time of each part."""
        return self.minutes / len(self.parts)

    @property
    def table(self) -> Literal["denoiser", "vae"]:
        """The stage of `gouache train`, whose table and folder it uses."""
        return "denoiser" if self.stage == "denoiser" else "vae"


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
    if plan.start is not None:
        steps["pack"] = ["pack", str(folder), str(folder / "model"), "--config", config, "--name", plan.name]
    return steps


def toml_of(plan: TrainingPlan) -> str:
    """The training's config. Time ends it, not a number of images."""
    data = f"[data]\nsize = {plan.size}\nexamples = {MOST_EXAMPLES}\n\n"
    loop = _loop_of(plan, plan.table, plan.learning_rate)
    if plan.stage == "vae":
        network = (
            "image_channels = 4\nlatent_channels = 8\nchannels = [64, 160]\nlayers_per_level = 1\nnorm_groups = 16\n"
        )
        return f"{data}[vae]\nl2 = 2.0\nkl = 2e-4\n\n[vae.network]\n{network}patch_size = 4\n\n{loop}"
    # What makes latents stays as it is, so that the model's other parts still fit to them.
    held = 'freeze = ["encoder"]\n' if plan.stage == "decoder" else ""
    start = f"start = {json.dumps(str(plan.start))}\n"  # A JSON string is a TOML string.
    if plan.drafts:
        # Its pictures begin on the draft; what it does without one, no picture shows.
        data += f"[prior]\n{start}\n{_loop_of(plan, 'prior', PRIOR_RATE * plan.learning_rate)}\n"
        held = "draft_dropout = 0.1\n"
    return f"{data}[{plan.table}]\n{start}{held}\n{loop}"


def _loop_of(plan: TrainingPlan, part: PlanPart, rate: float) -> str:
    """The tables of a part that say how long and how fast."""
    return (
        f'[{part}.loop]\nbatch_size = {plan.batch_size}\nimages = 100_000_000\nprecision = "auto"\n'
        f"log_images = {plan.batch_size * max(1, round(plan.minutes / 10))}\nvalidate_images = 100_000_000\n"
        f"validate_minutes = {max(SHORTEST_SHEET, plan.part_minutes / SHEETS):g}\n"
        "checkpoint_minutes = 5.0\nkeep = 1\n\n"
        f"[{part}.optimizer]\nlearning_rate = {rate:g}\nwarmup_images = {5 * plan.batch_size}\ncooldown = 0.3\n"
    )


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
