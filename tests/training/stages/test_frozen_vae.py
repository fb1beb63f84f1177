"""Refining an autoencoder's decoder while its encoder, and so every latent made with it, stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError, DataError
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import untrained_bundle
from gouache.training.inputs import load_vae
from gouache.training.loop import TrainingProgress
from gouache.training.run import train_stage
from gouache.training.stage import Stage
from gouache.training.state import checkpoints

MakeStage = Callable[..., Stage[Any]]
TABLES = """
[vae.loop]
batch_size = 8
images = {images}
log_images = 160
validate_images = 100000
[vae.optimizer]
learning_rate = 3e-3
warmup_images = 0
[vae.ema]
lengths = [0.1]
use = 0.1
"""
FIRST = """
[data]
size = 32
[vae]
[vae.network]
image_channels = 3
latent_channels = 4
channels = [8, 16]
layers_per_level = 1
norm_groups = 4
quant_conv = true
middle_attention = false
"""
REFINED = """
[data]
size = 32
[vae]
start = "{start}"
freeze = ["encoder"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures, packed."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for i in range(8):
        pixels = np.full((32, 32, 3), 30 * i, np.uint8)
        pixels[4 + i : 20 + i, 8:24] = (255, 20 * i, 0)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"square number {i}")
    list(pack_pictures(folder / "pictures", folder / "set", [Bucket(32, 32)], ReadReport()))
    return folder / "set"


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained autoencoder."""
    run = tmp_path_factory.mktemp("first")
    trained(FIRST, data, run, 80)
    return run / "vae" / "last.safetensors"


def trained(text: str, data: Path, run: Path, images: int) -> dict[str, float]:
    """Train stage `vae` to so many images; the last validation's figures."""
    config = run.parent / f"{run.name}.toml"
    config.write_text(text + TABLES.format(images=images))
    *_, last = train_stage("vae", config, data, run)
    assert isinstance(last, TrainingProgress)
    return last.figures


def encoding(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    return {k: v for k, v in vae.state_dict().items() if k.startswith(("encoder", "quant_conv"))}


def test_the_encoder_stays_and_the_decoder_improves(first: Path, data: Path, tmp_path: Path) -> None:
    text = REFINED.format(start=first)
    before = trained(text, data, tmp_path / "short", 8)
    after = trained(text, data, tmp_path / "long", 240)
    old, new = load_vae(first), load_vae(tmp_path / "long" / "vae" / "last.safetensors")
    assert any(name.startswith("quant_conv") for name in encoding(old))
    assert all(torch.equal(value, encoding(new)[name]) for name, value in encoding(old).items())
    assert new.config == old.config  # and with it scale and shift
    moved = [name for name, value in old.state_dict().items() if not torch.equal(value, new.state_dict()[name])]
    assert "decoder.conv_in.weight" in moved
    assert "post_quant_conv.weight" in moved
    assert after["psnr"] > before["psnr"] + 1, f"{before} -> {after}"
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    assert torch.equal(old.normalise(old.encode(image).mode()), new.normalise(new.encode(image).mode()))


def test_a_refined_run_resumes_bit_for_bit_without_its_start(first: Path, data: Path, tmp_path: Path) -> None:
    text = REFINED.format(start=first)
    trained(text, data, tmp_path / "whole", 48)
    trained(text, data, tmp_path / "parts", 24)
    trained(text, data, tmp_path / "parts", 48)
    whole, parts = (checkpoints(tmp_path / name / "vae")[-1].read_bytes() for name in ("whole", "parts"))
    # The files differ only in the seconds that they record.
    assert len(whole) > 10_000
    assert whole[-10_000:] == parts[-10_000:]


def test_a_whole_model_lends_its_autoencoder(data: Path, tmp_path: Path) -> None:
    start = write_model(bundle_to_write(untrained_bundle()), tmp_path / "model", "diffusers")
    trained(REFINED.format(start=start), data, tmp_path / "run", 8)
    tuned, vae = load_vae(tmp_path / "run" / "vae" / "last.safetensors"), untrained_bundle().vae
    assert all(torch.equal(value, encoding(tuned)[name]) for name, value in encoding(vae).items())


@pytest.mark.parametrize("freeze", [["encoder"], ["encoder.conv_in"], ["encoder", "decoder.conv_in"]])
def test_any_part_may_be_frozen(freeze: list[str], make_stage: MakeStage) -> None:
    stage = make_stage("vae", freeze=freeze, loop={"channels_last": True})
    torch.autograd.backward(stage(stage.batch(range(4)))["loss"])
    for name, parameter in stage.trained.named_parameters():
        held = (*freeze, "quant_conv") if "encoder" in freeze else tuple(freeze)
        assert (parameter.grad is None) == name.startswith(held), name


@pytest.mark.parametrize("freeze", [["encodr"], ["encoder", "decoder", "post_quant_conv"]])
def test_names_that_fit_nothing_or_everything_are_refused(freeze: list[str], make_stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match=r"vae\.freeze"):
        make_stage("vae", freeze=freeze)


def test_a_start_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vae\.start"):
        trained(REFINED.format(start=tmp_path / "nothing"), data, tmp_path / "run", 8)
