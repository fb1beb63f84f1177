"""Whole runs against diffusers' own pipelines: same random tiny weights, same noise, 20 steps, guidance 7.5."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

# diffusers' scheduler hands torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

PROMPT, NEGATIVE = "a red fire engine on a hill", "blurry, grey"
# Levels that fall on whole timesteps: between them diffusers interpolates sigma, and we (as k-diffusion) its logarithm.
SCHEDULES = {"sd1": "leading", "sd2": "trailing", "sdxl": "leading"}


def psnr(first: Image.Image, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the second picture holds numbers in [0, 1]."""
    ours = np.asarray(first, np.float64) / 255
    error = float(np.mean((ours - np.round(second.astype(np.float64) * 255) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_text_to_image_is_diffusers_picture(twins: Twins, family: str) -> None:
    request = Request(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        seed=11,
        num_inference_steps=20,
        guidance_scale=7.5,
        sampler="euler",
        schedule=SCHEDULES[family],
    )
    pair = twins.of(family)
    (painted,) = pair.ours.paint(request)
    theirs = pair.text_to_image(request)
    assert theirs.std() > 0.05, "the reference is nearly constant, agreement would say nothing"
    assert psnr(painted.image, theirs) >= 60


def test_sdxl_without_a_negative_prompt_uses_zeros_as_diffusers_does(twins: Twins) -> None:
    request = Request(
        prompt=PROMPT, seed=12, num_inference_steps=20, guidance_scale=7.5, sampler="euler", schedule="leading"
    )
    pair = twins.of("sdxl")
    (painted,) = pair.ours.paint(request)
    assert psnr(painted.image, pair.text_to_image(request)) >= 60


def test_ddim_and_guidance_rescale_agree(twins: Twins) -> None:
    request = Request(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        seed=13,
        num_inference_steps=20,
        guidance_scale=7.5,
        guidance_rescale=0.7,
        sampler="ddim",
        schedule="leading",
    )
    pair = twins.of("sd2")
    (painted,) = pair.ours.paint(request)
    assert psnr(painted.image, pair.text_to_image(request)) >= 60


def test_no_guidance_agrees(twins: Twins) -> None:
    request = Request(
        prompt=PROMPT, seed=14, num_inference_steps=20, guidance_scale=1.0, sampler="euler", schedule="leading"
    )
    pair = twins.of("sd1")
    (painted,) = pair.ours.paint(request)
    assert psnr(painted.image, pair.text_to_image(request)) >= 60


def test_the_measure_sees_a_difference(twins: Twins) -> None:
    pair = twins.of("sd1")
    request = Request(prompt=PROMPT, seed=15, num_inference_steps=4, sampler="euler", schedule="leading")
    (painted,) = pair.ours.paint(request)
    other = pair.text_to_image(request.replace({"prompt": "something else"}))
    assert psnr(painted.image, other) < 50
    assert torch.is_tensor(pair.ours.bundle.unet.get_parameter("conv_in.weight"))
