"""Stage `controlnet`: begins as nothing, learns, and is read by diffusers and by our own pipeline."""

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

from gouache.checkpoints.adapters.control_weights import load_controlnet
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import write_model
from gouache.errors import DataError
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.sd3_controlnet import JointControlNet
from gouache.pipeline.generate.controlnets import check_fits
from gouache.training.stage_tables import ControlNetStage
from gouache.training.stages.controlnet import Steered, new_controlnet
from gouache.training.state import checkpoints

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins
    from tests.pipeline.twins import Twins

CONFIG = """
[data]
size = 32
flip = true
[controlnet]
start = "{start}"
condition = "{condition}"
layers = 2
[controlnet.optimizer]
learning_rate = 1e-3
warmup_images = 0
[controlnet.loop]
images = {images}
log_images = 8
precision = "fp32"
"""


def learned(start: Path, folder: Path, images: int = 8, condition: str = "canny", run: str = "run") -> Path:
    """The folder of a stage that has learnt from two squares."""
    data, config = folder / "mine", folder / "config.toml"
    if not data.exists():
        squares(data, 2)
    config.write_text(CONFIG.format(start=start, images=images, condition=condition))
    trained("controlnet", config, data, folder / run)
    return folder / run / "controlnet"


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_a_new_controlnet_adds_nothing_and_a_trained_one_is_diffusers(
    own_twins: Twins, tmp_path: Path, family: str
) -> None:
    pair = own_twins.of(family)
    pair.save(tmp_path / "model")
    bundle = load_bundle(tmp_path / "model")
    new = new_controlnet(bundle, ControlNetStage(start=tmp_path))
    assert isinstance(new, ControlNet)
    generator = torch.Generator().manual_seed(0)
    x, sizes = torch.randn(2, 4, 8, 8, generator=generator), bundle.unet.config
    context = torch.randn(2, 5, sizes.context_width, generator=generator)
    pooled = torch.randn(2, sizes.pooled_width, generator=generator) if sizes.pooled_width else None
    hint, t = torch.rand(2, 3, 32, 32, generator=generator), torch.tensor([3.0, 700.0])
    told = {"context_mask": None, "pooled": pooled}
    with torch.no_grad():
        steered = Steered(bundle.unet, new, new.embed(hint))(x, t, context, **told)
        assert torch.equal(steered, bundle.unet(x, t, context, **told))

    run = learned(tmp_path / "model", tmp_path)
    theirs = diffusers.ControlNetModel.from_pretrained(run / "last").eval()
    added = {}
    if pooled is not None:
        text = bundle.text.pooled_width
        ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1)
        added = {"added_cond_kwargs": {"text_embeds": pooled[:, :text], "time_ids": ids}}
        given = bundle.pooled_vector(pooled[:, :text], ids)
        pooled = given
    for path in (run / "last", run / "last.safetensors"):
        ours = load_controlnet(path, dtype=torch.float32)
        assert isinstance(ours, ControlNet)
        check_fits(ours, bundle, "here")
        if path.is_dir():
            with torch.no_grad():
                own = ours(x, t, context, ours.embed(hint), pooled=pooled)
                down, middle = theirs(x, t, context, hint, return_dict=False, **added)
            assert float(own.middle.abs().max()) > 1e-4
            for a, b in zip((*own.skips, own.middle), (*down, middle), strict=True):
                assert torch.allclose(a, b, atol=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one_on_a_model_with_drafts(tmp_path: Path) -> None:
    start = write_model(small_model(), tmp_path / "pocket", "gouache")
    whole = learned(start, tmp_path, 16, run="whole")
    for images in (8, 16):
        parts = learned(start, tmp_path, images, run="parts")
    saved = load_tensors(checkpoints(whole)[-1])
    assert equal(saved, load_tensors(checkpoints(parts)[-1]))
    assert {name.split(".")[1] for name in saved if name.startswith(("network.", "optimizer."))} == {"trained"}
    bundle = load_bundle(start)
    check_fits(load_controlnet(whole / "last"), bundle, "here")


@pytest.mark.slow
def test_the_transformer_of_stable_diffusion_3_is_steered(sd3: Sd3Twins, tmp_path: Path) -> None:
    start = sd3.path("3 medium")
    run = learned(start, tmp_path)
    ours = load_controlnet(run / "last", dtype=torch.float32)
    assert isinstance(ours, JointControlNet)
    check_fits(ours, load_bundle(start), "here")
    theirs = diffusers.SD3ControlNetModel.from_pretrained(run / "last").eval()
    assert equal(dict(theirs.state_dict()), {name: value.half().float() for name, value in ours.state_dict().items()})


def test_conditions_of_the_set_are_used_and_missed(own_twins: Twins, tmp_path: Path) -> None:
    own_twins.of("sd1").save(tmp_path / "model")
    data = squares(tmp_path / "mine", 2)
    with pytest.raises(DataError, match=r"conditioning/NAME\.png"):
        learned(tmp_path / "model", tmp_path, condition="set")
    (data / "conditioning").mkdir()
    for i in range(2):
        Image.fromarray(np.full((32, 32, 3), 90 * i, np.uint8)).save(data / "conditioning" / f"{i}.png")
    run = learned(tmp_path / "model", tmp_path, condition="set", run="again")
    assert (run / "last" / "config.json").is_file()
