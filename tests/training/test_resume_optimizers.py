"""Every optimizer's whole state is in the checkpoint: resumed runs, what is exported, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.errors import CheckpointError, InvalidInput
from gouache.training.loop import train
from gouache.training.runlog import read_log
from gouache.training.stage import Stage
from gouache.training.state import checkpoints, tracked_average

MakeStage = Callable[..., Stage[Any]]


def run(stage: Stage[Any], folder: Path, *, images: int = 64) -> None:
    """Train to `images`."""
    loop = stage.config.loop.model_copy(update={"images": images})
    list(train(stage, stage.config.model_copy(update={"loop": loop}), folder))


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(checkpoints(folder)[-1])


@pytest.mark.parametrize(
    ("stage", "name", "kept"),
    [
        # Only tensors of 4,096 numbers and more are quantized, which stage `tokens` has none of here.
        pytest.param("denoiser", "adamw8bit", ".state1", marks=pytest.mark.slow),
        ("tokens", "adafactor", ".row_var"),
        ("tokens", "prodigy", "optimizer_group.0.d_numerator"),
        ("tokens", "schedule_free", "optimizer_group.1.weight_sum"),
    ],
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    stage: str, name: str, kept: str, make_stage: MakeStage, tmp_path: Path
) -> None:
    """With validations at other moments, which must change nothing."""
    rate = {"prodigy": 1.0, "adafactor": 1e-2}.get(name, 3e-3)
    # Channels last, as by default: moments lie in memory as the weights do.
    loop = {"batch_size": 4, "log_images": 4, "validate_images": 20}
    changes = {"optimizer": {"name": name, "learning_rate": rate, "warmup_images": 0}, "loop": loop}
    run(make_stage(stage, **changes), tmp_path / "whole", images=40)
    run(make_stage(stage, **changes), tmp_path / "parts", images=28)
    run(make_stage(stage, **changes), tmp_path / "parts", images=40)
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert any(key.endswith(kept) for key in whole)
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    exported, again = (load_tensors(tmp_path / folder / "last.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(exported[key], again[key]) for key in exported)
    if name == "adamw8bit":
        assert any(value.dtype == torch.uint8 for value in whole.values())
    if name == "prodigy":
        rates = [line["rate_found"] for line in read_log(tmp_path / "whole") if "rate_found" in line]
        assert len(rates) == 10
        assert rates == sorted(rates)
        assert rates[-1] > rates[6] > 1e-6, "it is still looking when the run is resumed"


def test_schedule_free_exports_its_own_average_and_tracks_no_other(make_stage: MakeStage, tmp_path: Path) -> None:
    optimizer = {"name": "schedule_free", "learning_rate": 3e-3, "warmup_images": 0}
    run(make_stage("denoiser", optimizer=optimizer), tmp_path)
    tensors = last_tensors(tmp_path)
    exported = load_tensors(tmp_path / "last.safetensors")
    assert not [name for name in tensors if name.startswith("ema.")]
    name = "conv_in.weight"
    y, z = tensors[f"network.trained.{name}"], tensors[f"optimizer.trained.{name}.z"]
    assert torch.allclose(exported[name], (y - 0.1 * z) / 0.9, atol=1e-6)
    assert not torch.equal(exported[name], y)
    with pytest.raises(InvalidInput, match="schedule_free keeps one average"):
        tracked_average(tmp_path, 0.05)


def test_another_optimizers_moments_are_not_taken_for_its_own(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, images=28)
    with pytest.raises(CheckpointError, match=r"another optimizer\.name"):
        run(make_stage("tokens", optimizer={"name": "prodigy", "warmup_images": 0}), tmp_path)


def test_a_checkpoint_from_before_the_optimizer_had_a_name_is_resumed(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path / "whole")
    run(make_stage("tokens"), tmp_path / "old", images=24)
    path = checkpoints(tmp_path / "old")[-1]
    metadata = {key: read_header(path).metadata[key] for key in ("stage", "config", "position")}
    config = json.loads(metadata["config"])
    del config["optimizer"]["name"]
    config["optimizer"]["eight_bit"] = False
    save_tensors(path, load_tensors(path), {**metadata, "config": json.dumps(config)})
    run(make_stage("tokens"), tmp_path / "old")
    whole, old = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "old")
    assert all(torch.equal(whole[key], old[key]) for key in whole)
