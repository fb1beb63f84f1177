"""Trains small stages in as many processes as the launcher starts.

Arguments: the folder of the run and a JSON list of [stage, name of the run, images, changes of the stage's config].
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from gouache.training.loop import train

HERE = Path(__file__).parent
OPTIMIZER = {"learning_rate": 1e-3, "warmup_images": 0, "epsilon": 1e-4, "gradient_clip": 0.3}
LOOP = {"log_images": 8, "validate_images": 48}
Job = tuple[str, str, int, dict[str, Any]]


def main(folder: Path, jobs: Sequence[Job]) -> None:
    """Train one stage after the other with a global batch of 8."""
    spec = importlib.util.spec_from_file_location("stages", HERE / "conftest.py")
    assert spec is not None, "conftest.py lies beside this file"
    assert spec.loader is not None, "conftest.py is Python"
    stages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stages)
    for name, run, images, changes in jobs:
        changed = {**changes, "optimizer": {**OPTIMIZER, **changes.get("optimizer", {})}}
        changed["loop"] = {**stages.LOOP, **LOOP, "images": images, **changes.get("loop", {})}
        stage = stages.stage_of(name, **changed)
        list(train(stage, stage.config, folder / run))
        weights = [p.detach() for p in stage.parameters() if p.requires_grad]
        own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in weights)
        (folder / f"{run}.share").write_text(str(own / sum(p.numel() for p in weights)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
