"""Group norm with SiLU in bfloat16 while training, against torch's in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.nn import layers
from gouache.nn.layers import GroupNorm

ROUNDING = 2**-7
"""Relative error of a few operations in bfloat16, whose numbers have 8 bits."""


def layer(channels: int, groups: int) -> GroupNorm:
    """A group norm with weights that are not the identity."""
    norm, generator = GroupNorm(groups, channels, eps=1e-3), torch.Generator().manual_seed(2)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def results(norm: GroupNorm, x: Tensor, weight: Tensor, activate: bool) -> list[Tensor]:
    """The result and the gradients of input, weight and bias."""
    x = x.detach().requires_grad_()
    out = norm(x, activate=activate)
    return [out.detach(), *torch.autograd.grad(out, [x, norm.weight, norm.bias], weight)]


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (20, 2), (32, 2)])
def test_it_trains_in_bfloat16_up_to_rounding(
    channels: int, groups: int, activate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "BLOCK", 2 * channels * 30)  # three blocks of the five pictures
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(5, channels, 6, 5, generator=generator).bfloat16() for _ in range(2))
    x = (x * 2 + 3).to(memory_format=torch.channels_last)
    ours = results(layer(channels, groups), x, weight, activate)
    true = results(layer(channels, groups).double(), x.double(), weight.double(), activate)
    for name, mine, wanted in zip(("out", "input", "weight", "bias"), ours, true, strict=True):
        error = (mine.double() - wanted).norm() / wanted.norm()
        assert error < ROUNDING, name
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradient_it_is_torchs_kernel_bit_for_bit(dtype: torch.dtype) -> None:
    norm = layer(12, 3).to(dtype)
    x = torch.randn(2, 12, 5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        normed = F.group_norm(x, 3, norm.weight, norm.bias, 1e-3)
        assert torch.equal(norm(x), normed)
        assert torch.equal(norm(x, activate=True), F.silu(normed))


@pytest.mark.parametrize("channels", [1, 3, 8, 32, 64])
@pytest.mark.parametrize("activate", [False, True])
def test_a_group_of_one_number_becomes_its_bias(channels: int, activate: bool) -> None:
    """Equation 1 with no deviation: (x - x) / sqrt(0 + eps) * weight + bias."""
    norm = layer(channels, channels)
    x = torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(1))
    found = norm(x, activate=activate)[0, :, 0, 0]
    assert norm.bias is not None
    assert torch.allclose(found, F.silu(norm.bias) if activate else norm.bias, atol=1e-6)
