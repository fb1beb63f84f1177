"""Fine-tuning a published model: the same stage on a loaded U-Net, with frozen parts, and back into a whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.checkpoints.format import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError, InvalidInput
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.pipeline.untrained import untrained_bundle
from gouache.training.config import DenoiserStage, read_config
from gouache.training.loop import Progress
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.state import checkpoints

CONFIG = """
[data]
size = 32
examples = 8
[denoiser]
start = "{start}"
freeze = ["conv_in", "down_blocks", "time_embedding"]
gradient_checkpointing = true
[denoiser.loop]
batch_size = 8
images = 640
log_images = 160
validate_images = 640
[denoiser.optimizer]
learning_rate = 3e-3
warmup_images = 0
[denoiser.ema]
lengths = [0.1, 0.05]
use = 0.1
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures, packed."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for i in range(8):
        pixels = np.full((32, 32, 3), 30 * i, np.uint8)
        pixels[8:24, 8:24] = (255, 20 * i, 0)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"square number {i}")
    list(pack_pictures(folder / "pictures", folder / "set", [Bucket(32, 32)], ReadReport()))
    return folder / "set"


@pytest.mark.parametrize("layout", ["gouache", "diffusers", "single-file"])
def test_a_model_of_any_layout_is_tuned_and_packed(layout: str, data: Path, tmp_path: Path) -> None:
    if layout == "single-file":
        start = write_model(bundle_to_write(untrained_bundle()), tmp_path / "model.safetensors", "single-file")
    else:
        start = write_model(bundle_to_write(untrained_bundle()), tmp_path / "model", layout)  # type: ignore[arg-type]
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=start))
    progress = [e for e in train_stage("denoiser", config, data, tmp_path / "run") if isinstance(e, Progress)]
    losses = [event.losses["mse"] for event in progress if event.losses]
    assert progress[-1].images_seen == 640
    assert losses[-1] < losses[0]

    tuned = load_bundle(pack(read_config(config, "denoiser"), tmp_path / "run", tmp_path / "tuned", dtype="fp32"))
    before, after = load_bundle(start).unet.state_dict(), tuned.unet.state_dict()
    frozen = [name for name in before if name.startswith(("conv_in", "down_blocks", "time_embedding"))]
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert frozen
    assert not set(frozen) & set(moved)
    assert "conv_out.weight" in moved
    assert tuned.family == "sd1"
    check_widths(config, tmp_path / "run", after)
    painted = Pipeline(tuned).paint(
        Request(prompt="square number 3", seed=1, num_inference_steps=2, width=128, height=128)
    )
    assert painted[0].image.size == (128, 128)


def check_widths(config: Path, run: Path, used: dict[str, torch.Tensor]) -> None:
    """Every average that was tracked can be packed; 0.1 is the config's own."""
    settings, saved = read_config(config, "denoiser"), load_tensors(checkpoints(run / "denoiser")[-1])
    for width in (0.1, 0.05):
        out = pack(settings, run, run / f"tuned-{width}", dtype="fp32", ema=width)
        packed = load_bundle(out).unet.state_dict()
        assert all(torch.equal(packed[name], saved[f"ema.{width}.{name}"]) for name in packed)
        assert all(torch.equal(packed[name], used[name]) for name in packed) == (width == 0.1)
    with pytest.raises(InvalidInput, match=r"tracked: 0\.1, 0\.05"):
        pack(settings, run, run / "never", ema=0.07)


def test_a_stage_has_one_origin() -> None:
    with pytest.raises(ConfigError, match="sizes of a network, or a model"):
        DenoiserStage.from_dict({})
    with pytest.raises(ConfigError, match="sizes of a network, or a model"):
        DenoiserStage.from_dict({"network": {}, "start": "model"})
