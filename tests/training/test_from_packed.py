"""Going on from a packed model: its weights are the start, its other parts stay, and the run packs whole again."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import ModelToWrite, bundle_to_write, write_model
from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError, GouacheError, TrainingError
from gouache.models.bundle import ModelBundle
from gouache.models.configs import (
    DenoiserConfig,
    NoiseScheduleConfig,
    PriorConfig,
    QuantizerConfig,
    SentenceEncoderConfig,
    UNetConfig,
    UpscalerConfig,
    VAEConfig,
)
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline, fill, untrained_bundle
from gouache.pipeline.request import Request
from gouache.training.batches.encoded import TextStates
from gouache.training.config import TrainConfig, read_config
from gouache.training.pack import pack
from gouache.training.run import assemble_from_packed, train_stage
from gouache.training.stage import Ready
from gouache.training.stages.vae import DraftPainter
from gouache.training.state import checkpoints

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "square", "number", "a", *string.digits)
VAE = {
    "image_channels": 4,
    "latent_channels": 4,
    "channels": (16, 32),
    "layers_per_level": 1,
    "norm_groups": 8,
    "patch_size": 2,
    "middle_attention": False,
}
TOKENS = {
    "latent_channels": 4,
    "latent_size": 8,
    "features": 8,
    "width": 16,
    "blocks": 1,
    "levels": (5, 5, 5),
    "scales": (1, 2, 4),
    "residual_codes": 4,
}
PRIOR = {
    "vocabulary": 125,
    "groups": (1, 4, 16),
    "features": 8,
    "context_dim": 32,
    "pooled_dim": 32,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "neighbours": 2,
}
UNET = {
    "in_channels": 4,
    "draft_channels": 4,
    "out_channels": 4,
    "channels": (16, 32),
    "layers_per_level": 1,
    "transformer_layers": (0, 1),
    "heads": (2, 2),
    "context_width": 32,
    "pooled_width": 32,
    "norm_groups": 8,
}
COSINE = DenoiserConfig(parameterization="v", schedule=NoiseScheduleConfig(name="cosine"))
LOOP = {"batch_size": 8, "images": 32, "log_images": 16, "validate_images": 1000}
STAGE: dict[str, Any] = {"loop": LOOP, "optimizer": {"learning_rate": 1e-3, "warmup_images": 16}}
PARTS: dict[str, str] = {"vae": "vae", "tokens": "quantizer", "prior": "prior", "denoiser": "unet"}


def config_of(**changes: Any) -> TrainConfig:
    """Tables for all stages of the small model; `changes` replace keys of the denoiser's."""
    return TrainConfig.from_dict(
        {
            "data": {"size": 32, "examples": 8},
            "text": {"max_tokens": 8},
            "vae": {"network": {**VAE, "scale": 1.0}, **STAGE},
            "clip": STAGE,
            "tokens": {"network": TOKENS, **STAGE},
            "prior": {"network": {**PRIOR, "dropout": 0.1}, **STAGE},
            "denoiser": {"network": UNET, "timesteps": "logit_normal", "timestep_mean": -0.6, **STAGE, **changes},
        }
    )


