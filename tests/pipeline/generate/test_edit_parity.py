"""Edits against diffusers' own pipelines: image to image, both kinds of inpainting, instruct, depth.

Their posterior gives its mode and their noise is ours; everything else is each program's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_depth2img as depth_module
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as image_module
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint_module
from PIL import Image
from torch import Tensor

from gouache.pipeline.request import Mask, Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword",
    "ignore:The `vae_scale_factor` ",
)

SIDE = 32
BASE = Request(
    prompt="a red fire engine",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=20,
    guidance_scale=7.5,
    sampler="euler",
    schedule="leading",
    strength=0.7,
)


@pytest.fixture
def given_noise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes diffusers draw the noise it is told to."""

    def use(noise: Tensor) -> None:
        for module in (image_module, inpaint_module, depth_module):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.clone())
        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())  # noqa: ARG005

    return use


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def run_theirs(pair: Pair, name: str, request: Request, given_noise: Any, **inputs: Any) -> np.ndarray:
    pair.use_scheduler(request)
    # At full strength they start from noise alone, scaled in their own way.
    noise = pair.noise(request)
    given_noise(pair.scaled(request, noise) if request.strength == 1.0 else noise)
    result: np.ndarray = pair.variant(name)(**pair.settings(request), **inputs).images[0]
    return result


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_image_to_image(twins: Twins, given_noise: Any, picture: Path, family: str, monkeypatch: Any) -> None:
    pair = twins.of(family)
    request = BASE.replace({"init_image": str(picture)})
    (painted,) = pair.ours.paint(request)
    xl = "XL" if family == "sdxl" else ""
    if xl:
        from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as xl_module

        monkeypatch.setattr(xl_module, "randn_tensor", lambda *_, **__: pair.noise(request))
    inputs = {"image": Image.open(picture), "strength": 0.7}
    theirs = run_theirs(pair, f"StableDiffusion{xl}Img2ImgPipeline", request, given_noise, **inputs)
    assert psnr(painted.image, theirs) >= 60


def test_inpainting_with_a_plain_model(twins: Twins, given_noise: Any, picture: Path, mask: Path) -> None:
    pair = twins.of("sd1")
    request = BASE.replace({"init_image": str(picture), "mask": Mask(image=str(mask), blur=0, preserve=False)})
    (painted,) = pair.ours.paint(request)
    theirs = run_theirs(
        pair,
        "StableDiffusionInpaintPipeline",
        request,
        given_noise,
        image=Image.open(picture),
        mask_image=Image.open(mask),
        strength=0.7,
        height=SIDE,
        width=SIDE,
    )
    assert psnr(painted.image, theirs) >= 60


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting_with_its_own_model(
    twins: Twins, given_noise: Any, picture: Path, mask: Path, strength: float
) -> None:
    pair = twins.of("sd1", 5)
    options = Mask(image=str(mask), blur=0, preserve=False)
    request = BASE.replace({"init_image": str(picture), "mask": options, "strength": strength})
    (painted,) = pair.ours.paint(request)
    theirs = run_theirs(
        pair,
        "StableDiffusionInpaintPipeline",
        request,
        given_noise,
        image=Image.open(picture),
        mask_image=Image.open(mask),
        strength=strength,
        height=SIDE,
        width=SIDE,
    )
    assert psnr(painted.image, theirs) >= 60


@pytest.mark.parametrize("image_scale", [1.0, 1.8])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_instruct(twins: Twins, given_noise: Any, picture: Path, family: str, image_scale: float) -> None:
    """The kind: whatever a family's U-Net takes beside latents and text (SDXL's pooled vector with its size numbers)
    belongs to its edits too."""
    pair = twins.of(family, 4)
    request = BASE.replace({"init_image": str(picture), "image_guidance_scale": image_scale, "num_inference_steps": 5})
    (painted,) = pair.ours.paint(request)
    pair.use_scheduler(request)
    xl = "XL" if family == "sdxl" else ""
    theirs = run_theirs(
        pair,
        f"StableDiffusion{xl}InstructPix2PixPipeline",
        request,
        given_noise,
        image=Image.open(picture),
        image_guidance_scale=image_scale,
        latents=pair.scaled(request, pair.noise(request)),
        **({"height": SIDE, "width": SIDE} if xl else {}),
    )
    assert psnr(painted.image, theirs) >= 60


SDXL_REQUESTS: dict[str, dict[str, Any]] = {
    "several at once": {"count": 2, "determinism": "portable"},
    "several in turn": {"count": 2},
    "no negative prompt": {"negative_prompt": ""},
    "a long prompt": {"prompt": "a red fire engine, " * 40},
    "a long negative prompt": {"negative_prompt": "grey, " * 90},
    "prompt editing": {"prompt": "a [red:blue:0.5] fire engine"},
    "no guidance": {"guidance_scale": 1.0},
    "the picture weighs nothing": {"image_guidance_scale": 0.0},
    "a mask": {"mask": Mask(fill="original")},
    "other sizes": {"width": 48, "height": 24},
    "a second pass": {"hires": {"scale": 1.5, "upscaler": "lanczos"}},
    "seamless": {"seamless": "both"},
    "an ancestral sampler": {"sampler": "euler_a"},
    "clip skip": {"clip_skip": 2},
}


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("name", SDXL_REQUESTS)
def test_sdxl_edits_with_whatever_a_request_asks(
    twins: Twins, picture: Path, mask: Path, name: str, channels: int
) -> None:
    """Instruct and inpainting networks of SDXL paint it."""
    wanted = {**SDXL_REQUESTS[name], "init_image": str(picture), "num_inference_steps": 2}
    if "mask" in wanted:
        wanted["mask"] = Mask(image=str(mask), blur=0)
    request = BASE.replace(wanted)
    painted = twins.of("sdxl", channels).ours.paint(request)
    assert len(painted) == request.count
    assert all(len(set(one.image.tobytes())) > 1 for one in painted)


def test_depth(twins: Twins, given_noise: Any, picture: Path, tmp_path: Path) -> None:
    pair = twins.of("sd1", 1)
    values = np.linspace(0, 255, SIDE).astype(np.uint8)[None].repeat(SIDE, 0)
    depth = tmp_path / "depth.png"
    Image.fromarray(values).save(depth)
    request = BASE.replace({"init_image": str(picture), "depth_image": str(depth)})
    (painted,) = pair.ours.paint(request)
    theirs = run_theirs(
        pair,
        "StableDiffusionDepth2ImgPipeline",
        request,
        given_noise,
        image=Image.open(picture),
        strength=0.7,
        depth_map=torch.from_numpy(values.copy())[None].float(),
    )
    assert psnr(painted.image, theirs) >= 60
