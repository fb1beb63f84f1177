"""The lines that a user of diffusers writes, on a folder that diffusers itself wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from gouache import StableDiffusionPipeline
from gouache.errors import DeviceUnavailable, GouacheError, InvalidInput
from gouache.models.configs import GenerationDefaults
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import FreeU, Pag, Request, Sag

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins


def psnr(first: Image.Image, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the second picture holds numbers in [0, 1]."""
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second.astype(np.float64) * 255) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


@pytest.fixture(scope="module")
def folder(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.x folder by diffusers' save_pretrained."""
    path = tmp_path_factory.mktemp("published") / "model"
    twins.of("sd1").save(path)
    return path


def test_the_usual_lines_paint_and_save(folder: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), use_auth_token=True).to("cpu")
    image = pipe("A beautiful sunset over the ocean", guidance_scale=7.5, num_inference_steps=2, height=32, width=32)
    picture = image.images[0]
    picture.save(tmp_path / "sunset.png")
    assert picture.size == (32, 32)
    assert (tmp_path / "sunset.png").stat().st_size > 0


def test_a_loaded_folder_is_the_same_model(folder: Path, twins: Twins) -> None:
    request = Request(prompt="a cat", seed=3, num_inference_steps=3, width=32, height=32, sampler="euler")
    pipeline, built = Pipeline.load(folder, device="cpu"), twins.of("sd1").ours
    for name, network in pipeline.bundle.networks().items():
        weights = built.bundle.networks()[name].state_dict()
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    loaded = pipeline.paint(request.replace({"guidance_scale": 5.0}))[0]
    assert loaded.image.tobytes() == built.paint(request.replace({"guidance_scale": 5.0}))[0].image.tobytes()
    assert loaded.recipe.model.sha256
    assert loaded.recipe.model.path == str(folder)


def test_generators_seeds_and_lists(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)

    def images(prompt: str | list[str], count: int = 1) -> list[bytes]:
        generator = torch.Generator().manual_seed(7)
        out = pipe(
            prompt,
            num_inference_steps=2,
            height=32,
            width=32,
            generator=generator,
            num_images_per_prompt=count,
            negative_prompt="bad",
        )
        return [image.tobytes() for image in out.images]

    assert images("a cat") == images("a cat")
    assert images(["a cat", "a dog"])[0] == images("a cat")[0]
    assert len(set(images("a cat", 3))) == 3
    with pytest.raises(InvalidInput, match="negative_prompt"):
        pipe(["a", "b"], negative_prompt=["c"], num_inference_steps=1)
    with pytest.raises(GouacheError, match="num_inference_steps"):
        pipe("a", num_inference_steps=0)


def test_missing_card_and_missing_weights_name_the_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="gouache doctor"):
            pipe.to("cuda")
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    with pytest.raises(GouacheError, match="CompVis/stable-diffusion-v1-4") as error:
        StableDiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", use_auth_token=True)
    assert error.value.exit_code == 3
    with pytest.raises(GouacheError, match="absent"):
        StableDiffusionPipeline.from_pretrained("./absent/folder")


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -1.0, 1.5])
def test_a_guidance_scale_means_what_diffusers_means(twins: Twins, family: str, scale: float) -> None:
    """The kind: a number that two programs take under one name and read differently. diffusers guides above 1 only;
    at 1 and below it runs the prompt alone, which recipes for distilled models (Turbo, Lightning, LCM) write as 0.0."""
    pair = twins.of(family)
    schedule = "trailing" if family == "sd2" else "leading"
    defaults = GenerationDefaults(width=32, height=32, sampler="euler", schedule=schedule)
    alias = StableDiffusionPipeline(Pipeline(replace(pair.ours.bundle, defaults=defaults)))
    generator = torch.Generator().manual_seed(21)
    out = alias("a red fire engine", num_inference_steps=4, guidance_scale=scale, generator=generator)
    request = out.painted[0].recipe.request
    assert request.guidance_scale == max(scale, 1.0)
    theirs = pair.text_to_image(request.replace({"guidance_scale": scale}))
    assert psnr(out.images[0], theirs) >= 55
    if scale < 1 and family == "sd1":
        (native,) = alias.pipeline.paint(request.replace({"guidance_scale": 0.0}))
        assert psnr(native.image, theirs) < 50, "0 of our own is the negative prompt alone"
        assert any("guidance_scale 0" in note for note in native.recipe.notes)


def test_guiders_by_diffusers_names(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    settings = {"num_inference_steps": 2, "height": 32, "width": 32, "generator": torch.Generator().manual_seed(3)}

    def request(**more: float) -> Request:
        return pipe("a cat", **settings, **more).painted[0].recipe.request  # type: ignore[arg-type]

    plain = request()
    assert (plain.pag, plain.sag, plain.freeu) == (None, None, None)
    pipe.set_pag_applied_layers(["mid", "up_blocks.0"])
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found = request(pag_scale=3.0, pag_adaptive_scale=0.01, sag_scale=0.75)
    assert found.pag == Pag(scale=3.0, adaptive_scale=0.01, layers=("mid", "up_blocks.0"))
    assert found.sag == Sag(scale=0.75)
    assert found.freeu == FreeU(s1=0.9, s2=0.2, b1=1.2, b2=1.4, version=1)
    pipe.disable_freeu()
    assert request() == plain


@pytest.mark.parametrize("family", ["sd1", "sdxl-refiner"])
@pytest.mark.parametrize(("sampler", "schedule"), [("euler", "trailing"), ("ddim", "leading")])
def test_a_saved_twin_does_not_tell_which_test_ran_before(
    own_twins: Twins, tmp_path: Path, family: str, sampler: str, schedule: str
) -> None:
    pair, file = own_twins.of(family), "scheduler/scheduler_config.json"
    pair.save(tmp_path / "first")
    pair.use_scheduler(Request(prompt="", sampler=sampler, schedule=schedule))
    pair.save(tmp_path / "later")
    assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "later" / file).read_bytes()
    assert pair.theirs.scheduler.config.timestep_spacing == schedule, "the test that set it keeps it"
