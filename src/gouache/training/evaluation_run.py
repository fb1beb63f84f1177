"""An evaluation from files to figures: what `gouache eval` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from gouache.data.stickers import Stickers
from gouache.pipeline.library import open_pipeline
from gouache.training.evaluation import EvaluationSettings, Painting, evaluate
from gouache.training.evaluation_cost import command_costs, warm_seconds
from gouache.training.evaluation_figures import Evaluation
from gouache.training.evaluation_paint import painter
from gouache.training.judge import load_judge


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

    Raises:
        ModelNotFound, CheckpointError, DataError: one of the three is absent or is something else.
    """
    if threads:
        torch.set_num_threads(threads)
    stickers, court = Stickers.open(data), load_judge(judge)
    pipeline, note = open_pipeline(model, device=device)
    if note:
        yield note
    path = pipeline.bundle.path
    costs = [] if path is None else command_costs(path, runs, threads=threads)
    costs += [warm_seconds(pipeline)] if runs else []
    for event in evaluate(pipeline.bundle, painter(pipeline, bf16=bf16), stickers, court, settings):
        if isinstance(event, Evaluation):
            described = event.described | {"paint_precision": "bf16" if bf16 else "as loaded"}
            event = replace(event, figures=(*event.figures, *costs), described=described)
        yield event
