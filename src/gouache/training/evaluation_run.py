"""An evaluation from files to figures: what `gouache eval` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from gouache.data.stickers import Stickers
from gouache.pipeline.library import open_pipeline
from gouache.training.evaluation import EvaluationSettings, Painting, evaluate, painter
from gouache.training.evaluation_figures import Evaluation
from gouache.training.judge import load_judge


def evaluate_files(
    model: str,
    data: Path,
    judge: Path,
    settings: EvaluationSettings,
    *,
    device: str | None = None,
    threads: int = 0,
) -> Iterator[str | Painting | Evaluation]:
    """Load model, data and judge, and measure; yields what to tell the user, progress, and last what was found.

    Args:
        model: path or name.
        data: folder of a built sticker set.
        judge: file of the stage `clip`.
        settings: how much to measure.
        device: where the model works; None chooses.
        threads: CPU threads; 0 leaves the choice to torch.

    Raises:
        ModelNotFound, CheckpointError, DataError: one of the three is absent or is something else.
    """
    if threads:
        torch.set_num_threads(threads)
    stickers, court = Stickers.open(data), load_judge(judge)
    pipeline, note = open_pipeline(model, device=device)
    if note:
        yield note
    yield from evaluate(pipeline.bundle, painter(pipeline), stickers, court, settings)
