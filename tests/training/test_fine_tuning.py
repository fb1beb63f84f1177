"""Fine-tuning a published model: the same stage on a loaded U-Net, with frozen parts, and back into a whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import TextEncoderConfig, UNetConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.pipeline.pipeline import Pipeline, fill, untrained_bundle
from gouache.pipeline.request import Request
from gouache.training.config import read_config
from gouache.training.loop import TrainingProgress
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage_tables import DenoiserStage
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
images = 96
log_images = 24
validate_images = 96
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


SLOW_LAYOUTS = [pytest.param(layout, marks=pytest.mark.slow) for layout in ("gouache", "single-file")]


@pytest.mark.parametrize("layout", ["diffusers", *SLOW_LAYOUTS])
def test_a_model_of_any_layout_is_tuned_and_packed(layout: str, data: Path, tmp_path: Path) -> None:
    if layout == "single-file":
        start = write_model(bundle_to_write(untrained_bundle()), tmp_path / "model.safetensors", "single-file")
    else:
        start = write_model(bundle_to_write(untrained_bundle()), tmp_path / "model", layout)  # type: ignore[arg-type]
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=start))
    progress = [e for e in train_stage("denoiser", config, data, tmp_path / "run") if isinstance(e, TrainingProgress)]
    losses = [event.losses["mse"] for event in progress if event.losses]
    assert progress[-1].images_seen == 96
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


def sdxl_like() -> ModelBundle:
    """A tiny model of SDXL's shape: two text encoders side by side, and a U-Net that is told six size numbers."""
    start, clip = untrained_bundle(), TextEncoderConfig(width=32, inner_width=64, layers=2, heads=2)
    text = TextStack.of_clip([TextEncoder(clip), TextEncoder(clip.model_copy(update={"projection_width": 8}))])
    sizes = start.unet.config.model_copy(
        update={
            "context_width": 64,
            "pooled_width": 8 + 6 * 256,
            "linear_projection": True,
            "transformer_layers": (0, 2),
            "middle_transformer_layers": 2,
        }
    )
    assert isinstance(sizes, UNetConfig)
    bundle = replace(start, family="sdxl", text=text, unet=UNet(sizes))
    for number, network in enumerate(bundle.networks().values()):
        fill(network, torch.Generator().manual_seed(number))
    return bundle.eval()


def test_a_model_of_sdxls_shape_is_tuned_and_packed(data: Path, tmp_path: Path) -> None:
    start = write_model(bundle_to_write(sdxl_like()), tmp_path / "model", "diffusers")
    assert load_bundle(start).size_numbers == 6
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=start).replace("96", "80").replace("log_images = 24", "log_images = 16"))
    progress = [e for e in train_stage("denoiser", config, data, tmp_path / "run") if isinstance(e, TrainingProgress)]
    losses = [event.losses["mse"] for event in progress if event.losses]
    assert losses[-1] < losses[0]
    shard = load_tensors(next((tmp_path / "run").glob("encoded-*/000000000.safetensors")))
    size = torch.tensor([32.0, 32, 0, 0, 32, 32])
    assert torch.allclose(shard["pooled"][:, 8::256].float(), size.cos().expand(len(shard["pooled"]), 6), atol=1e-3)
    tuned = load_bundle(pack(read_config(config, "denoiser"), tmp_path / "run", tmp_path / "tuned", dtype="fp32"))
    assert (tuned.family, tuned.size_numbers) == ("sdxl", 6)
    before, after = load_bundle(start).unet.state_dict(), tuned.unet.state_dict()
    assert not torch.equal(before["conv_out.weight"], after["conv_out.weight"])
    assert torch.equal(before["conv_in.weight"], after["conv_in.weight"])


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
