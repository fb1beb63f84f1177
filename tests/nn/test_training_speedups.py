"""Layers that train by a faster way than torch's: the same results and gradients, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.layers import Linear
from gouache.nn.resnet import Upsample, saves_time


def gradients(call: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The result, and the gradients of the input and the parameters, for a fixed gradient from above."""
    x = x.detach().requires_grad_()
    out = call(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters], weight)]


def drawn(layer: nn.Module, *shape: int) -> Tensor:
    """Fixed weights for the layer, and a fixed input for it."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (2, 20), (2, 4, 5)])
def test_a_linear_layer_trains_as_torchs(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(24, 36, bias=bias)
    x, parameters = drawn(layer, *shape, 24), list(layer.parameters())
    ours = gradients(layer, x, parameters)
    true = gradients(lambda given: F.linear(given, layer.weight, layer.bias), x, parameters)
    for mine, wanted in zip(ours, true, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-5)


def test_a_frozen_linear_layer_passes_the_gradient_on() -> None:
    layer = Linear(24, 36).requires_grad_(False)
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand_as(x), atol=1e-5)
    assert layer.weight.grad is None


@pytest.mark.parametrize(("autocast", "side", "bound"), [(False, 8, 1e-5), (True, 16, 2e-2)])
def test_upsampling_trains_as_repeating_and_convolving(autocast: bool, side: int, bound: float) -> None:
    layer = Upsample(12)
    x = drawn(layer, 2, 12, side, side).to(memory_format=torch.channels_last)
    parameters = list(layer.parameters())

    def ours(given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            given = given.bfloat16() if autocast else given
            assert saves_time(given, layer.conv.weight)
            out: Tensor = layer(given)
            return out

    def repeated(given: Tensor) -> Tensor:
        large = F.interpolate(given, scale_factor=2.0, mode="nearest")
        return F.conv2d(large, layer.conv.weight, layer.conv.bias, padding=1)

    for mine, wanted in zip(gradients(ours, x, parameters), gradients(repeated, x, parameters), strict=True):
        assert (mine.float() - wanted).norm() <= bound * wanted.norm()
