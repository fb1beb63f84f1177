"""Bits of pictures: against the closed form of a network that predicts nothing, and against the prior's own words."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.errors import ConfigError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults, SentenceEncoderConfig, UNetConfig, VAEConfig
from gouache.models.prior import Prior, PriorConfig
from gouache.models.quantizer import Quantizer, QuantizerConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.likelihood import (
    SIGMA_CEILING,
    SIGMA_FLOOR,
    diffusion_bits,
    encode_captions,
    latents_of,
    picture_likelihood,
    prior_bits,
    tokens_of,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "fish"]


@pytest.fixture(scope="module")
def pocket() -> ModelBundle:
    """A tiny model with a prior that paints 32 x 32 RGBA."""
    text = SentenceEncoder(
        SentenceEncoderConfig(
            vocabulary_size=len(VOCABULARY), width=16, inner_width=32, layers=1, heads=2, positions=12, max_tokens=12
        )
    )
    quantizer = QuantizerConfig(
        latent_channels=4, latent_size=8, features=8, width=16, blocks=1, levels=(3, 3), scales=(1, 2, 4)
    )
    prior = PriorConfig(
        vocabulary=9, groups=(1, 4, 16), features=8, context_dim=16, pooled_dim=16, width=16, depth=1, heads=2
    )
    unet = UNetConfig(
        channels=(16, 32),
        layers_per_level=1,
        transformer_layers=(0, 1),
        heads=(2, 2),
        context_width=16,
        draft_channels=4,
        norm_groups=8,
    )
    vae = VAEConfig(image_channels=4, channels=(16, 16), layers_per_level=1, norm_groups=8, patch_size=2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return ModelBundle(
            family="pocket",
            unet=UNet(unet),
            vae=AutoencoderKL(vae),
            text=TextStack.of_sentences(text, VOCABULARY),
            defaults=GenerationDefaults(width=32, height=32, num_inference_steps=4),
            prior=Prior(prior),
            quantizer=Quantizer(quantizer),
            name="tiny pocket",
        ).eval()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8), "RGBA")


def test_bits_of_a_network_that_predicts_no_noise_are_the_closed_form(make_tiny: Callable[..., ModelBundle]) -> None:
    """eps = 0 makes D(x) = x, so |x0 - D|^2 = sigma^2 |noise|^2: every part of the bound is known."""
    bundle = make_tiny()
    with torch.no_grad():
        bundle.unet.get_parameter("conv_out.weight").zero_()
        bundle.unet.get_parameter("conv_out.bias").zero_()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    low, high = max(bundle.schedule.sigma_min, SIGMA_FLOOR), min(bundle.schedule.sigma_max, SIGMA_CEILING)
    dimensions = 256
    # E|noise|^2 is the number of dimensions; its mean over the levels is within 4 standard deviations of that.
    fixed = dimensions * (math.log(high / low) + 0.5 + math.log(2 * math.pi * low**2) / 2)
    expected = fixed + latents.square().flatten(1).sum(1) / (2 * high**2)
    bits = diffusion_bits(bundle, latents, encode_captions(bundle, ["a"]), levels=48)
    spread = math.sqrt(2 / (dimensions * 48)) * math.log(high / low) + math.sqrt(2 / dimensions) / 2
    assert bits.tolist() == pytest.approx((expected / math.log(2)).tolist(), abs=4 * spread * dimensions)


def test_the_same_levels_and_noises_serve_every_text_and_no_other_picture(pocket: ModelBundle) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    text = encode_captions(pocket, ["a red fish"])
    bits = diffusion_bits(pocket, latents, text, levels=3)
    assert torch.equal(bits, diffusion_bits(pocket, latents, text, levels=3))
    assert torch.allclose(bits[:1], diffusion_bits(pocket, latents[:1], text, levels=3), rtol=1e-5)
    assert not torch.allclose(bits, diffusion_bits(pocket, latents, text, levels=3, seed=1))


def test_prior_bits_are_those_of_a_distribution(pocket: ModelBundle) -> None:
    """Over the 9 codes of the first token the probabilities add up to one."""
    text = encode_captions(pocket, ["a blue fish"])
    tokens = torch.zeros(9, 21, dtype=torch.long)
    tokens[:, 0] = torch.arange(9)
    bits = prior_bits(pocket, tokens, text)
    assert bits.shape == (9, 21)
    assert (2 ** -bits[:, 0].double()).sum().item() == pytest.approx(1, abs=1e-5)


def test_a_picture_s_likelihood_is_the_sum_of_its_parts(pocket: ModelBundle, picture: Image.Image) -> None:
    found = picture_likelihood(pocket, picture, "a red fish", levels=2)
    latents = latents_of(pocket, [picture])
    tokens = tokens_of(pocket, latents)
    text, empty = encode_captions(pocket, ["a red fish"]), encode_captions(pocket, [""])
    assert found.prior == pytest.approx(float(prior_bits(pocket, tokens, text).sum()))
    assert found.diffusion_without == pytest.approx(float(diffusion_bits(pocket, latents, empty, levels=2)))
    saved = prior_bits(pocket, tokens, empty).sum() - prior_bits(pocket, tokens, text).sum()
    assert found.prior_alignment == pytest.approx(float(saved), abs=1e-3)
    assert found.diffusion_alignment == pytest.approx(found.diffusion_without - found.diffusion)
    assert json.loads(json.dumps(found.to_dict()))["tokens"] == 21
    assert picture_likelihood(pocket, picture, "", levels=2).prior_alignment == pytest.approx(0, abs=1e-4)


def test_a_trained_prior_prefers_the_caption_it_learnt(pocket: ModelBundle) -> None:
    """Two drafts, two captions, a few steps: each draft is likelier with its own caption."""
    assert pocket.prior is not None, "the fixture has one"
    assert pocket.quantizer is not None, "the fixture has one"
    prior = copy.deepcopy(pocket.prior).train().requires_grad_(True)
    tokens = torch.randint(9, (2, 21), generator=torch.Generator().manual_seed(3))
    text = encode_captions(pocket, ["a red fish", "a blue fish"])
    both = encode_captions(pocket, ["a red fish", "a blue fish", "", ""])  # the empty caption stands for either
    assert both.pooled is not None, "a sentence encoder pools"
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(30):
        found = prior.log_likelihood(pocket.quantizer, tokens.repeat(2, 1), both.context, both.pooled, both.mask)
        optimizer.zero_grad()
        torch.autograd.backward(-found.mean())
        optimizer.step()
    trained = replace(pocket, prior=prior.eval().requires_grad_(False))
    swapped = encode_captions(pocket, ["a blue fish", "a red fish"])
    own, other = (prior_bits(trained, tokens, captions).sum(1) for captions in (text, swapped))
    assert (own < other).all()


def test_a_model_without_a_prior_has_no_bits_of_it(make_tiny: Callable[..., ModelBundle]) -> None:
    bundle = make_tiny()
    picture = Image.new("RGB", (40, 24), "red")
    found = picture_likelihood(bundle, picture, "a red wall", levels=2)
    assert found.prior is None
    assert found.prior_alignment is None
    assert math.isfinite(found.diffusion)
    assert found.dimensions == 4 * 10 * 6  # 40 x 24 at factor 4: the picture keeps its shape
    with pytest.raises(ConfigError, match="prior"):
        tokens_of(bundle, torch.zeros(1, 4, 8, 8))


def test_bad_input_is_refused(pocket: ModelBundle) -> None:
    with pytest.raises(InvalidInput, match="levels"):
        diffusion_bits(pocket, torch.zeros(1, 4, 8, 8), encode_captions(pocket, [""]), levels=0)
    with pytest.raises(InvalidInput, match="8x8"):
        tokens_of(pocket, torch.zeros(1, 4, 4, 8))
