"""The up-sampling decoder against its formula, and the sizes it promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.errors import ShapeMismatch
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import Upscaler


def filled(config: UpscalerConfig) -> Upscaler:
    network, generator = Upscaler(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network.eval()


def written_out(state: dict[str, Tensor], x: Tensor, blocks: int, scale: int) -> Tensor:
    def conv(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    hidden = conv("conv_in", x)
    for k in range(blocks):
        hidden = hidden + conv(f"blocks.{k}.conv2", conv(f"blocks.{k}.conv1", hidden).clamp(min=0))
    channels = conv("conv_out", hidden)
    batch, _, height, width = channels.shape
    # Channel c * scale^2 + i * scale + j becomes row i and column j of the pixel's square.
    squares = channels.reshape(batch, -1, scale, scale, height, width).permute(0, 1, 4, 2, 5, 3)
    enlarged = squares.reshape(batch, -1, scale * height, scale * width)
    return enlarged + F.interpolate(x, size=enlarged.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_network_is_its_formula(scale: int) -> None:
    config = UpscalerConfig(channels=8, blocks=3, scale=scale)
    network = filled(config)
    x = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = written_out(network.state_dict(), x, 3, scale)
        assert torch.allclose(network(x), expected, atol=1e-4)
    assert expected.shape == (2, 4, 7 * scale, 9 * scale)


def test_untrained_it_enlarges_bilinearly() -> None:
    x = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(Upscaler(UpscalerConfig())(x), F.interpolate(x, scale_factor=4, mode="bilinear"))


def test_it_sees_as_far_as_it_says() -> None:
    config = UpscalerConfig(channels=8, blocks=2)
    network, x = filled(config), torch.zeros(1, 4, 31, 31)
    with torch.no_grad():
        before = network(x)
        x[..., 15, 15] = 1.0
        changed = (network(x) - before).abs().amax((0, 1)) > 0  # [124,124]
    rows = changed.any(1).nonzero()
    assert int(rows.min()) // 4 == 15 - config.radius
    assert int(rows.max()) // 4 == 15 + config.radius


def test_the_recipe_s_network_is_small() -> None:
    assert 300_000 < sum(parameter.numel() for parameter in Upscaler(UpscalerConfig()).parameters()) < 1_000_000


def test_other_channels_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="4"):
        Upscaler(UpscalerConfig(channels=8, blocks=1))(torch.zeros(1, 3, 8, 8))
