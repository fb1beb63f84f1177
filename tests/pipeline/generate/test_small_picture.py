"""Stable Diffusion's x4 upscaler: diffusers' pipeline with the same random weights is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale as module
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.pipeline.twins import BETAS, SIDE

from gouache.checkpoints.identify import identify
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.diffusion.rng import generator_for
from gouache.errors import InvalidInput
from gouache.models.unet import UNet
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Hires, Mask, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SMALL = SIDE // 4


@pytest.fixture(scope="module")
def pair(twins: Twins) -> Pair:
    return twins.of("sd2", 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Request:
    path = tmp_path_factory.mktemp("small") / "small.png"
    y, x = np.mgrid[0:SMALL, 0:SMALL] / SMALL
    Image.fromarray((np.stack([x, y, (x + y > 1).astype(float)], -1) * 255).astype(np.uint8)).save(path)
    return Request(
        prompt="a red fire engine",
        negative_prompt="grey",
        seed=21,
        num_inference_steps=5,
        guidance_scale=4.0,
        sampler="euler",
        schedule="leading",
        init_image=str(path),
    )


@pytest.mark.parametrize("level", [None, 120])
def test_the_picture_is_diffusers(
    pair: Pair, base: Request, level: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = base.replace({"noise_level": level})
    noise = torch.randn((1, 3, SMALL, SMALL), generator=generator_for(21, "small picture"))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.clone())
    pair.use_scheduler(request)
    pipeline = pair.variant("StableDiffusionUpscalePipeline", low_res_scheduler=diffusers.DDPMScheduler(**BETAS))
    theirs = pipeline(
        **pair.settings(request),
        image=Image.open(str(request.init_image)),
        noise_level=20 if level is None else level,
        latents=pair.scaled(request, pair.noise(request)),
    ).images[0]
    (found,) = pair.ours.paint(request)
    assert found.image.size == (SIDE, SIDE)
    assert found.recipe.request.noise_level == (level or 20)
    error = np.mean((np.asarray(found.image, float) / 255 - np.round(theirs.astype(float) * 255) / 255) ** 2)
    assert -10 * np.log10(max(error, 1e-12)) >= 60
    (other,) = pair.ours.paint(request.replace({"noise_level": 300}))
    assert other.image.tobytes() != found.image.tobytes()


def test_folders_and_files_paint_the_same(pair: Pair, base: Request, tmp_path: Path) -> None:
    """Written by diffusers, read, written by us, read by diffusers again; and a picture of it replays."""
    (wanted,) = pair.ours.paint(base)
    theirs = pair.variant("StableDiffusionUpscalePipeline", low_res_scheduler=diffusers.DDPMScheduler(**BETAS))
    theirs.scheduler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path / "theirs")
    identity = identify(tmp_path / "theirs")
    assert (identity.kind, identity.family, identity.variant) == ("model", "sd2", "upscaler")
    bundle = load_bundle(tmp_path / "theirs")
    (found,) = Pipeline(bundle).paint(base)
    assert found.image.tobytes() == wanted.image.tobytes()
    (tmp_path / "found.png").write_bytes(found.encode())
    assert replay(tmp_path / "found.png").same
    write_model(bundle_to_write(bundle, "upscaler"), tmp_path / "ours", "diffusers")
    again = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, theirs.unet.state_dict()[key]) for key, tensor in again.unet.state_dict().items())
    assert again.low_res_scheduler.config.beta_end == BETAS["beta_end"]
    write_model(bundle_to_write(bundle, "upscaler"), tmp_path / "own.safetensors", "gouache")
    assert Pipeline(load_bundle(tmp_path / "own.safetensors")).paint(base)[0].image.tobytes() == wanted.image.tobytes()


def test_a_single_file_in_the_published_naming(pair: Pair, tmp_path: Path) -> None:
    """Its prediction, schedule, latent scale and heads follow from what it is, where it records none of them."""
    bundle = pair.ours.bundle
    write_model(bundle_to_write(bundle, "upscaler"), tmp_path / "x4.safetensors", "single-file")
    tensors = load_file(tmp_path / "x4.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "alphas_cumprod" not in name}
    tensors["low_scale_model.betas"] = torch.ones(3)
    assert tensors["model.diffusion_model.label_emb.weight"].shape == (1000, 64)
    save_file(tensors, tmp_path / "bare.safetensors")
    identity = identify(tmp_path / "bare.safetensors")
    assert (identity.variant, identity.prediction) == ("upscaler", "v")
    assert identity.left_out["tables of the noise on small pictures"] == 1
    loaded = load_bundle(tmp_path / "bare.safetensors")
    assert (loaded.denoiser_config.schedule.beta_start, loaded.denoiser_config.schedule.beta_end) == (1e-4, 0.02)
    assert loaded.vae.config.scale == 0.08333
    assert isinstance(loaded.unet, UNet)
    assert set(loaded.unet.config.heads) == {8}
    state = loaded.unet.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bundle.unet.state_dict().items())


def test_each_picture_has_its_own_noise(pair: Pair, base: Request) -> None:
    both = pair.ours.paint(base.replace({"count": 2}))
    (alone,) = pair.ours.paint(base.replace({"seed": 22}))
    assert both[1].image.tobytes() == alone.image.tobytes()
    assert both[0].image.tobytes() != alone.image.tobytes()
    larger = base.replace({"tiled": Tiled(tile=SIDE), "width": 2 * SIDE, "height": SIDE, "strength": 0.5})
    (tiled,) = pair.ours.paint(larger)
    assert tiled.image.size == (2 * SIDE, SIDE)
    assert any(note.startswith("strength was not used: a model that enlarges") for note in tiled.recipe.notes)


def test_what_it_does_not_do_is_refused(pair: Pair, twins: Twins, base: Request) -> None:
    with pytest.raises(InvalidInput, match="a small picture to enlarge"):
        pair.ours.paint(base.replace({"init_image": None}))
    for name, group in (("hires", Hires()), ("mask", Mask())):
        with pytest.raises(InvalidInput, match=f"{name}: given a model that enlarges"):
            pair.ours.paint(base.replace({name: group}))
    (found,) = twins.of("sd2").ours.paint(base.replace({"noise_level": 5, "init_image": None}))
    assert "noise_level was not used: this model enlarges no picture" in found.recipe.notes
