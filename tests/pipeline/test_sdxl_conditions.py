"""What SDXL is told beside the prompt, with diffusers' own pipeline as the judge.

The kind of fault: an input of the network that a request can't reach, or that is filled in without being asked: an
explicit empty negative prompt replaced by zeros, the second encoder's text, original size, crop and target size.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from gouache import StableDiffusionPipeline
from gouache.checkpoints.convert import convert
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT = "a red fire engine"
BASE = {"prompt": PROMPT, "num_inference_steps": 3, "sampler": "euler", "schedule": "leading"}
SIZES: dict[str, Any] = {"original_size": (20, 24), "crops_coords_top_left": (3, 5), "target_size": (40, 48)}
OUR_SIZES = {
    "original_height": 20,
    "original_width": 24,
    "crop_top": 3,
    "crop_left": 5,
    "target_height": 40,
    "target_width": 48,
}


def psnr(first: Image.Image, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the second picture holds numbers in [0, 1]."""
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second.astype(np.float64) * 255) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def request_of(**changes: Any) -> Request:
    return Request.from_dict({**BASE, "guidance_scale": 6.0, "seed": 5, **changes}, where="request")


@pytest.mark.parametrize("negative", [None, "", " ", "blurry"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_negative_prompt_that_is_given_is_encoded(twins: Twins, family: str, negative: str | None) -> None:
    pair = twins.of(family)
    request = request_of(negative_prompt=negative)
    (painted,) = pair.ours.paint(request)
    assert psnr(painted.image, pair.text_to_image(request)) >= 55
    (again,) = pair.ours.paint(Recipe.from_dict(json.loads(painted.recipe.to_json()), where="recipe").request)
    assert again.recipe.pixels == painted.recipe.pixels


def test_an_empty_and_no_negative_prompt_differ_for_sdxl_alone(twins: Twins) -> None:
    for family in ("sd1", "sd2", "sdxl"):
        found = [twins.of(family).ours.paint(request_of(negative_prompt=text))[0] for text in (None, "")]
        assert (found[0].recipe.pixels == found[1].recipe.pixels) == (family != "sdxl")


@pytest.mark.parametrize("version", [1, 2])
def test_older_recipes_meant_none_by_an_empty_one(twins: Twins, version: int) -> None:
    (painted,) = twins.of("sdxl").ours.paint(request_of())
    data = json.loads(painted.recipe.to_json())
    data["recipe"], data["request"]["negative_prompt"] = version, ""
    (again,) = twins.of("sdxl").ours.paint(Recipe.from_dict(data, where="recipe").request)
    assert again.recipe.pixels == painted.recipe.pixels


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"prompt_2": "a blue boat"}, {"prompt_2": "a blue boat"}),
        ({"negative_prompt": "grey", "negative_prompt_2": "dark"}, {"negative_prompt_2": "dark"}),
        (
            {"prompt_2": "a blue boat", "negative_prompt": "grey", "negative_prompt_2": "dark"},
            {"prompt_2": "a blue boat", "negative_prompt_2": "dark"},
        ),
        ({"size_condition": OUR_SIZES}, SIZES),
        ({"size_condition": {"original_height": 20, "original_width": 24}}, {"original_size": (20, 24)}),
        ({"size_condition": {"crop_top": 16}}, {"crops_coords_top_left": (16, 0)}),
        ({"size_condition": {"crop_left": 16}}, {"crops_coords_top_left": (0, 16)}),
        ({"size_condition": {"target_height": 512, "target_width": 64}}, {"target_size": (512, 64)}),
        ({"prompt_2": "a boat", "size_condition": OUR_SIZES}, {"prompt_2": "a boat", **SIZES}),
    ],
)
def test_second_prompt_and_sizes_are_diffusers(twins: Twins, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    pair = twins.of("sdxl")
    request = request_of(**ours)
    (painted,) = pair.ours.paint(request)
    assert psnr(painted.image, pair.text_to_image(request, **theirs)) >= 55
    (plain,) = pair.ours.paint(request_of(negative_prompt=ours.get("negative_prompt")))
    assert plain.recipe.pixels != painted.recipe.pixels, "otherwise agreement says nothing"


def test_the_alias_takes_diffusers_names(twins: Twins) -> None:
    pair = twins.of("sdxl")
    defaults = GenerationDefaults(width=32, height=32, sampler="euler", schedule="leading")
    alias = StableDiffusionPipeline(Pipeline(replace(pair.ours.bundle, defaults=defaults)))
    generator = torch.Generator().manual_seed(5)
    more: dict[str, Any] = {"prompt_2": "a blue boat", "negative_prompt_2": "dark", **SIZES}
    out = alias(PROMPT, num_inference_steps=3, guidance_scale=6.0, negative_prompt="", generator=generator, **more)
    request = out.painted[0].recipe.request
    assert (request.negative_prompt, request.size_condition is not None) == ("", True)
    assert psnr(out.images[0], pair.text_to_image(request, **more)) >= 55


def test_texts_of_several_lengths_are_filled_up_with_empty_chunks(twins: Twins) -> None:
    pipeline = twins.of("sdxl").ours
    long = "a red fire engine on a hill, " * 15
    for changes in ({"prompt": long, "prompt_2": "a boat"}, {"prompt_2": long}, {"negative_prompt_2": long}):
        (painted,) = pipeline.paint(request_of(**changes))
        (again,) = pipeline.paint(painted.recipe.request)
        assert again.recipe.pixels == painted.recipe.pixels
    editing = request_of(prompt="a [cat:dog:2] AND a tree", prompt_2="a [boat:car:1]")
    assert pipeline.paint(editing)[0].recipe.pixels != pipeline.paint(request_of())[0].recipe.pixels
    with pytest.raises(InvalidInput, match="prompt_2"):
        pipeline.paint(request_of(prompt="a AND b AND c", prompt_2="a AND b"))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_2": "a boat"},
        {"negative_prompt_2": "dark"},
        {"size_condition": {}},
        {"size_condition": {"crop_top": 1}},
        {"size_condition": {"aesthetic_score": 5.0}},
    ],
)
def test_other_models_refuse_them_by_name(tiny: ModelBundle, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(InvalidInput, match=name):
        Pipeline(tiny).paint(request_of(**changes))


def test_tags_belong_into_the_first_prompt(twins: Twins) -> None:
    for name in ("prompt_2", "negative_prompt_2"):
        with pytest.raises(InvalidInput, match=name):
            twins.of("sdxl").ours.paint(request_of(**{name: "a boat <lora:x>"}))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("negative", [None, "", "grey"])
def test_instruct_models_of_sdxl_are_diffusers(
    twins: Twins, tmp_path: Path, negative: str | None, rescale: float
) -> None:
    pair = twins.of("sdxl", 4)
    noise = np.random.default_rng(2).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "start.png")
    request = request_of(
        negative_prompt=negative,
        init_image=str(tmp_path / "start.png"),
        image_guidance_scale=1.8,
        guidance_rescale=rescale,
    )
    (painted,) = pair.ours.paint(request)
    pair.use_scheduler(request)
    theirs = pair.variant("StableDiffusionXLInstructPix2PixPipeline")(
        **pair.settings(request),
        image=picture,
        image_guidance_scale=1.8,
        guidance_rescale=rescale,
        latents=pair.scaled(request, pair.noise(request)),
        height=32,
        width=32,
    )
    assert psnr(painted.image, theirs.images[0]) >= 55


