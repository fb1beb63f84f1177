"""Tiny models with random weights, one of each kind that the pipeline treats differently."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.prior import Prior, PriorConfig
from gouache.models.quantizer import Quantizer, QuantizerConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline, fill

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

# Tensors here are so small that more threads only wait for one another.
torch.set_num_threads(1)
MakeBundle = Callable[..., ModelBundle]


def seeded(network: nn.Module, seed: int) -> None:
    """Fill every weight from its own generator, so that no global seed is set."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + centre * (spread == 0.3) * 0.5)


def make_bundle(
    *,
    family: str = "sd1",
    image_channels: int = 3,
    draft_channels: int = 0,
    parameterization: str = "eps",
    sdxl: bool = False,
) -> ModelBundle:
    """A model of 16x16-pixel factor 4 that paints 32x32 pictures in a few milliseconds a step."""
    text_config = TextEncoderConfig(
        width=32, inner_width=64, layers=2, heads=2, projection_width=24 if sdxl else 0, skip_layers=1 if sdxl else 0
    )
    text = TextStack.of_clip([TextEncoder(text_config)])
    unet_config = UNetConfig(
        draft_channels=draft_channels,
        channels=(16, 32),
        layers_per_level=1,
        transformer_layers=(1, 1),
        heads=(2, 2),
        context_width=32,
        norm_groups=8,
        pooled_width=24 + 6 * 256 if sdxl else 0,
    )
    vae_config = VAEConfig(image_channels=image_channels, channels=(16, 16, 32), layers_per_level=1, norm_groups=8)
    bundle = ModelBundle(
        family=family,
        unet=UNet(unet_config),
        vae=AutoencoderKL(vae_config),
        text=text,
        denoiser_config=DenoiserConfig.from_dict({"parameterization": parameterization}),
        defaults=GenerationDefaults(width=32, height=32, num_inference_steps=4, guidance_scale=3.0),
        name=f"tiny-{family}",
    )
    for seed, network in enumerate(bundle.networks().values()):
        seeded(network, seed)
    return bundle.eval()


@pytest.fixture(scope="session")
def tiny() -> ModelBundle:
    """SD 1.x in small."""
    return make_bundle()


@pytest.fixture(scope="session")
def make_tiny() -> MakeBundle:
    """Makes other kinds."""
    return make_bundle


@pytest.fixture(scope="session")
def pipe(tiny: ModelBundle) -> Pipeline:
    """The pipeline around `tiny`."""
    return Pipeline(tiny)


@pytest.fixture(scope="session")
def pocket() -> ModelBundle:
    """A model of the pocket kind: RGBA, pooled text, draft channels, prior and quantizer."""
    pooled = 24
    text = TextEncoderConfig(width=32, inner_width=64, layers=2, heads=2, projection_width=pooled)
    unet = UNetConfig(
        draft_channels=4,
        channels=(16, 32),
        layers_per_level=1,
        transformer_layers=(1, 1),
        heads=(2, 2),
        context_width=32,
        norm_groups=8,
        pooled_width=pooled,
    )
    quantizer = QuantizerConfig(
        latent_channels=4, latent_size=8, features=8, width=16, blocks=1, levels=(3, 3, 3), scales=(1, 2, 4)
    )
    prior = PriorConfig(
        vocabulary=27, groups=(1, 4, 16), features=8, context_dim=32, pooled_dim=pooled, width=32, depth=2, heads=2
    )
    base = make_bundle(family="pocket", image_channels=4)
    bundle = replace(
        base,
        unet=UNet(unet),
        text=TextStack.of_clip([TextEncoder(text)]),
        prior=Prior(prior),
        quantizer=Quantizer(quantizer),
    )
    for k, network in enumerate(bundle.networks().values()):
        fill(network, torch.Generator().manual_seed(k))
    return bundle.eval()


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """The same weights in diffusers and here (the module is loaded by path: tests are no package)."""
    spec = importlib.util.spec_from_file_location("gouache_test_twins", Path(__file__).with_name("twins.py"))
    assert spec is not None, "twins.py stands beside this file"
    assert spec.loader is not None, "a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    made: Twins = module.Twins(tmp_path_factory.mktemp("twins"))
    return made


@pytest.fixture(scope="module")
def own_twins(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """Twins for one file alone, whose tests change diffusers' side: unfusing leaves rounding behind, new words stay."""
    return type(twins)(tmp_path_factory.mktemp("own_twins"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of models are remembered in a folder of the test run's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Smooth colours with an edge, 32 pixels a side."""
    y, x = np.mgrid[0:32, 0:32] / 32
    pixels = np.stack([x, y, (x + y > 1).astype(float)], -1) * 255
    path = tmp_path / "start.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White in the lower right, on the grid of the latents."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[12:28, 16:32] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    return path
