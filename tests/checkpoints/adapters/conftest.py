"""A tiny SDXL-shaped model, whose layers adapters can name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gouache.checkpoints.adapters.layer_names import LayerNames
from gouache.models.configs import TextEncoderConfig, UNetConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet


class Layers:
    """A U-Net and two text encoders of different widths, with their names.

    Attributes:
        unet: two levels, one of them with two transformer blocks.
        text: of widths 32 and 24.
        names: what files call their layers.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.unet = UNet(
            UNetConfig(
                channels=(16, 32),
                layers_per_level=1,
                transformer_layers=(1, 2),
                middle_transformer_layers=2,
                heads=(2, 2),
                context_width=56,
                linear_projection=True,
                norm_groups=8,
                pooled_width=24 + 6 * 256,
            )
        )
        shape: dict[str, Any] = {"inner_width": 64, "layers": 2, "heads": 2}
        self.text = TextStack.of_clip(
            [
                TextEncoder(TextEncoderConfig(width=32, skip_layers=1, final_norm=False, **shape)),
                TextEncoder(TextEncoderConfig(width=24, projection_width=24, skip_layers=1, final_norm=False, **shape)),
            ]
        )
        with torch.no_grad():
            for network in (self.unet, self.text):
                for parameter in network.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.names = LayerNames(self.unet, self.text)

    def module(self, name: str) -> nn.Module:
        """A layer of the U-Net."""
        return self.unet.get_submodule(name)


@pytest.fixture(scope="session")
def layers() -> Layers:
    """One for all tests; nobody changes it."""
    return Layers()