def small_model() -> ModelToWrite:
    """A model of the pocket family with random weights, a memory, and int8 for three of its parts."""
    text = SentenceEncoderConfig(
        vocabulary_size=len(WORDS), width=32, inner_width=64, layers=1, heads=2, positions=8, max_tokens=8
    )
    vae = VAEConfig.from_dict({**VAE, "scale": (0.5, 0.6, 0.7, 0.8), "shift": (0.1, 0.0, -0.1, 0.2)})
    networks: list[nn.Module] = [
        UNet(UNetConfig.from_dict(UNET)),
        AutoencoderKL(vae),
        SentenceEncoder(text),
        Prior(PriorConfig.from_dict({**PRIOR, "memory": 5, "residuals": 64})),
        Quantizer(QuantizerConfig.from_dict(TOKENS)),
        Upscaler(UpscalerConfig(channels=8, blocks=1)),
    ]
    for seed, network in enumerate(networks):
        fill(network, torch.Generator().manual_seed(seed))
    unet, vae_network, encoder, prior, quantizer, upscaler = networks
    assert isinstance(unet, UNet)
    assert isinstance(vae_network, AutoencoderKL)
    assert isinstance(encoder, SentenceEncoder)
    assert isinstance(prior, Prior)
    assert isinstance(quantizer, Quantizer)
    assert isinstance(upscaler, Upscaler)
    assert prior.recall is not None
    prior.recall.remember(torch.eye(5, 32), torch.arange(5 * 21).view(5, 21), torch.arange(5 * 64).view(5, 64) % 4)
    bundle = ModelBundle(
        family="pocket",
        unet=unet,
        vae=vae_network,
        text=TextStack.of_sentences(encoder, WORDS),
        prior=prior,
        quantizer=quantizer,
        upscaler=upscaler,
        denoiser_config=COSINE,
        name="small",
    )
    return replace(bundle_to_write(bundle), int8=("text_encoder", "prior", "quantizer"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model."""
    return write_model(small_model(), tmp_path_factory.mktemp("model") / "small", "gouache")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures, packed."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for i in range(8):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[8:24, 8:24] = (255, 30 * i, 0, 255)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a square number {i}")
    list(pack_pictures(folder / "pictures", folder / "set", [Bucket(32, 32)], ReadReport()))
    return folder / "set"


def weights_of(model: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every part's tensors, as fp32."""
    return {name: dict(part.state_dict()) for name, part in load_bundle(model, dtype=torch.float32).networks().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", PARTS)
def test_at_image_0_a_stage_has_the_packed_weights(name: str, model: Path, data: Path, tmp_path: Path) -> None:
    *_, ready = assemble_from_packed(name, config_of(), data, tmp_path, model)
    assert isinstance(ready, Ready)
    assert equal(dict(ready.stage.trained.state_dict()), weights_of(model)[PARTS[name]])
    assert all(parameter.requires_grad for parameter in ready.stage.trained.parameters())


def test_a_run_from_a_packed_model_resumes_exactly_packs_and_paints(model: Path, data: Path, tmp_path: Path) -> None:
    config, config_file = config_of(), tmp_path / "config.toml"
    config_file.write_text(TOML)
    for run, stops in ((tmp_path / "whole", [32]), (tmp_path / "parts", [16, 32])):
        for stop in stops:
            seen = 0
            for event in train_stage(
                "denoiser",
                config_file,
                data,
                run,
                from_packed=model,
                stop=lambda: seen >= stop,  # noqa: B023
            ):
                seen = getattr(event, "images_seen", 0)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "denoiser")[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)

    packed = pack(config, tmp_path / "whole", tmp_path / "packed", dtype="fp32", name="small")
    before, after = weights_of(model), weights_of(packed)
    assert [name for name in before if not equal(before[name], after[name])] == ["unet"]
    assert load_bundle(packed).text.tokenize("a square") == load_bundle(model).text.tokenize("a square")
    painted = Pipeline.load(packed).paint(Request(prompt="a square", seed=1, num_inference_steps=2))
    assert painted[0].image.size == (32, 32)


def tables(values: dict[str, Any]) -> str:
    """Keys of a TOML table."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


TOML = f"""
[data]
size = 32
examples = 8
[text]
max_tokens = 8
[denoiser]
timesteps = "logit_normal"
timestep_mean = -0.6
[denoiser.network]
{tables(UNET)}
[denoiser.loop]
{tables(LOOP)}
[denoiser.optimizer]
learning_rate = 1e-3
warmup_images = 16
"""


def test_a_decoder_refined_on_what_the_model_paints_keeps_the_encoder(model: Path, data: Path, tmp_path: Path) -> None:
    config_file = tmp_path / "config.toml"
    config_file.write_text(REFINED)
    list(train_stage("vae", config_file, data, tmp_path / "run", from_packed=model))
    packed = pack(read_config(config_file, "vae"), tmp_path / "run", tmp_path / "packed", dtype="fp32", name="small")
    before, after = weights_of(model), weights_of(packed)
    assert [name for name in before if not equal(before[name], after[name])] == ["vae"]
    moved = {name.split(".")[0] for name, value in after["vae"].items() if not torch.equal(value, before["vae"][name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert load_bundle(packed).vae.config == load_bundle(model).vae.config


def test_a_deeper_decoder_of_the_same_tokens_trains_on_and_packs_with_the_rest(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config_file, before = tmp_path / "config.toml", load_bundle(model, dtype=torch.float32)
    config_file.write_text(DEEPER)
    config = read_config(config_file, "tokens")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert before.quantizer is not None
    tokens = before.quantizer.encode(latents)

    *_, ready = assemble_from_packed("tokens", config, data, tmp_path / "start", model)
    assert isinstance(ready, Ready)
    assert isinstance(ready.stage.trained, Quantizer)
    torch.testing.assert_close(ready.stage.trained.decode(tokens), before.quantizer.decode(tokens))

    list(train_stage("tokens", config_file, data, tmp_path / "run", from_packed=model))
    packed = load_bundle(pack(config, tmp_path / "run", tmp_path / "packed", dtype="fp32", int8=("quantizer",)))
    assert packed.quantizer is not None
    assert packed.quantizer.config.decoder_blocks == (3, 2)
    assert torch.equal(packed.quantizer.encode(latents), tokens)
    assert not torch.allclose(packed.quantizer.decode(tokens), before.quantizer.decode(tokens))
    for bundle, kept in ((before, True), (packed, False)):  # they were what the old decoder's drafts left
        assert bundle.prior is not None
        assert bundle.prior.recall is not None
        assert bool(bundle.prior.recall.residuals.any()) == kept
    Pipeline(packed).paint(Request(prompt="a square", seed=1, num_inference_steps=2))


DEEPER = f"""
[data]
size = 32
examples = 8
[text]
max_tokens = 8
[tokens]
freeze = ["encoder", "to_code", "from_code"]
[tokens.network]
{tables(TOKENS)}
decoder_blocks = [3, 2]
[tokens.loop]
{tables(LOOP)}
[prior.network]
{tables(PRIOR)}
[denoiser.network]
{tables(UNET)}
[vae.network]
{tables(VAE)}
"""


@pytest.mark.parametrize("sigma", [0.01, 0.3, 8.0])
def test_painted_latents_follow_the_denoisers_own_steps(sigma: float, model: Path) -> None:
    """A U-Net whose output is 0 says of v-prediction that x0 is x_t scaled by alpha: two steps of it by hand."""
    bundle = load_bundle(model, dtype=torch.float32)
    assert isinstance(bundle.unet, UNet)
    for parameter in bundle.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    assert bundle.quantizer is not None
    text = TextStates(torch.zeros(1, 2, 32), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 32))
    painter = DraftPainter(bundle.unet, bundle.denoiser_config, bundle.quantizer, text)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x = latents + sigma * noise
    clean = x / (1 + sigma**2)
    lower = min(sigma, DraftPainter.LAST)
    x = clean + lower / sigma * (x - clean)
    torch.testing.assert_close(painter(latents, noise, torch.full((3,), sigma)), x / (1 + lower**2))


REFINED = f"""
[data]
size = 32
examples = 8
[text]
max_tokens = 8
[denoiser.network]
{tables(UNET)}
[vae]
freeze = ["encoder"]
painted = 0.5
adversarial = 0.1
[vae.network]
{tables(VAE)}
[vae.loop]
{tables(LOOP)}
"""


def test_results_that_the_run_has_are_kept(model: Path, data: Path, tmp_path: Path) -> None:
    *_, first = assemble_from_packed("tokens", config_of(), data, tmp_path, model)
    assert isinstance(first, Ready)
    with torch.no_grad():
        next(first.stage.trained.parameters()).add_(1)
    own = tmp_path / "tokens" / "last.safetensors"
    first.stage.export(first.stage.trained, own)
    before = own.read_bytes()
    list(assemble_from_packed("denoiser", config_of(), data, tmp_path, model))
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "changes", "error", "match"),
    [
        ("denoiser", {"network": {**UNET, "channels": (16, 48)}}, ConfigError, r"network\.channels.*\(16, 32\)"),
        ("denoiser", {"denoiser": {"parameterization": "eps"}}, ConfigError, r"denoiser\.parameterization.*v"),
        ("denoiser", {"network": None, "start": "elsewhere"}, ConfigError, r"denoiser\.start.*--from-packed"),
        ("upscaler", {}, TrainingError, r"no table"),
        ("clip", {}, TrainingError, r"no image tower in it.*leave out --from-packed"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: str,
    changes: dict[str, Any],
    error: type[GouacheError],
    match: str,
    model: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=match):
        list(assemble_from_packed(name, config_of(**changes), data, tmp_path, model))
    assert not list(tmp_path.iterdir())


def test_a_shallower_decoder_than_the_packed_one_is_refused_before_anything_is_made(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = config_of().model_dump()
    config["tokens"]["network"]["decoder_blocks"] = (2, 0)
    with pytest.raises(ConfigError, match=r"tokens\.network\.decoder_blocks.*at least \(1, 1\)"):
        list(assemble_from_packed("tokens", TrainConfig.from_dict(config), data, tmp_path, model))
    assert not list(tmp_path.iterdir())


def test_another_number_of_text_tokens_and_another_kind_of_model_are_refused(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = config_of()
    longer = config.model_copy(update={"text": config.text.model_copy(update={"max_tokens": 7})})
    with pytest.raises(ConfigError, match=r"text\.max_tokens: given 7, expected 8"):
        list(assemble_from_packed("denoiser", longer, data, tmp_path / "run", model))
    other = write_model(bundle_to_write(untrained_bundle()), tmp_path / "sd", "gouache")
    with pytest.raises(TrainingError, match="start instead"):
        list(assemble_from_packed("denoiser", config, data, tmp_path / "run", other))
    assert not (tmp_path / "run").exists()
