"""Stage `instruct`: blind to the picture before at first, then a model that `gouache edit` and diffusers take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_from_packed import equal, small_model
from tests.training.test_tuning_packed import squares, trained

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import ConfigError, DataError
from gouache.models.unet import UNet
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.config import TrainConfig, read_config
from gouache.training.pack import pack
from gouache.training.run import assemble, built_set
from gouache.training.stage import Preparing, Ready
from gouache.training.stages.instruct import InstructTraining, widened
from gouache.training.state import checkpoints

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

CONFIG = """
[data]
size = 32
[instruct]
start = "{start}"
[instruct.optimizer]
learning_rate = 1e-3
warmup_images = 0
[instruct.loop]
images = {images}
log_images = 8
precision = "fp32"
"""


def pairs(folder: Path) -> Path:
    """Two grey pictures, each with the square that is to be painted on it, and the instruction."""
    squares(folder / "after", 2)
    (folder / "before").mkdir()
    for i in range(2):
        Image.fromarray(np.full((32, 32, 3), 60 + 90 * i, np.uint8)).save(folder / "before" / f"{i}.png")
    return folder


def learned(start: Path, folder: Path, data: Path, images: int = 8, run: str = "run") -> Path:
    config = folder / "config.toml"
    config.write_text(CONFIG.format(start=start, images=images))
    trained("instruct", config, data, folder / run)
    return folder / run / "instruct"


def test_a_model_learns_to_change_pictures_and_is_diffusers_too(own_twins: Twins, tmp_path: Path) -> None:
    own_twins.of("sd1").save(tmp_path / "model")
    data = pairs(tmp_path / "pairs")
    whole = learned(tmp_path / "model", tmp_path, data, 16, "whole")
    for images in (8, 16):
        parts = learned(tmp_path / "model", tmp_path, data, images, "parts")
    assert equal(load_tensors(checkpoints(whole)[-1]), load_tensors(checkpoints(parts)[-1]))

    packed = pack(read_config(tmp_path / "config.toml", "instruct"), whole.parent, tmp_path / "tuned", dtype="fp32")
    bundle = load_bundle(packed)
    weight = bundle.unet.state_dict()["conv_in.weight"]
    assert weight.shape[1] == 8
    assert float(weight[:, 4:].abs().max()) > 0
    request = Request(prompt="a square number 1", init_image=str(data / "before" / "1.png"), num_inference_steps=2)
    assert Pipeline(bundle).paint(request)[0].image.size == (32, 32)
    folder = write_model(bundle_to_write(bundle), tmp_path / "theirs", "diffusers")
    theirs = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    assert torch.equal(theirs.unet.state_dict()["conv_in.weight"], weight)


def test_the_widened_network_is_blind_to_the_picture_before(own_twins: Twins) -> None:
    unet = own_twins.of("sd1").ours.bundle.unet
    assert isinstance(unet, UNet)
    generator = torch.Generator().manual_seed(0)
    x, before = torch.randn(2, 2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, unet.config.context_width, generator=generator)
    t = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert torch.allclose(widened(unet)(x, t, context, draft=before), unet(x, t, context), atol=1e-5)


def test_pictures_before_are_encoded_once_and_a_step_has_what_the_autoencoder_gives_for_each(
    own_twins: Twins, tmp_path: Path
) -> None:
    own_twins.of("sd1").save(tmp_path / "model")
    config = TrainConfig.from_dict({"data": {"size": 32, "flip": True}, "instruct": {"start": str(tmp_path / "model")}})
    run, before = tmp_path / "run", tmp_path / "pairs" / "before"
    uneven = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    pairs(before.parent)
    Image.fromarray(uneven).save(before / "0.png")
    list(built_set(before.parent, run, config.data))
    data = next(run.glob("pictures-*"))
    *events, ready = assemble("instruct", config, data, run)
    # Two pictures, their mirror images, and the two that are judged by; then the same of what they were before.
    assert [(event.done, event.total) for event in events if isinstance(event, Preparing) and event.total][-1] == (2, 2)
    assert isinstance(ready, Ready)
    stage = ready.stage
    assert isinstance(stage, InstructTraining)
    shown = stage.data.shown(range(12))
    assert {(one.row, one.mirrored) for one in shown} == {(row, side) for row in (0, 1) for side in (False, True)}
    for one, found in zip(shown, stage.batch(range(12))["before"], strict=True):
        own = stage.data.pictures.condition(one.row)
        assert own is not None
        pixels = torch.tensor(np.array(own[:, ::-1] if one.mirrored else own)[..., :3]).permute(2, 0, 1)[None]
        expected = stage.vae.encode(pixels.float() / 127.5 - 1).mode()[0]
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-5)
    again = [event for event in assemble("instruct", config, data, run) if isinstance(event, Preparing)]
    assert not any(event.total and event.done < event.total for event in again), "all is there"


@pytest.mark.parametrize("stage", ["instruct", "controlnet"])
def test_prompts_that_would_draw_nothing_are_refused(stage: str, tmp_path: Path) -> None:
    table = {"start": str(tmp_path), "prompts": ["a cat"]}
    config = TrainConfig.from_dict({"data": {"size": 32}, stage: table}, where="config")
    with pytest.raises(ConfigError, match=f"{stage}.prompts"):
        list(assemble(stage, config, tmp_path, tmp_path / "run"))


def test_what_can_t_learn_it_is_refused(own_twins: Twins, tmp_path: Path) -> None:
    write_model(small_model(), tmp_path / "pocket", "gouache")
    with pytest.raises(ConfigError, match="begins with drafts"):
        learned(tmp_path / "pocket", tmp_path, pairs(tmp_path / "pairs"))
    own_twins.of("sd1").save(tmp_path / "model")
    with pytest.raises(DataError, match="what they were before"):
        learned(tmp_path / "model", tmp_path, squares(tmp_path / "mine", 2), run="other")
