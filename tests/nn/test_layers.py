"""The blocks against their definitions: attention, embeddings, upsampling, linear layers, in-place operations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gouache.nn.attention import attend, key_mask
from gouache.nn.layers import Linear, add, channels_last, silu, sinusoidal_embedding
from gouache.nn.resnet import ResnetBlock, Upsample, upsample_and_convolve


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_attention_is_its_formula_in_double_precision(draw: torch.Generator) -> None:
    query = torch.randn(2, 5, 12, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 2, 7, 12, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 7, generator=draw) > 0.3
    mask[:, 0] = True
    out = attend(query, key, value, heads=3, mask=key_mask(mask))
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(4)
        weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
        torch.testing.assert_close(out[..., part], weights @ value[..., part])


def test_causal_rows_do_not_see_what_follows(draw: torch.Generator) -> None:
    query, key, value = torch.randn(3, 1, 6, 8, generator=draw)
    before = attend(query, key, value, heads=2, causal=True)
    value[:, 4:] += 10
    after = attend(query, key, value, heads=2, causal=True)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_the_sinusoidal_embedding_has_cosines_first_and_geometric_frequencies() -> None:
    out = sinusoidal_embedding(torch.tensor([0.0, 500.25]), 8)
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    expected = [[1.0] * 4 + [0.0] * 4, [f(500.25 * w) for f in (math.cos, math.sin) for w in frequencies]]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=1e-4)
    assert sinusoidal_embedding(torch.zeros(2, 6), 256).shape == (2, 6, 256)


@pytest.mark.parametrize(("height", "width"), [(6, 5), (1, 1), (8, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_upsampling_equals_repeating_and_convolving(
    height: int, width: int, layout: torch.memory_format, draw: torch.Generator
) -> None:
    x = torch.randn(2, 4, height, width, generator=draw, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(6, 4, 3, 3, generator=draw, dtype=torch.float64)
    bias = torch.randn(6, generator=draw, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(upsample_and_convolve(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_upsampling_gives_the_same_with_and_without_gradients(draw: torch.Generator) -> None:
    layer, x = Upsample(4), torch.randn(1, 4, 9, 9, generator=draw)
    with torch.no_grad():
        folded = layer(x)
    torch.testing.assert_close(folded, layer(x), rtol=1e-5, atol=1e-5)
    assert layer(x, (17, 18)).shape == (1, 4, 17, 18)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 24), (2, 40, 24), (1, 24)])
def test_the_linear_layer_equals_torchs(bias: bool, shape: tuple[int, ...], draw: torch.Generator) -> None:
    layer, x = Linear(24, 40, bias=bias), torch.randn(shape, generator=draw)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        strided = torch.randn(24, 70, generator=draw).t()
        torch.testing.assert_close(layer(strided), F.linear(strided, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    torch.autograd.backward(layer(x).sum())
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_linear_layer_works_in_other_precisions(dtype: torch.dtype) -> None:
    layer = Linear(24, 40).to(dtype=dtype)
    with torch.no_grad():
        assert layer(torch.zeros(64, 24, dtype=dtype)).dtype == dtype


def test_autocast_reaches_the_linear_layer() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(24, 40)(torch.zeros(64, 24)).dtype == torch.bfloat16


def test_memory_is_reused_only_without_gradients() -> None:
    x = torch.tensor([1.0, -2.0])
    expected = x * torch.sigmoid(x)
    torch.testing.assert_close(silu(x), expected)
    assert x[0] == 1.0, "with gradients on, the input stays"
    with torch.no_grad():
        assert silu(x) is x
        assert add(x, x.clone()) is x
        assert add(x, x.double()).dtype == torch.float64
    torch.testing.assert_close(x, 2 * expected)


def test_a_resnet_block_gives_the_same_with_and_without_gradients(draw: torch.Generator) -> None:
    block = ResnetBlock(8, 16, embedding_width=4, groups=4)
    x, embedding = torch.randn(2, 8, 5, 5, generator=draw), torch.randn(2, 4, generator=draw)
    before = x.clone()
    with torch.no_grad():
        without = block(x, embedding)
    assert torch.equal(x, before), "the input belongs to the caller"
    torch.testing.assert_close(without, block(x, embedding))


def test_channels_last_changes_the_order_not_the_numbers(draw: torch.Generator) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8))
    x = torch.randn(1, 4, 6, 6, generator=draw)
    expected = network(x)
    out = channels_last(network)(x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
