"""Fine-tuning Stable Diffusion 3 by the same stage: the flow's loss at logit-normal levels, resumed bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError
from gouache.models.configs import MMDiTConfig, UNetConfig
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.config import read_config
from gouache.training.loop import TrainingProgress
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage_tables import DenoiserStage
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.state import checkpoints

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

CONFIG = """
[data]
size = 32
examples = 4
[denoiser]
start = "{start}"
timesteps = "logit_normal"
freeze = ["pos_embed", "context_embedder"]
gradient_checkpointing = true
[denoiser.loop]
batch_size = 4
images = {images}
log_images = 16
validate_images = {images}
[denoiser.optimizer]
learning_rate = 2e-3
warmup_images = 0
[denoiser.ema]
lengths = [0.1]
use = 0.1
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four captioned pictures, packed."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for i in range(4):
        pixels = np.full((32, 32, 3), 60 * i, np.uint8)
        pixels[8:24, 8:24] = (255, 40 * i, 0)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"square number {i}")
    list(pack_pictures(folder / "pictures", folder / "set", [Bucket(32, 32)], ReadReport()))
    return folder / "set"


def trained(start: Path, data: Path, run: Path, images: int) -> list[float]:
    """The losses of a run."""
    config = run.parent / f"{images}.toml"
    config.write_text(CONFIG.format(start=start, images=images))
    events = [event for event in train_stage("denoiser", config, data, run) if isinstance(event, TrainingProgress)]
    assert events[-1].images_seen == images
    return [event.losses["loss"] for event in events if event.losses]


@pytest.mark.slow
@pytest.mark.parametrize("images", [8, 80])
def test_a_model_is_tuned_resumed_and_packed(sd3: Sd3Twins, data: Path, tmp_path: Path, images: int) -> None:
    start, run = sd3.path("3.5 medium"), tmp_path / "run"
    losses = trained(start, data, run, images)
    assert images < 80 or np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    half = tmp_path / "half"
    trained(start, data, half, images // 8 * 4)
    trained(start, data, half, images)
    whole, resumed = (load_tensors(checkpoints(folder / "denoiser")[-1]) for folder in (run, half))
    assert set(whole) == set(resumed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    tuned = load_bundle(
        pack(read_config(tmp_path / f"{images}.toml", "denoiser"), run, tmp_path / "tuned", dtype="fp32")
    )
    before, after = load_bundle(start).unet.state_dict(), tuned.unet.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(("pos_embed", "context_embedder"))]
    assert "proj_out.weight" in moved
    assert (tuned.family, tuned.defaults.sampler, tuned.denoiser_config.parameterization) == ("sd3", "euler", "flow")
    (painted,) = Pipeline(tuned).paint(Request(prompt="square number 3", seed=1, num_inference_steps=2))
    assert painted.image.size == (32, 32)


def test_the_loss_is_the_flows_and_falls(make_stage: Callable[..., Any]) -> None:
    """|v - (eps - x0)|^2 at x_f = (1 - f) x0 + f eps, told t = 1000 f (arXiv:2403.03206, equations 2 and 14)."""
    sizes = {"in_channels": 4, "out_channels": 4, "layers": 2, "heads": 2, "head_width": 8, "grid": 8, "qk_norm": True}
    table = {
        "network": {**sizes, "context_width": 12, "pooled_width": 12, "dual_layers": [0]},
        "denoiser": {"parameterization": "flow", "schedule": {"name": "flow", "shift": 3.0}},
        "timesteps": "logit_normal",
        "caption_dropout": 0.0,
    }
    data = make_stage("denoiser").data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stage = DenoiserTraining(DenoiserStage.from_dict(table), data, data, None, None, 0)
        torch.nn.init.normal_(stage.trained.get_parameter("proj_out.weight"), std=0.1)
    batch = stage.batch(range(8))
    x0, eps = batch["x0"], batch["eps"]
    share = (batch["sigma"] / (1 + batch["sigma"])).float()
    noisy = torch.lerp(x0, eps, share.view(-1, 1, 1, 1))
    text = {"context_mask": batch["mask"], "pooled": batch["pooled"]}
    velocity = stage.trained(noisy, 1000 * share, batch["context"], **text)
    expected = (velocity - (eps - x0)).square().mean()
    assert torch.allclose(stage(batch)["loss"], expected, rtol=1e-4)
    optimizer = torch.optim.AdamW(stage.trained.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = stage(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_stage_says_by_its_keys_which_network_it_trains() -> None:
    transformer = DenoiserStage.from_dict({"network": {"layers": 2, "heads": 2, "dual_layers": [0]}})
    assert isinstance(transformer.sizes, MMDiTConfig)
    assert isinstance(DenoiserStage.from_dict({"network": {"channels": [32, 32, 32, 32]}}).sizes, UNetConfig)
    for stage in (transformer, DenoiserStage.from_dict({"network": {}})):
        assert DenoiserStage.from_json(stage.to_json()) == stage
    with pytest.raises(
        ConfigError, match=r"network: key 'layres': given 2, expected one of the keys of .*layers_per_level"
    ):
        DenoiserStage.from_dict({"network": {"layres": 2}})
    with pytest.raises(ConfigError, match=r"network: .*dual layers among the layers"):
        DenoiserStage.from_dict({"network": {"layers": 2, "dual_layers": [2]}})
