"""Starts, watches, stops and continues training runs. Each is a process of its own that outlives this server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gouache.checkpoints.hub import shipped_model
from gouache.errors import Conflict, DataError, InvalidInput, ModelNotFound, NotFound
from gouache.serve.models.catalog import ModelCatalog, ModelEntry
from gouache.serve.training.plan import (
    CONFIG,
    OUTPUT,
    PLAN,
    STATE,
    STOP,
    PlanPart,
    PlanStage,
    RunState,
    TrainingPlan,
    commands,
    read_state,
    toml_of,
    write_text,
)
from gouache.serve.training.run_process import is_alive, lora_place
from gouache.serve.training.sets import TrainingSets, checked_name
from gouache.training.tuning.own_pictures import look_at
from gouache.training.tuning.planner import START_OF_NOTHING, Chosen, choose, traits_of

Phase = Literal["preparing", "training", "packing", "stopping", "interrupted", "done", "stopped", "failed"]
RUNNING: tuple[Phase, ...] = ("preparing", "training", "packing", "stopping")
_PHASES: dict[str, Phase] = {"": "preparing", "data": "preparing", "pack": "packing"}
MOST_ATTEMPTS = 3
MOST_FIGURES = 1000
FRESH = {"pid": 0, "child": 0, "step": "", "since": 0.0, "result": "", "ended": 0.0, "error": ""}
"""A state between two sessions: what was trained and tried stays."""
AUTOENCODERS: dict[PlanStage, Chosen] = {"decoder": Chosen(1e-4, 8), "vae": Chosen(8e-4, 8)}
"""Rates and sizes of what `gouache finetune` doesn't do."""
PROCESS = (sys.executable, "-m", "gouache.serve.training.run_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A run as it stands.

    Attributes:
        plan: what it does.
        phase: what it is doing.
        seconds: trained so far.
        part: which part of the plan is trained, or was last.
        images_seen: pictures that this part was trained on, as its log says.
        rate: pictures a second, as its log says; 0 before.
        doing: the last line that its command printed while it prepares.
        error: the text of the error that ended it.
    """

    plan: TrainingPlan
    phase: Phase
    seconds: float
    part: PlanPart
    images_seen: int
    rate: float
    doing: str
    error: str

    @property
    def fraction(self) -> float:
        """Of the training time that is over, 0..1."""
        return 1.0 if self.phase == "done" else min(1.0, self.seconds / (60 * self.plan.minutes))


class TrainingRuns:
    """The runs below one folder.

    Args:
        root: of the runs.
        sets: what they train on.
        models: where a finished model goes.
        catalog: models to start from.
        process: starts a run's process; folder, models and source follow.
    """

    def __init__(
        self, root: Path, sets: TrainingSets, models: Path, catalog: ModelCatalog, process: Sequence[str] = PROCESS
    ) -> None:
        self.root, self.sets, self.models, self.catalog, self.process = root, sets, models, catalog, process

    def start(self, plan: TrainingPlan) -> TrainingRun:
        """Start the run of a plan, as `plan` made it.

        Raises:
            Conflict: another run is under way.
        """
        self._refuse_a_second()
        folder = self.root / plan.name
        folder.mkdir(parents=True, mode=0o700)
        write_text(folder / CONFIG, toml_of(plan))
        write_text(folder / PLAN, plan.to_json())
        self._launch(plan)
        return self.get(plan.name)

    def plan(
        self,
        *,
        owner: str,
        name: str,
        stage: PlanStage,
        data: str,
        minutes: float,
        model: str | None = None,
        size: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
    ) -> TrainingPlan:
        """What a run would do; nothing is written.

        Args:
            name: of the run and of the model it makes; must be new.
            stage: what is trained.
            data: a set of pictures.
            minutes: training time; preparing comes on top.
            model: what denoiser or decoder starts from; None is the default one.
            size: side of the pictures; the model's own without it.
            learning_rate: as the planner chooses without it.
            batch_size: pictures a step; as the planner chooses without it.

        Raises:
            InvalidInput, ConfigError: a value that can't be used.
            NotFound, ModelNotFound: no such set or model.
            DataError: a set without captioned pictures.
            Conflict: the name is taken.
        """
        name = checked_name("name", name)
        source = self.sets.folder(data)
        counted = next(each for each in self.sets.listing() if each.name == source.name)
        if not counted.captioned:
            cure = "Put a .txt with the caption beside each picture, or a metadata.jsonl with file_name and text."
            given = f"{counted.pictures} pictures, no caption"
            raise DataError(f"data {counted.name!r}", given=given, expected="captioned pictures", cure=cure)
        entry = self.catalog.find(model) if stage != "vae" else None
        start = traits_of(place_of(entry)) if entry else START_OF_NOTHING
        drafts = start.drafts and stage in ("lora", "denoiser")
        if drafts and size not in (None, start.side):
            raise InvalidInput(
                "size", given=size, expected=f"{start.side}, as the drafts of {entry.name if entry else ''} have"
            )
        taken = (self.root / name, self.models / name, lora_place(name))
        if any(place.exists() for place in taken):
            raise Conflict("name", given=repr(name), expected="a name that is not taken", cure="Choose another.")
        chosen = AUTOENCODERS.get(stage) or choose("lora" if stage == "lora" else "whole", start)
        return TrainingPlan.from_dict(
            {
                "name": name,
                "stage": stage,
                "data": counted.name,
                "pictures": counted.pictures,
                "model": entry.name if entry else "",
                "start": place_of(entry) if entry else None,
                "family": start.family,
                "flip": stage == "lora" and not look_at(source).speaks_of_sides,
                "size": size or start.side,
                "minutes": minutes,
                "learning_rate": learning_rate or chosen.learning_rate,
                "drafts": drafts,
                "batch_size": chosen.batch_size if batch_size is None else batch_size,
                "created": time.time(),
                "owner": owner,
            },
            where="training",
        )

    def resume(self, name: str, *, minutes: float = 0.0) -> TrainingRun:
        """Go on with a run that ended or was stopped.

        Args:
            minutes: more training time than was planned.

        Raises:
            NotFound: no such run.
            Conflict: it, or another, is under way.
        """
        run = self.get(name)
        self._refuse_a_second()
        folder = self._folder(name)
        plan = TrainingPlan.from_dict(
            {**run.plan.model_dump(), "minutes": run.plan.minutes + minutes}, where="training"
        )
        if run.phase == "done" and not minutes:
            raise InvalidInput("minutes", given=0, expected="more time: this run has used up its own")
        write_text(folder / PLAN, plan.to_json())
        (folder / STOP).unlink(missing_ok=True)
        self._launch(plan)
        return self.get(name)

    def stop(self, name: str) -> TrainingRun:
        """Ask a run to leave a checkpoint and end; what it has learned so far is kept and can be painted with.

        Raises:
            NotFound: no such run.
            Conflict: it doesn't run.
        """
        folder = self._folder(name)
        if self.get(name).phase not in RUNNING:
            raise Conflict(f"run {name!r}", given="a run that has ended", expected="one under way")
        (folder / STOP).touch()
        _signal(folder)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Remove a run's folder; the model that it made stays.

        Raises:
            NotFound: no such run.
            Conflict: it is under way.
        """
        folder = self._folder(name)
        if is_alive(folder):
            raise Conflict(f"run {name!r}", given="a run under way", expected="one that has ended", cure="Stop it.")
        shutil.rmtree(folder)

    def result(self, plan: TrainingPlan) -> Path:
        """Where what a run makes lies, once it is there."""
        return lora_place(plan.name) if plan.stage == "lora" else self.models / plan.name

    def delete_set(self, name: str) -> None:
        """Delete a set.

        Raises:
            InvalidInput, NotFound: as `TrainingSets.folder`.
            Conflict: a run is under way that reads it.
        """
        busy = [run.plan.name for run in self.listing() if run.phase in RUNNING and run.plan.data == name]
        if busy:
            given = f"a set that the run {busy[0]!r} learns from"
            raise Conflict(f"data {name!r}", given=given, expected="one that no run reads", cure="Stop the run.")
        self.sets.delete(name)

    def listing(self) -> list[TrainingRun]:
        """Every run, the newest first."""
        folders = [path.parent for path in self.root.glob(f"*/{PLAN}")] if self.root.is_dir() else []
        runs = [self._read(folder) for folder in folders if folder.resolve().parent == self.root.resolve()]
        return sorted(runs, key=lambda run: run.plan.created, reverse=True)

    def get(self, name: str) -> TrainingRun:
        """One run.

        Raises:
            NotFound: no such run.
        """
        return self._read(self._folder(name))

    def log(self, name: str, part: PlanPart | None = None) -> list[dict[str, float]]:
        """The figures that a part wrote down, oldest first; whole lines only. Without a part those of the latest.

        Of a long run only every second line, or every third ...: so many that a curve shows no more.
        """
        lines = read_figures(self._folder(name) / (part or self.get(name).part) / "log.jsonl")
        every = -(-len(lines) // MOST_FIGURES)
        return [line for at, line in enumerate(lines) if at % every == 0 or "loss" not in line or at == len(lines) - 1]

    def samples(self, name: str, part: PlanPart | None = None) -> list[Path]:
        """A part's sample sheets, oldest first; the file's name is the number of pictures seen."""
        return sorted((self._folder(name) / (part or self.get(name).part) / "samples").glob("*.png"))

    def command(self, run: TrainingRun) -> str:
        """What one would type to train the same."""
        steps = commands(run.plan, self._folder(run.plan.name), self.sets.root / run.plan.data)
        lines = [["gouache", *steps[part]] for part in run.plan.parts]
        return "\n".join(" ".join(json.dumps(word) if " " in word else word for word in line) for line in lines)

    def resume_all(self) -> None:
        """Go on with runs whose process ended without a word, as after a crash or the end of the machine."""
        for run in self.listing():
            folder = self._folder(run.plan.name)
            state = read_state(folder)
            if run.phase != "interrupted":
                continue
            if state.attempts >= MOST_ATTEMPTS:
                error = f"its process ended {state.attempts} times without a word"
                failed = state.model_copy(update={**FRESH, "attempts": 0, "result": "failed", "error": error})
                write_text(folder / STATE, failed.to_json())
            else:
                self._launch(run.plan)

    def suspend_all(self) -> None:
        """Ask every run to leave a checkpoint; `resume_all` goes on with them."""
        for run in self.listing():
            if run.phase in RUNNING:
                _signal(self._folder(run.plan.name))

    def _refuse_a_second(self) -> None:
        busy = [run.plan.name for run in self.listing() if run.phase in RUNNING]
        if busy:
            raise Conflict(
                "training", given=f"the run {busy[0]!r} under way", expected="one at a time", cure="Stop it."
            )

    def _launch(self, plan: TrainingPlan) -> None:
        folder = self._folder(plan.name)
        before = read_state(folder)
        write_text(folder / STATE, before.model_copy(update=FRESH).to_json())
        source = self.sets.root / plan.data
        # It detaches itself and returns when it holds its lock: Ctrl+C at the server's terminal is not for it.
        subprocess.run(
            [*self.process, str(folder), str(self.models), str(source)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    def _folder(self, name: str) -> Path:
        folder = self.root / checked_name("run", name)
        if not (folder / PLAN).is_file() or folder.resolve().parent != self.root.resolve():
            raise NotFound("run", given=repr(name), expected="the name of a run")
        return folder

    def _read(self, folder: Path) -> TrainingRun:
        plan = TrainingPlan.from_json((folder / PLAN).read_text(encoding="utf-8"), where=str(folder / PLAN))
        alive = is_alive(folder)
        state = read_state(folder)
        seconds = state.trained + (time.time() - state.since if alive and state.since else 0.0)
        seconds = min(seconds, 60 * plan.minutes)  # What is over is the last judging.
        part = _part(plan, state, folder)
        figures = read_figures(folder / part / "log.jsonl", last=True)
        seen = int(figures[-1]["images_seen"]) if figures else 0
        rate = next((line["images_per_second"] for line in reversed(figures) if "images_per_second" in line), 0.0)
        phase = _phase(state, alive=alive, stopping=(folder / STOP).exists())
        doing = _last_line(folder / OUTPUT) if alive and not state.since else ""
        return TrainingRun(
            plan=plan,
            phase=phase,
            seconds=seconds,
            part=part,
            images_seen=seen,
            rate=rate,
            doing=doing,
            error=state.error,
        )


def _part(plan: TrainingPlan, state: RunState, folder: Path) -> PlanPart:
    """The part that is trained, or the last that has begun."""
    begun = [part for part in plan.parts if (folder / part / "log.jsonl").is_file()]
    return next((part for part in plan.parts if part == state.step), begun[-1] if begun else plan.parts[0])


def _phase(state: RunState, *, alive: bool, stopping: bool) -> Phase:
    if alive:
        return "stopping" if stopping and state.step != "pack" else _PHASES.get(state.step, "training")
    if state.result == "":
        return "stopped" if stopping else "interrupted"
    return state.result


def _signal(folder: Path) -> None:
    """Tell a run's process, or its command if the process is gone; the lock says that the numbers are still theirs."""
    state = read_state(folder)
    for process in (state.pid, state.child):
        if process and is_alive(folder):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGTERM)
                return


def read_figures(path: Path, *, last: bool = False) -> list[dict[str, float]]:
    """The whole lines of a log.

    Args:
        last: read the end of the file only.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        if last:
            file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    found: list[dict[str, float]] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and "images_seen" in values:
                found.append(values)
    return found


def _last_line(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").strip().splitlines()
    return lines[-1][:300] if lines else ""


def place_of(entry: ModelEntry) -> Path:
    """Where a model lies.

    Raises:
        ModelNotFound: the shipped model, in a build without it.
    """
    path = entry.path or shipped_model()
    if path is None:
        cure = "Pull a model, or put one into the models folder."
        raise ModelNotFound(f"model {entry.name!r}", given="nothing", expected="weights to start from", cure=cure)
    return path