@pytest.mark.parametrize("layout", ["diffusers", pytest.param("single-file", marks=pytest.mark.slow)])
def test_cosxl_edit_is_diffusers(twins: Twins, tmp_path: Path, layout: str) -> None:
    """EDM's instruct model, from diffusers' folder and as a single file: its U-Net takes normalised image latents."""
    diffusers = pytest.importorskip("diffusers")
    pair = twins.of("sdxl", 4)
    noise = np.random.default_rng(2).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "start.png")
    judge = pair.variant("StableDiffusionXLInstructPix2PixPipeline", is_cosxl_edit=True)
    judge.scheduler = diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0, sigma_max=120.0)
    judge.save_pretrained(tmp_path / "edit")
    model = tmp_path / "edit"
    if layout == "single-file":
        convert(tmp_path / "edit", tmp_path / "again", "diffusers")
        assert json.loads((tmp_path / "again/model_index.json").read_text())["is_cosxl_edit"] is True
        model = tmp_path / "edit.safetensors"
        convert(tmp_path / "again", model, "single-file")
    request = Request(
        prompt=PROMPT,
        init_image=str(tmp_path / "start.png"),
        num_inference_steps=3,
        guidance_scale=6.0,
        image_guidance_scale=1.5,
        seed=5,
    )
    theirs = judge(
        PROMPT,
        image=picture,
        num_inference_steps=3,
        guidance_scale=6.0,
        image_guidance_scale=1.5,
        latents=pair.noise(request),
        height=32,
        width=32,
        output_type="np",
    ).images[0]
    assert theirs.std() > 0.05
    (painted,) = Pipeline.load(model, device="cpu").paint(request)
    assert psnr(painted.image, theirs) >= 60
