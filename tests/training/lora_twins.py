"""LoRA trainings on tiny random models of every family, which diffusers has too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.training.test_tuning_packed import squares

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.training.config import TrainConfig
from gouache.training.loop import train
from gouache.training.low_rank import LowRankChanges
from gouache.training.run import assemble
from gouache.training.stage import Ready
from gouache.training.stages.lora import LoraTraining
from gouache.training.state import checkpoints

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": {"conv_rank": 2, "alpha": 2.0},
    "DoRA": {"dora": True, "conv_rank": 2},
    "text": {"text": True, "text_learning_rate": 2e-2},
}


def packed(folder: Path) -> Path:
    """Five captioned pictures, packed."""
    list(pack_pictures(squares(folder / "mine", 5), folder / "set", [Bucket(32, 32)], ReadReport()))
    return folder / "set"


def _none(network: LowRankChanges) -> torch.Tensor | None:
    """No sample sheet: pictures are judged elsewhere."""
    del network
    return None


class Trained:
    """A LoRA after a few steps.

    Attributes:
        stage: with its hooks on the model.
        network: the averaged changes.
        file: the exported file.
    """

    def __init__(self, start: Path, data: Path, run: Path, images: int = 12, **table: Any) -> None:
        config = TrainConfig.from_dict(
            {
                "data": {"size": 32},
                "lora": {
                    "start": str(start),
                    "rank": 4,
                    "dtype": "fp32",
                    "loop": {"images": images, "precision": "fp32"},
                    "optimizer": {"learning_rate": 3e-2, "warmup_images": 0},
                    **table,
                },
            }
        )
        assert config.lora is not None, "it was just given"
        *_, ready = assemble("lora", config, data, run)
        assert isinstance(ready, Ready), "the stage comes last"
        assert isinstance(ready.stage, LoraTraining), "it was asked for"
        self.stage = ready.stage
        self.stage.samples = _none  # type: ignore[method-assign]
        list(train(self.stage, ready.config, run / "lora"))
        self.file = run / "lora" / "last.safetensors"
        saved = load_tensors(checkpoints(run / "lora")[-1])
        self.network: LowRankChanges = copy.deepcopy(self.stage.trained).eval()
        averaged = {key.removeprefix("ema.0.1."): value for key, value in saved.items() if key.startswith("ema.0.1.")}
        self.network.load_state_dict(averaged)

    def hooked(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a call on the stage's networks gives with the averaged changes."""
        with torch.no_grad(), self.stage.attached.using(self.network):
            return run()
