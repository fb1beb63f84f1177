"""`loop.compile` end to end: the same training up to rounding, the same checkpoints, exact resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.training.loop import train
from gouache.training.stage import Stage
from gouache.training.state import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
MakeStage = Callable[..., Stage[Any]]


def run(stage: Stage[Any], folder: Path, images: int, *, compiled: bool) -> dict[str, torch.Tensor]:
    """Train to so many images; the tensors of the last checkpoint."""
    loop = stage.config.loop.model_copy(update={"images": images, "validate_images": 1000, "compile": compiled})
    list(train(stage, stage.config.model_copy(update={"loop": loop}), folder))
    return load_tensors(checkpoints(folder)[-1])


@pytest.mark.parametrize("name", ["tokens", "denoiser"])
def test_a_compiled_run_is_the_plain_one_up_to_rounding_and_resumes_bit_for_bit(
    name: str, make_stage: MakeStage, tmp_path: Path
) -> None:
    def stage() -> Stage[Any]:
        return make_stage(name, optimizer={"learning_rate": 1e-3, "warmup_images": 0, "epsilon": 1e-3})

    plain = run(stage(), tmp_path / "plain", 24, compiled=False)
    whole = run(stage(), tmp_path / "whole", 24, compiled=True)
    run(stage(), tmp_path / "parts", 8, compiled=True)
    parts = run(stage(), tmp_path / "parts", 24, compiled=True)
    assert plain.keys() == whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    off = [key for key in plain if not torch.allclose(plain[key].float(), whole[key].float(), rtol=1e-3, atol=1e-4)]
    assert not off, f"these tensors differ by more than rounding: {off[:5]}"
