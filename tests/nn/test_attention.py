"""Attention in bfloat16 while training, against torch's kernel in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.nn.attention import attend_heads

ROUNDING = 2**-7
"""Relative error of a few operations in bfloat16, whose numbers have 8 bits."""

TOLERANCE = 2**-8
"""Of a result in bfloat16 from the true one: half for its own rounding, half for the kernel's probabilities."""


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(3, 2, count, 16, generator=generator) for count in (20, 24, 24, 20)]
    return [tensor.bfloat16().to(dtype) for tensor in drawn]  # the same numbers in every type


MASKS = {
    "none": None,
    "keys": (torch.arange(24) < torch.tensor([24, 3, 10])[:, None])[:, None, None],
    "pairs": (torch.arange(20)[:, None] + 4 >= torch.arange(24))[None, None],
    "added": torch.linspace(-3, 3, 24)[None, None, None],
}


def results(dtype: torch.dtype, mask: Tensor | None, kernel: str) -> list[Tensor]:
    """The result and the gradients of query, key and value."""
    *given, weight = inputs(dtype)
    q, k, v = (tensor.requires_grad_() for tensor in given)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    out = attend_heads(q, k, v, mask=mask) if kernel == "ours" else F.scaled_dot_product_attention(q, k, v, mask)
    return [out.detach(), *torch.autograd.grad(out, [q, k, v], weight)]


@pytest.mark.parametrize("mask", MASKS)
def test_attention_trains_in_bfloat16_up_to_rounding(mask: str) -> None:
    ours = results(torch.bfloat16, MASKS[mask], "ours")
    true = results(torch.float64, MASKS[mask], "torch")
    for name, mine, wanted in zip(("out", "query", "key", "value"), ours, true, strict=True):
        assert mine.dtype == torch.bfloat16
        error = (mine.double() - wanted).norm() / wanted.norm()
        assert error < ROUNDING, name


def test_without_gradient_it_is_torchs_kernel_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, _ = inputs(dtype)
        with torch.no_grad():
            assert torch.equal(attend_heads(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("mask", ["none", "keys", "added", "causal"])
def test_attention_in_bfloat16_is_that_of_fp64_up_to_the_rounding_of_its_result(mask: str) -> None:
    """At a size at which the way is chosen by the processor: whichever it is, the result is off by little more than one
    rounding to 8 bits, at most 2^-9 of each number and in the mean half of it."""
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, 3, 160, 40, generator=generator).bfloat16() for _ in range(3))
    places = torch.arange(160)
    masks = {
        "keys": (places < torch.tensor([160, 31])[:, None])[:, None, None],
        "added": torch.linspace(-3, 3, 160)[None, None, None],
    }
    given = masks.get(mask)
    rounded = given.bfloat16() if mask == "added" and given is not None else given
    with torch.no_grad():
        out = attend_heads(q, k, v, mask=rounded, causal=mask == "causal")
    scores = q.double() @ k.double().transpose(-1, -2) * 40**-0.5
    if mask == "causal":
        scores = scores.masked_fill(places[:, None] < places, -torch.inf)
    elif rounded is not None:
        scores = scores.masked_fill(~rounded, -torch.inf) if mask == "keys" else scores + rounded.double()
    wanted = scores.softmax(-1) @ v.double()
    assert out.dtype == torch.bfloat16
    assert (out.double() - wanted).norm() / wanted.norm() < TOLERANCE


def test_softmax_stays_in_bfloat16_under_autocast() -> None:
    # Else the scores would be written out in fp32, and the kernel would lose its speed.
    q, k, v, _ = (tensor.requires_grad_() for tensor in inputs(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_heads(q, k, v).dtype == torch.bfloat16
