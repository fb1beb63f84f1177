"""Pictures that a model reads by itself: Stable unCLIP, and SDXL's pooled text; diffusers is the judge."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_unclip_img2img as module
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.convert import convert
from gouache.checkpoints.identify import identify
from gouache.diffusion.rng import ImageNoise, ImageSeed
from gouache.errors import IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `vae_scale_factor` "),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SIDE, WIDTH = 32, 24
"""Edge of the painting; width of a picture's embedding, which is that of SDXL's pooled text here."""
SIZE = {"width": SIDE, "height": SIDE}
BASE = Request(
    prompt="a red fire engine",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=5,
    guidance_scale=4.0,
    sampler="euler",
    schedule="leading",
)


def drawn(network: Any, seed: int, spread: float) -> Any:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * spread)
    return network.eval()


@pytest.fixture(scope="module")
def tower() -> CLIPVisionModelWithProjection:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=WIDTH, hidden_act="gelu", **shape)
    return drawn(CLIPVisionModelWithProjection(config), 5, 0.2)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    y, x = np.mgrid[0:33, 0:45] / 32
    pixels = np.stack([x, (x + y > 1).astype(float), np.cos(3 * y)], -1).clip(0, 1) * 255
    path = tmp_path_factory.mktemp("pictures") / "apple.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


class Unclip:
    """Stable unCLIP in both programs; ours is loaded from the folder that theirs saved."""

    def __init__(self, pair: Pair, tower: Any, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        config = {key: value for key, value in pair.theirs.unet.config.items() if key != "_use_default_values"}
        config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
        unet = diffusers.UNet2DConditionModel.from_config(config)
        unet.load_state_dict(pair.theirs.unet.state_dict(), strict=False)
        drawn(unet.class_embedding, 9, 0.2)
        normalizer = drawn(StableUnCLIPImageNormalizer(embedding_dim=WIDTH), 7, 0.3)
        self.theirs = diffusers.StableUnCLIPImg2ImgPipeline(
            feature_extractor=CLIPImageProcessor(size=28, crop_size=28),
            image_encoder=tower,
            image_normalizer=normalizer,
            image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=pair.theirs.tokenizer,
            text_encoder=pair.theirs.text_encoder,
            unet=unet.eval(),
            scheduler=pair.theirs.scheduler,
            vae=pair.theirs.vae,
        )
        self.theirs.set_progress_bar_config(disable=True)
        pair.use_scheduler(BASE)
        self.theirs.scheduler = pair.theirs.scheduler
        self.theirs.save_pretrained(folder)
        self.ours = Pipeline.load(folder)


@pytest.fixture(scope="module")
def unclip(twins: Twins, tower: Any, tmp_path_factory: pytest.TempPathFactory) -> Unclip:
    return Unclip(twins.of("sd2"), tower, tmp_path_factory.mktemp("unclip") / "model")


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


@pytest.mark.parametrize("level", [0, 300])
def test_a_variation_is_diffusers(unclip: Unclip, picture: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = unclip.pair
    request = BASE.replace(
        {"image_prompts": [{"images": picture, "noise_level": level}], "width": SIDE, "height": SIDE}
    )
    noise = ImageNoise([ImageSeed(request.seed or 0)]).apart("picture", (WIDTH,))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.clone())
    pair.use_scheduler(request)
    unclip.theirs.scheduler = pair.theirs.scheduler
    # This one of their pipelines takes given latents as they are.
    latents = pair.scaled(BASE, pair.noise(request)) * pair.theirs.scheduler.init_noise_sigma
    theirs = unclip.theirs(
        **pair.settings(request),
        image=Image.open(picture).convert("RGB"),
        noise_level=level,
        latents=latents,
        height=SIDE,
        width=SIDE,
    ).images[0]
    (found,) = unclip.ours.paint(request)
    assert psnr(found.image, theirs) >= 60
    assert [(one.kind, one.name) for one in found.recipe.adapters] == [("image-encoder", "image_encoder")]
    other = request.replace({"image_prompts": [{"images": picture, "noise_level": 900}]})
    assert unclip.ours.paint(other)[0].recipe.steps != found.recipe.steps


def test_what_an_unclip_model_is_and_cant_do(unclip: Unclip, picture: str, tmp_path: Path) -> None:
    identity = identify(unclip.folder)
    assert (identity.family, identity.variant) == ("sd2", "unclip")
    for change, words in (
        ({}, "image_prompts: given no picture"),
        ({"image_prompts": [{"images": picture}] * 2}, "several pictures without an adapter"),
        ({"image_prompts": [{"images": picture, "mask": picture}]}, "given a mask"),
    ):
        with pytest.raises(InvalidInput, match=words):
            unclip.ours.paint(BASE.replace(change))
    with pytest.raises(IncompatibleCheckpoint, match="an unCLIP model, which has an image encoder"):
        convert(unclip.folder, tmp_path / "a.safetensors", to="single-file")
    shutil.copytree(unclip.folder, tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "image_noising_scheduler")
    with pytest.raises(ModelNotFound, match="the levels of noise on a picture's embedding"):
        Pipeline.load(tmp_path / "torn").paint(BASE.replace({"image_prompts": [{"images": picture}]}))


def test_a_picture_of_a_batch_is_the_picture_made_alone(unclip: Unclip, picture: str) -> None:
    request = BASE.replace({"image_prompts": [{"images": picture, "noise_level": 500}], **SIZE})
    together = unclip.ours.paint(request.replace({"count": 2}))
    alone = unclip.ours.paint(together[1].recipe.request)[0]
    assert (alone.recipe.steps, alone.recipe.pixels) == (together[1].recipe.steps, together[1].recipe.pixels)
    portable = unclip.ours.paint(request.replace({"count": 2, "determinism": "portable"}))
    assert psnr(portable[1].image, np.asarray(alone.image) / 255) >= 50


def test_sdxl_takes_a_picture_for_its_pooled_text(twins: Twins, tower: Any, picture: str, tmp_path: Path) -> None:
    """As "ReVision": the embedding stands where the second encoder's pooled text stood."""
    pair = twins.of("sdxl")
    tower.save_pretrained(tmp_path / "clip_vision" / "bigG")
    ours = Pipeline(pair.ours.bundle)
    ours.adapters.folder = AdapterFolder(tmp_path)
    request = BASE.replace({"image_prompts": [{"images": picture}]})
    pair.use_scheduler(request)
    pipeline = pair.variant("StableDiffusionXLPipeline")
    texts = pipeline.encode_prompt(
        request.prompt, negative_prompt=request.negative_prompt, do_classifier_free_guidance=True
    )
    pixels = CLIPImageProcessor(size=28, crop_size=28)(Image.open(picture).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        embedding = tower(pixels.pixel_values).image_embeds
    theirs = pipeline(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        pooled_prompt_embeds=embedding,
        negative_pooled_prompt_embeds=texts[3],
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        latents=pair.scaled(BASE, pair.noise(request)),
        height=SIDE,
        width=SIDE,
        output_type="np",
    ).images[0]
    assert psnr(ours.paint(request)[0].image, theirs) >= 60
    off = ours.paint(request.replace({"image_prompts": [{"images": picture, "weight": 0.0}]}))[0]
    assert off.recipe.steps == ours.paint(BASE)[0].recipe.steps
    ours.adapters.folder = AdapterFolder(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="one whose embeddings are 24 wide"):
        ours.paint(request)
