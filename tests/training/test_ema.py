"""The averages against their closed form, and the post-hoc choice against training with that width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gouache.errors import InvalidInput
from gouache.training.ema import PowerEma, beta, gamma_of, profile_product, synthesise


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float) -> None:
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2])
def test_the_profile_has_the_wanted_width(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    # p(t) = (gamma + 1) t^gamma on [0, 1] is a Beta(gamma + 1, 1) distribution.
    variance = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))
    assert variance**0.5 == pytest.approx(sigma_rel)


def test_the_average_is_the_power_mean_of_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    ema = PowerEma(network, [0.1])
    gamma, weights = gamma_of(0.1), []
    for step in range(1, 201):
        with torch.no_grad():
            network.weight.fill_(np.sin(step / 20))
        ema.update(network, step)
        weights.append(np.sin(step / 20))
    # Unrolled: weight k counts (1 - beta_k) * prod_{j>k} beta_j.
    shares = [(1 - beta(gamma, k)) * np.prod([beta(gamma, j) for j in range(k + 1, 201)]) for k in range(1, 201)]
    assert sum(shares) == pytest.approx(1)
    assert ema.averages[0.1]["weight"].item() == pytest.approx(np.dot(shares, weights), abs=1e-5)


def test_the_inner_product_of_profiles_is_its_integral() -> None:
    t = (np.arange(200_000) + 0.5) / 200_000 * 3
    a = np.where(t < 2, 4 * t**3 / 2**4, 0)
    b = 7 * t**6 / 3**7
    assert profile_product(3, 2, 6, 3) == pytest.approx(float((a * b).mean() * 3), rel=1e-4)


def test_an_average_that_was_not_tracked_is_built_after_training() -> None:
    network = nn.Linear(1, 1, bias=False)
    tracked, wanted = PowerEma(network, [0.05, 0.10]), PowerEma(network, [0.07])
    snapshots = []
    for step in range(1, 1025):
        with torch.no_grad():
            network.weight.fill_(np.log(step) + np.sin(step / 100))
        tracked.update(network, step)
        wanted.update(network, step)
        if step % 64 == 0:
            for length, average in tracked.averages.items():
                snapshots.append((length, float(step), {name: value.clone() for name, value in average.items()}))
    built = synthesise(snapshots, 0.07, 1024.0)["weight"].item()
    true, nearest = (ema.averages[k]["weight"].item() for ema, k in ((wanted, 0.07), (tracked, 0.05)))
    assert abs(built - true) < 0.05 * abs(nearest - true)


@pytest.mark.parametrize("bad", [0.0, 0.3, -1.0])
def test_impossible_widths_are_refused(bad: float) -> None:
    with pytest.raises(InvalidInput, match="relative width"):
        gamma_of(bad)
