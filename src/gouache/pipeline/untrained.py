"""A tiny model of random weights, always the same ones: what paints where no trained model is at hand."""

from __future__ import annotations

import torch
from torch import nn

from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.text_encoder import TextEncoder
from gouache.models.text_stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL

NAME = "untrained"
TEXT = TextEncoderConfig(width=32, inner_width=64, layers=2, heads=2)
UNET = UNetConfig(
    channels=(16, 32), layers_per_level=1, transformer_layers=(1, 1), heads=(2, 2), context_width=32, norm_groups=8
)
VAE = VAEConfig(channels=(16, 16, 32), layers_per_level=1, norm_groups=8)
DEFAULTS = GenerationDefaults(
    width=128, height=128, num_inference_steps=8, guidance_scale=3.0, sampler="dpmpp_2m", schedule="karras"
)


def untrained_bundle(seed: int = 0) -> ModelBundle:
    """A working model that has learnt nothing: its pictures are abstract colours.

    Args:
        seed: of the weights; the same seed gives the same weights on every machine.
    """
    bundle = ModelBundle(
        family="sd1",
        unet=UNet(UNET),
        vae=AutoencoderKL(VAE),
        text=TextStack.of_clip([TextEncoder(TEXT)]),
        denoiser_config=DenoiserConfig(parameterization="v"),
        defaults=DEFAULTS,
        name=NAME,
    )
    for k, network in enumerate(bundle.networks().values()):
        fill(network, torch.Generator("cpu").manual_seed(seed + k))
    return bundle.eval()


@torch.no_grad()
def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight: matrices so that they keep the size of what passes through, scales near 1, offsets near 0."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))
