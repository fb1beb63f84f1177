"""The Brownian tree is torchsde's, bit for bit.

The fault's kind: noise of an SDE sampler that another tool draws from a tree of seeds and we drew from a row of
numbers, so that no picture of those samplers could be repeated. Members: every seed, shape, source of numbers and list
of levels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import torchsde
import torchsde._brownian.brownian_interval as interval
from torch import Tensor

from gouache.diffusion.brownian_tree import BrownianTree, TreeNoise, stage_times
from gouache.diffusion.rng import NoiseMode, seed_stream
from gouache.errors import InvalidInput

SHAPE = (4, 6, 5)
LEVELS = (14.614643, 9.1, 5.5, 5.4999, 2.0, 1.0, 0.3, 0.1, 0.029167)


def draw(seed: int, shape: Sequence[int], mode: NoiseMode = "cpu") -> Tensor:
    return seed_stream(seed, mode).randn(shape)


def single(level: float) -> Tensor:
    return torch.tensor(level, dtype=torch.float32)


def trees(seed: int, shape: Sequence[int], low: float, high: float) -> tuple[BrownianTree, Callable[..., Tensor]]:
    bounds = float(single(low)), float(single(high))
    theirs = torchsde.BrownianTree(single(low), torch.zeros(tuple(shape)), single(high), entropy=seed)
    return BrownianTree(seed, draw, shape, *bounds), theirs


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")
@pytest.mark.parametrize("seed", [0, 1, 7, 42, 31337, 2**31 - 1, 2**32 - 1, 2**32, 2**40 + 3, 2**62 + 1, 2**63 - 1])
@pytest.mark.parametrize("shape", [SHAPE, (16,), (1, 8, 8)])
def test_a_walk_down_gives_torchsdes_increments(seed: int, shape: tuple[int, ...]) -> None:
    ours, theirs = trees(seed, shape, LEVELS[-1], LEVELS[0])
    for high, low in pairwise(LEVELS):
        assert ours(float(single(low)), float(single(high))).equal(theirs(single(low), single(high)))


@pytest.mark.parametrize("high", [80.0, 157.4, 4.0, 14.6146])
@pytest.mark.parametrize("count", [1, 2, 5, 20, 60])
def test_lists_of_other_lengths_and_ends(high: float, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = trees(3, SHAPE, 0.002, high)
        levels = torch.logspace(math.log10(high), math.log10(0.002), count + 1).tolist()
        for top, bottom in pairwise(levels):
            assert ours(bottom, top).equal(theirs(torch.tensor(bottom), torch.tensor(top)))


def test_the_path_depends_on_the_seed_alone_and_comes_back_when_it_was_forgotten() -> None:
    first, second = (BrownianTree(5, draw, SHAPE, 0.1, 10.0) for _ in range(2))
    second(2.0, 3.0)
    second(0.5, 9.0)
    torch.testing.assert_close(first(1.0, 4.0), second(1.0, 4.0), rtol=0, atol=2e-6)
    before = first(6.0, 8.0)
    first.forget_above(1.0)
    assert first(6.0, 8.0).equal(before)
    torch.testing.assert_close(first(1.0, 2.0) + first(2.0, 4.0), first(1.0, 4.0), rtol=0, atol=4e-6)


def test_increments_are_brownian() -> None:
    """Variance b - a, independent of the neighbour: 20,000 numbers, standard errors 1 % and 0.7 %."""
    tree = BrownianTree(9, draw, (20_000,), 0.0, 10.0)
    first, second = tree(1.0, 3.5), tree(3.5, 4.0)
    assert abs(float(first.var()) / 2.5 - 1) < 0.05
    assert abs(float(second.var()) / 0.5 - 1) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.04


@pytest.mark.parametrize("mode", ["cpu", "a1111"])
def test_step_noise_is_k_diffusions_with_either_source(mode: NoiseMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-diffusion: (W(sigma_next) - W(sigma)) / sqrt|difference|; A1111 gives torchsde its own source of numbers."""

    def theirs_draw(size: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
        return draw(int(seed), size, mode).to(device, dtype)

    monkeypatch.setattr(interval, "_randn", theirs_draw)
    x, seeds = torch.zeros(2, *SHAPE), (11, 12)
    low, high = single(LEVELS[-1]), single(LEVELS[0])
    theirs = [torchsde.BrownianTree(low, x[0], high, entropy=seed) for seed in seeds]
    noise = TreeNoise(seeds, lambda seed, shape: draw(seed, shape, mode), float(low), float(high))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for top, bottom in pairwise(LEVELS):
            expected = -torch.stack([tree(single(bottom), single(top)) for tree in theirs])
            expected = expected / (single(top) - single(bottom)).sqrt()
            torch.testing.assert_close(noise(x, top, bottom), expected, rtol=3e-7, atol=1e-6)


def test_stages_take_k_diffusions_way_through_the_logarithm() -> None:
    sigmas = [14.614641, 3.0, 0.5, 0.0]
    times = stage_times(sigmas, torch.tensor(sigmas, dtype=torch.float32).tolist())
    t = single(14.614641).log().neg()
    h = single(3.0).log().neg() - t
    assert times[14.614641**0.5 * 3.0**0.5] == float((t + h * 0.5).neg().exp())
    assert times[14.614641] == float(t.neg().exp())
    assert 0.0 not in times


def test_wrong_times_and_batches_are_refused() -> None:
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(InvalidInput, match="times of a Brownian path"):
            BrownianTree(1, draw, SHAPE, low, high)
    with pytest.raises(InvalidInput, match="one per seed"):
        TreeNoise((1,), draw, 0.1, 1.0)(torch.zeros(2, *SHAPE), 1.0, 0.5)
    assert not BrownianTree(1, draw, SHAPE, 0.1, 1.0)(2.0, 3.0).any(), "outside the path nothing moves"
