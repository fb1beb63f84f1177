"""Dropout: its share, its scale, its masks."""

from __future__ import annotations

import pytest
import torch

from gouache.errors import InvalidInput
from gouache.nn.layers import Dropout


def dropped(share: float, seed: int, count: int = 100_001) -> torch.Tensor:
    layer = Dropout(share)
    layer.seed(seed)
    out: torch.Tensor = layer(torch.ones(count))
    return out


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_rest_scaled_up(share: float) -> None:
    out = dropped(share, 3)
    deviation = (share * (1 - share) / len(out)) ** 0.5
    assert float((out == 0).float().mean()) == pytest.approx(share, abs=4 * deviation)
    assert sorted(set(out.tolist())) == pytest.approx([0, 1 / (1 - share)])


def test_neighbouring_numbers_are_dropped_independently() -> None:
    gone = (dropped(0.5, 4) == 0).double() - 0.5
    for distance in (1, 2, 3, 4):
        assert abs(float((gone[:-distance] * gone[distance:]).mean())) < 0.25 * 4 / len(gone) ** 0.5


def test_masks_follow_the_seed_and_go_on() -> None:
    assert torch.equal(dropped(0.3, 5), dropped(0.3, 5))
    assert not torch.equal(dropped(0.3, 5), dropped(0.3, 6))
    layer = Dropout(0.3)
    assert not torch.equal(layer(torch.ones(999)), layer(torch.ones(999)))


def test_the_gradient_passes_where_numbers_were_kept() -> None:
    layer, x = Dropout(0.4), torch.ones(50, 4, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_at_rest_it_does_nothing() -> None:
    x = torch.arange(5.0)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="dropout"):
        Dropout(share)
