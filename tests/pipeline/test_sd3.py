"""Stable Diffusion 3 and 3.5 against diffusers' pipelines: a folder that diffusers wrote, the same noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_img2img as image_module
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_inpaint as inpaint_module
from PIL import Image
from tests.models.caching.test_block_cache import Rule

from gouache.checkpoints.load import load_bundle
from gouache.errors import GouacheError, InvalidInput, UnknownName
from gouache.pipeline.fields.guiders import Slg
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Mask, Request

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIDE = 32
KIND = "3.5 medium"
BASE = Request(
    prompt="a red fire engine on a hill",
    negative_prompt="blurry, grey",
    seed=11,
    num_inference_steps=10,
    max_sequence_length=16,
    guidance_scale=7,
)


def psnr(first: Image.Image, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the second picture holds numbers in [0, 1]."""
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize("kind", ["3 medium", "3.5 large", "3.5 medium"])
def test_text_to_image_is_diffusers_picture(sd3: Sd3Twins, kind: str, scale: float) -> None:
    request = BASE.replace({"guidance_scale": scale, "num_inference_steps": 6})
    (painted,) = sd3.ours(kind).paint(request)
    theirs = sd3.their_picture(sd3.theirs(kind), request)
    assert theirs.std() > 0.05, "the reference is nearly constant, agreement would say nothing"
    assert psnr(painted.image, theirs) >= 60
    assert "T5" in " ".join(painted.recipe.notes)


FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DPMSolverMultistepScheduler(**FLOW),
        diffusers.UniPCMultistepScheduler(**FLOW),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
    ],
    ids=["dpmpp_2m", "unipc", "shift by size", "karras"],
)
def test_folders_with_other_schedulers(sd3: Sd3Twins, tmp_path: Path, scheduler: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd3.path(KIND), folder)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    (painted,) = Pipeline.load(folder).paint(BASE)
    theirs = sd3.variant(KIND, "StableDiffusion3Pipeline", scheduler)
    assert psnr(painted.image, sd3.their_picture(theirs, BASE)) >= 60


@pytest.fixture
def given_noise(sd3: Sd3Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' posterior gives its mode, and its noise is ours."""
    for module in (image_module, inpaint_module):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: sd3.noise(BASE))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())  # noqa: ARG005


@pytest.mark.usefixtures("given_noise")
def test_image_to_image(sd3: Sd3Twins, picture: Path) -> None:
    request = BASE.replace({"init_image": str(picture), "strength": 0.6})
    (painted,) = sd3.ours(KIND).paint(request)
    theirs = sd3.variant(KIND, "StableDiffusion3Img2ImgPipeline")
    expected = sd3.their_picture(theirs, request, latents=None, image=Image.open(picture), strength=0.6)
    assert psnr(painted.image, expected) >= 60


@pytest.mark.usefixtures("given_noise")
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(sd3: Sd3Twins, picture: Path, mask: Path, strength: float) -> None:
    options = Mask(image=str(mask), blur=0, preserve=False)
    request = BASE.replace({"init_image": str(picture), "mask": options, "strength": strength})
    (painted,) = sd3.ours(KIND).paint(request)
    theirs = sd3.variant(KIND, "StableDiffusion3InpaintPipeline")
    inputs = {"image": Image.open(picture), "mask_image": Image.open(mask), "strength": strength}
    assert psnr(painted.image, sd3.their_picture(theirs, request, latents=None, **inputs)) >= 60


