"""Trains the small denoiser stage in as many processes as the launcher starts. Arguments: this folder, the run's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from gouache.training.loop import train


def main(tests: Path, run: Path) -> None:
    """Train 48 images with a global batch of 8."""
    spec = importlib.util.spec_from_file_location("stages", tests / "conftest.py")
    assert spec is not None, "conftest.py lies beside this file"
    assert spec.loader is not None, "conftest.py is Python"
    stages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stages)
    stage = stages.stage_of("denoiser", optimizer={"learning_rate": 1e-3, "warmup_images": 0, "epsilon": 1e-4})
    loop = stage.config.loop.model_copy(update={"images": 48, "log_images": 8, "validate_images": 48})
    list(train(stage, stage.config.model_copy(update={"loop": loop}), run))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
