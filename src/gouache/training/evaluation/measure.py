"""An evaluation from files to figures: what `gouache eval` does, and what painting costs in seconds and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gouache.data.stickers import Stickers
from gouache.errors import DataError, InvalidInput
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import Request
from gouache.training.evaluation.figures import Evaluation, Figure
from gouache.training.evaluation.judge import load_judge, open_instrument
from gouache.training.evaluation.own import OwnSettings, evaluate_own
from gouache.training.evaluation.painting import Paint, painter
from gouache.training.evaluation.statistics import Interval
from gouache.training.evaluation.suite import EvaluationSettings, Painting, evaluate

PROMPT = "a red fire engine, 3d style"
WARM_PICTURES = 5


def warm_seconds(pipeline: Pipeline, count: int = WARM_PICTURES) -> Figure:
    """Wall-clock seconds of one picture with all defaults, model loaded; the first one is not counted."""
    found = []
    for seed in range(count + 1):
        started = time.perf_counter()
        pipeline.paint(Request(prompt=PROMPT, seed=seed))
        found.append(time.perf_counter() - started)
    return Figure("warm_seconds", "one picture", middle(found[1:]))


def command_costs(model: Path, runs: int, *, threads: int = 0) -> list[Figure]:
    """Wall-clock seconds, processor seconds and peak memory (MB, 10^6 bytes) of `gouache paint` in a new process.

    The first run brings the files into memory and is not counted. Nothing is measured where the system doesn't tell a
    process's memory.

    Args:
        model: its path.
        runs: how often; 0 leaves it out.
        threads: CPU threads of the command; 0 leaves the choice to torch.

    Raises:
        InvalidInput: the command fails.
    """
    if runs < 1 or not hasattr(os, "wait4"):
        return []
    measured = [_run(model, threads) for _ in range(runs + 1)][1:]
    names = ("command_seconds", "command_cpu_seconds", "command_peak_mb")
    columns = zip(*measured, strict=True)
    return [Figure(name, "one picture", middle(values)) for name, values in zip(names, columns, strict=True)]


def _run(model: Path, threads: int) -> tuple[float, float, float]:
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryDirectory() as place, Path(place, "errors").open("w+") as errors:
        command = [sys.executable, "-m", "gouache", "paint", PROMPT, "--model", str(model.resolve()), "-o", place]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise InvalidInput(
                "gouache paint",
                given=f"exit code {process.returncode}",
                expected="a picture",
                cure=errors.read()[-500:],
            )
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def middle(values: Sequence[float]) -> Interval:
    """The median with the smallest and the largest: too few for a bootstrap."""
    ordered = sorted(values)
    return Interval(ordered[len(ordered) // 2], ordered[0], ordered[-1], len(ordered))


def evaluate_own_files(
    model: str,
    data: Path,
    judge: Path | None,
    settings: OwnSettings,
    *,
    device: str | None = None,
    threads: int = 0,
    runs: int = 3,
) -> Iterator[str | Painting | Evaluation]:
    """As `evaluate_files`, on anyone's captioned pictures.

    Args:
        model: path or name.
        data: a packed set, or anything that `gouache data build pictures` reads.
        judge: file of the stage `clip`, or folder of a published CLIP; None measures what needs none.
        settings: how much to measure.
        device, threads, runs: as `evaluate_files`.

    Raises:
        ModelNotFound, CheckpointError, DataError: one of the three is absent or is something else.
    """
    if threads:
        torch.set_num_threads(threads)
    if not data.exists():
        raise DataError(str(data), given="no such folder", expected="captioned pictures, or a built set")
    instrument = None if judge is None else open_instrument(judge)
    pipeline, note = open_pipeline(model, device=device)
    if note:
        yield note
    path = pipeline.bundle.path
    costs = [] if path is None else command_costs(path, runs, threads=threads)
    for event in evaluate_own(pipeline, data, instrument, settings):
        if isinstance(event, Evaluation):
            event = replace(event, figures=(*event.figures, *costs))
        yield event


def evaluate_files(
    model: str,
    data: Path,
    judge: Path,
    settings: EvaluationSettings,
    *,
    device: str | None = None,
    threads: int = 0,
    runs: int = 3,
    bf16: bool = False,
    paint_by: Callable[[Pipeline], Paint] | None = None,
) -> Iterator[str | Painting | Evaluation]:
    """Load model, data and judge, and measure; yields what to tell the user, progress, and last what was found.

    Args:
        model: path or name.
        data: folder of a built sticker set.
        judge: file of the stage `clip`.
        settings: how much to measure.
        device: where the model works; None chooses.
        threads: CPU threads; 0 leaves the choice to torch.
        runs: how often `gouache paint` is run as a whole to measure its time and memory; 0 leaves all times out.
        bf16: paint in bfloat16; see `painter`.
        paint_by: paints the prompts in place of `painter`, for example on a cluster; times are measured here.

    Raises:
        ModelNotFound, CheckpointError, DataError: one of the three is absent or is something else.
    """
    if threads:
        torch.set_num_threads(threads)
    stickers, instrument = Stickers.open(data), load_judge(judge)
    pipeline, note = open_pipeline(model, device=device)
    if note:
        yield note
    path = pipeline.bundle.path
    costs = [] if path is None else command_costs(path, runs, threads=threads)
    costs += [warm_seconds(pipeline)] if runs else []
    paint = painter(pipeline, bf16=bf16) if paint_by is None else paint_by(pipeline)
    for event in evaluate(pipeline.bundle, paint, stickers, instrument, settings):
        if isinstance(event, Evaluation):
            described = event.described | {"paint_precision": "bf16" if bf16 else "as loaded"}
            event = replace(event, figures=(*event.figures, *costs), described=described)
        yield event