@pytest.mark.parametrize("layers", [("1",), ("mid",), ("transformer_blocks.0", "2")])
def test_skip_layer_guidance_is_diffusers(sd3: Sd3Twins, layers: tuple[str, ...]) -> None:
    """They act on steps strictly between the shares of theirs: here on the second to the sixth of ten."""
    request = BASE.replace({"slg": Slg(scale=2.8, layers=layers, start=0.1, end=0.6)})
    (painted,) = sd3.ours(KIND).paint(request)
    numbers = [1 if layer == "mid" else int(layer[-1]) for layer in layers]
    shares = {"skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.6, "skip_layer_guidance_scale": 2.8}
    theirs = sd3.their_picture(sd3.theirs(KIND), request, skip_guidance_layers=numbers, **shares)
    assert psnr(painted.image, theirs) >= 60
    assert psnr(painted.image, sd3.their_picture(sd3.theirs(KIND), request)) < 50


def test_the_first_block_cache_follows_its_rule_on_diffusers_pipeline(sd3: Sd3Twins) -> None:
    request = BASE.replace({"guidance_scale": 1.0, "num_inference_steps": 8})
    theirs = sd3.theirs(KIND)
    network = theirs.transformer

    def painted(threshold: float) -> tuple[np.ndarray, Rule]:
        rule = Rule(network.pos_embed, network.transformer_blocks[0], network.norm_out, threshold)
        try:
            return sd3.their_picture(theirs, request), rule
        finally:
            rule.undo()

    plain, evaluated = painted(0.0)
    # Halfway between two changes from step to step: some are reused, and none is decided by rounding.
    ordered = sorted(evaluated.changes)
    threshold = (ordered[3] + ordered[4]) / 2
    reference, rule = painted(threshold)
    assert 1 <= sum(rule.reused) < len(rule.reused) == 8
    assert float(np.abs(reference - plain).mean()) > 0.002, "reusing changes the picture"
    cached = request.replace({"block_cache": {"threshold": threshold}})
    assert psnr(sd3.ours(KIND).paint(cached)[0].image, reference) >= 60


def test_a_picture_replays_bit_for_bit(sd3: Sd3Twins, tmp_path: Path) -> None:
    (painted,) = sd3.ours(KIND).paint(BASE.replace({"num_inference_steps": 2, "height": 16, "width": 48}))
    file = tmp_path / "picture.png"
    file.write_bytes(painted.encode())
    assert painted.image.size == (48, 16)
    assert replay(file, model=str(sd3.path(KIND))).same


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "heunpp2", "unipc", "dpmpp_2m_sde", "ddim"])
def test_other_samplers_walk_the_models_levels(sd3: Sd3Twins, sampler: str) -> None:
    """A flow begins at noise alone, where the usual lists of these samplers spend far too many steps."""
    request = BASE.replace({"sampler": sampler, "num_inference_steps": 4})
    (painted,) = sd3.ours(KIND).paint(request)
    assert painted.recipe.request.schedule == "model"
    pixels = np.asarray(painted.image, float)
    assert pixels.std() > 5


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"slg": {"layers": ["up"]}}, UnknownName, "slg.layers"),
        ({"slg": {"layers": ["3"]}}, UnknownName, "slg.layers"),
        ({"pag": {}}, InvalidInput, "pag: .*a model with a U-Net"),
        ({"sag": {}}, InvalidInput, "sag"),
        ({"freeu": {}}, InvalidInput, "freeu"),
        ({"seamless": "both"}, InvalidInput, "seamless"),
        ({"control": [{"model": "canny", "image": "a.png", "guess": True}]}, InvalidInput, r"control\.guess"),
        ({"control": [{"model": "a", "image": "a.png", "preprocessor": "inpaint"}]}, InvalidInput, "inpaint"),
        ({"control": [{"model": "a", "image": "a.png", "control_type": "canny"}]}, InvalidInput, "control_type"),
        (
            {"regions": [{"prompt": "a cup", "box": (0.0, 0.0, 0.5, 1.0)}]},
            InvalidInput,
            "(?s)regions: .*sd3.*cross-attention.*Leave them out",
        ),
        ({"width": 104}, InvalidInput, "at most 96 pixels"),
        ({"hires": {"scale": 4.0}}, InvalidInput, "at most 96 pixels"),
        ({"size_condition": {"crop_left": 4}}, InvalidInput, "size_condition"),
        ({"prior": {"enabled": True}}, InvalidInput, "prior"),
        ({"sampler": "heun", "num_inference_steps": 4}, InvalidInput, "sampler: given heun, .* in one step"),
    ],
)
def test_what_it_has_not_is_refused(sd3: Sd3Twins, changes: Any, error: type[GouacheError], words: str) -> None:
    with pytest.raises(error, match=words):
        sd3.ours(KIND).resolve(BASE.replace(changes))


def test_sizes_are_multiples_of_a_patch(sd3: Sd3Twins) -> None:
    resolved = sd3.ours(KIND).resolve(BASE.replace({"width": 45, "height": 20}))
    assert (resolved.width, resolved.height) == (48, 24)


def test_half_precision_paints(sd3: Sd3Twins) -> None:
    """bfloat16 has three digits: the picture is a like one."""
    pipeline = Pipeline.load(sd3.path(KIND), dtype=torch.bfloat16)
    request = BASE.replace({"guidance_scale": 1.0, "num_inference_steps": 4})
    (half,) = pipeline.paint(request)
    (full,) = sd3.ours(KIND).paint(request)
    assert psnr(half.image, np.asarray(full.image) / 255) > 25


def test_networks_that_take_turns_paint_the_same_picture(sd3: Sd3Twins, picture: Path) -> None:
    """At most one of them has numbers at a time, and none that isn't used keeps any."""
    pipeline = Pipeline.load(sd3.path(KIND), sequential=True)
    networks = [pipeline.bundle.unet, pipeline.bundle.vae, *pipeline.bundle.text.encoders]

    def in_memory() -> int:
        return sum(not next(network.parameters()).is_meta for network in networks)

    assert in_memory() == 0
    request = BASE.replace({"num_inference_steps": 2, "init_image": str(picture), "strength": 1.0})
    counts, painted = [], None
    for event in pipeline.run(request):
        counts.append(in_memory())
        painted = event
    assert set(counts) == {1}
    assert isinstance(painted, Painted)
    (whole,) = sd3.ours(KIND).paint(request)
    assert painted.recipe.pixels == whole.recipe.pixels
    assert pipeline.bundle.dtype == torch.float32
    with pytest.raises(InvalidInput, match="dtype"):
        load_bundle(sd3.path(KIND), sequential=True)
