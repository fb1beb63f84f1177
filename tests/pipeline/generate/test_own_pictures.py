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
from safetensors.torch import save_file
from tests.pipeline.twins import BETAS
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.convert import convert
from gouache.checkpoints.detect import CONFIG_KEY
from gouache.checkpoints.identify import identify
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.shapes import Naming
from gouache.config import Config
from gouache.diffusion.rng import ImageNoise, ImageSeed
from gouache.errors import IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.models.text.clip import TextEncoder
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


OPEN_CLIP = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.patch_embedding.": "conv1.",
    "vision_model.pre_layrnorm.": "ln_pre.",
    "vision_model.post_layernorm.": "ln_post.",
    "vision_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def as_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' vision tower under OpenCLIP's names."""
    found = {"proj": state.pop("visual_projection.weight").T.contiguous()}
    for name in [one for one in state if "q_proj" in one]:
        thirds = [state.pop(name.replace("q_proj", one)) for one in ("q_proj", "k_proj", "v_proj")]
        state[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(thirds)
    for name, tensor in state.items():
        for theirs, ours in OPEN_CLIP.items():
            name = name.replace(theirs, ours)
        found[name] = tensor
    return found


def test_one_file_paints_as_the_folder(unclip: Unclip, picture: str, tmp_path: Path) -> None:
    """With its tower under OpenCLIP's names, as Stable unCLIP was published."""
    shape = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=WIDTH, hidden_act="quick_gelu", **shape)
    other = drawn(CLIPVisionModelWithProjection(config), 8, 0.2)
    folder, file = tmp_path / "model", tmp_path / "model.safetensors"
    shutil.copytree(unclip.folder, folder)
    other.save_pretrained(folder / "image_encoder")
    bundle = unclip.ours.bundle
    unet, vae, text = bundle.unet, bundle.vae, bundle.text.encoders[0]
    assert isinstance(text, TextEncoder)
    parts: tuple[tuple[str, str, Naming, nn.Module, Config], ...] = (
        ("unet", "model.diffusion_model.", "ldm", unet, unet.config),
        ("vae", "first_stage_model.", "ldm", vae, vae.config),
        ("text_encoder", "cond_stage_model.transformer.", "clip_model", text, text.config),
    )
    tensors: dict[str, torch.Tensor] = {}
    metadata = {}
    for name, prefix, naming, network, config_of_it in parts:
        spell = speller(config_of_it, naming)
        tensors |= {prefix + spell(key).name: value.contiguous() for key, value in network.state_dict().items()}
        metadata[CONFIG_KEY + name] = config_of_it.to_json()
    statistics = unclip.theirs.image_normalizer
    tensors |= {f"embedder.model.visual.{key}": value for key, value in as_open_clip(other.state_dict()).items()}
    tensors |= {"noise_augmentor.data_mean": statistics.mean.data, "noise_augmentor.data_std": statistics.std.data}
    save_file(tensors, file, metadata)
    request = BASE.replace({"image_prompts": [{"images": picture, "noise_level": 300}], **SIZE})
    found, wanted = (Pipeline.load(path).paint(request)[0].recipe for path in (file, folder))
    assert (identify(file).family, identify(file).variant) == ("sd2", "unclip")
    assert (found.steps, found.pixels) == (wanted.steps, wanted.pixels)
    assert found.adapters == ()
    save_file({key: value for key, value in tensors.items() if "data_std" not in key}, file, metadata)
    with pytest.raises(IncompatibleCheckpoint, match="an unCLIP model without its image encoder"):
        Pipeline.load(file)


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


@pytest.fixture(scope="module")
def variations(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Variations:
    return Variations(twins.of("sd1"), tmp_path_factory.mktemp("variations") / "model")


class Variations:
    """Image Variations in both programs: a U-Net that is shown a picture's embedding in place of a text."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        width = pair.theirs.unet.config.cross_attention_dim
        config = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=width, hidden_act="quick_gelu", **shape)
        self.theirs = diffusers.StableDiffusionImageVariationPipeline(
            vae=pair.theirs.vae,
            image_encoder=drawn(CLIPVisionModelWithProjection(config), 3, 0.3),
            unet=pair.theirs.unet,
            scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
            safety_checker=None,
            feature_extractor=CLIPImageProcessor(size=28, crop_size=28),
            requires_safety_checker=False,
        )
        self.theirs.set_progress_bar_config(disable=True)
        self.theirs.save_pretrained(folder)
        self.ours = Pipeline.load(folder)


WORDLESS = BASE.replace({"prompt": "", "negative_prompt": None})


def test_image_variations_is_diffusers(variations: Variations, picture: str) -> None:
    pair = variations.pair
    request = WORDLESS.replace({"image_prompts": [{"images": picture}], **SIZE})
    pair.use_scheduler(request)
    variations.theirs.scheduler = pair.theirs.scheduler
    theirs = variations.theirs(
        image=Image.open(picture).convert("RGB"),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        latents=pair.scaled(BASE, pair.noise(request)),
        height=SIDE,
        width=SIDE,
        output_type="np",
    ).images[0]
    (found,) = variations.ours.paint(request)
    assert psnr(found.image, theirs) >= 60
    assert [(one.kind, one.name) for one in found.recipe.adapters] == [("image-encoder", "image_encoder")]
    again = variations.ours.paint(found.recipe.request)[0]
    assert (again.recipe.steps, again.recipe.pixels) == (found.recipe.steps, found.recipe.pixels)
    others = [{"images": picture, "weight": 0.5}, {"images": picture, "noise_level": 600}]
    seen = {variations.ours.paint(request.replace({"image_prompts": [one]}))[0].recipe.steps for one in others}
    assert len({found.recipe.steps, *seen}) == 3


def test_what_image_variations_is_and_cant_do(variations: Variations, picture: str, tmp_path: Path) -> None:
    identity = identify(variations.folder)
    assert (identity.kind, identity.family, identity.variant) == ("model", "sd1", "variation")
    shown = WORDLESS.replace({"image_prompts": [{"images": picture}]})
    for request, words in (
        (WORDLESS, "image_prompts: given no picture"),
        (shown.replace({"prompt": "a cat"}), "prompt: given words.*no text encoder"),
        (shown.replace({"negative_prompt": "grey"}), "negative_prompt: given words"),
        (shown.replace({"image_prompts": [{"images": picture}] * 2}), "several pictures without an adapter"),
    ):
        with pytest.raises(InvalidInput, match=words):
            variations.ours.paint(request)
    with pytest.raises(IncompatibleCheckpoint, match="an Image Variations model, which has an image encoder"):
        convert(variations.folder, tmp_path / "a.safetensors", to="single-file")
