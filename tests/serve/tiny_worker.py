"""A worker process that paints with a tiny model of random weights: 32 x 32 pixels, a few milliseconds a step."""

from __future__ import annotations

import torch
from torch import nn

from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.worker.loaded_models import Painter
from gouache.serve.worker.process import main


def tiny_pipeline() -> Pipeline:
    """A pipeline around the tiny model."""
    text = TextEncoder(TextEncoderConfig(width=32, inner_width=64, layers=2, heads=2))
    unet = UNetConfig(
        channels=(16, 32), layers_per_level=1, transformer_layers=(1, 1), heads=(2, 2), context_width=32, norm_groups=8
    )
    vae = VAEConfig(image_channels=3, channels=(16, 16, 32), layers_per_level=1, norm_groups=8)
    bundle = ModelBundle(
        family="sd1",
        unet=UNet(unet),
        vae=AutoencoderKL(vae),
        text=TextStack.of_clip([text]),
        defaults=GenerationDefaults(width=32, height=32, num_inference_steps=4, guidance_scale=3.0),
        name="tiny",
    )
    for seed, network in enumerate(bundle.networks().values()):
        fill(network, seed)
    return Pipeline(bundle)


def fill(network: nn.Module, seed: int) -> None:
    """Give every weight a value from its own generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


def open_tiny(entry: ModelEntry, device: str | None, dtype: str | None, engine: str) -> Painter:
    """The tiny model, whatever is asked for."""
    del entry, device, dtype, engine
    torch.set_num_threads(1)
    return tiny_pipeline()


if __name__ == "__main__":
    main(open_tiny)
