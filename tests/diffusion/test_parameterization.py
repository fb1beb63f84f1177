"""Conversion laws: every prediction says the same x0, and every path solves the same ODE."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule, Path, alpha_and_std, make_noise_schedule
from gouache.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    convert,
    denoised_from,
    edm_denoised,
    edm_preconditioning,
    edm_target,
    network_input,
    path_velocity,
    score_of,
    target_of,
    to_eps,
    to_x0,
)
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture, OneGaussian

PATHS: tuple[Path, ...] = ("vp", "flow", "ve")
kinds = st.sampled_from(PARAMETERIZATIONS)
paths = st.sampled_from(PATHS)
sigmas = st.floats(0.01, 100)
seeds = st.integers(0, 2**31)


def draw(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    return x0, eps


@settings(deadline=None, max_examples=150)
@given(seeds, sigmas, paths, kinds, kinds)
def test_any_prediction_converts_into_any_other(
    seed: int, sigma: float, path: Path, source: Parameterization, target: Parameterization
) -> None:
    x0, eps = draw(seed)
    alpha, std = alpha_and_std(torch.tensor(sigma, dtype=torch.float64), path)
    x_t = alpha * x0 + std * eps
    there = convert(target_of(source, x0, eps, alpha, std), x_t, alpha, std, source, target)
    torch.testing.assert_close(there, target_of(target, x0, eps, alpha, std), rtol=1e-9, atol=1e-9)
    back = convert(there, x_t, alpha, std, target, source)
    torch.testing.assert_close(back, target_of(source, x0, eps, alpha, std), rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=100)
@given(seeds, sigmas, paths, kinds)
def test_the_true_prediction_gives_back_data_and_noise(
    seed: int, sigma: float, path: Path, kind: Parameterization
) -> None:
    x0, eps = draw(seed)
    level = torch.tensor(sigma, dtype=torch.float64)
    alpha, std = alpha_and_std(level, path)
    x_t = alpha * x0 + std * eps
    prediction = target_of(kind, x0, eps, alpha, std)
    torch.testing.assert_close(to_x0(prediction, x_t, alpha, std, kind), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_eps(prediction, x_t, alpha, std, kind), eps, rtol=1e-9, atol=1e-9)
    x = x0 + sigma * eps
    torch.testing.assert_close(network_input(x, level, path), x_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(denoised_from(prediction, x, level, kind, path), x0, rtol=1e-9, atol=1e-9)


def test_the_named_targets_are_the_papers() -> None:
    x0, eps = draw(0)
    alpha, std = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    assert target_of("eps", x0, eps, alpha, std).equal(eps)
    assert target_of("x0", x0, eps, alpha, std).equal(x0)
    torch.testing.assert_close(target_of("v", x0, eps, alpha, std), 0.8 * eps - 0.6 * x0)  # Salimans & Ho 2022
    torch.testing.assert_close(target_of("flow", x0, eps, alpha, std), eps - x0)  # Liu et al. 2022


def test_a_level_per_picture_is_each_pictures_own() -> None:
    x0, eps = draw(1)
    level = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    prediction = target_of("v", x0, eps, *alpha_and_std(level, "vp"))
    x = x0 + level[:, None, None] * eps
    together = denoised_from(prediction, x, level, "v", "vp")
    for i in range(3):
        alone = denoised_from(prediction[i : i + 1], x[i : i + 1], level[i], "v", "vp")
        torch.testing.assert_close(together[i : i + 1], alone)


def solve(schedule: NoiseSchedule, mixture: GaussianMixture, x: Tensor, high: float, low: float) -> Tensor:
    """Carry x (VE coordinates) from sigma = high to low in the path's own coordinates and time, by RK4; back to VE."""
    start, end = (float(schedule.sigma_to_t(level)) for level in (high, low))
    # Time is warped so that the steps are even in log sigma: the paths differ in time, not in difficulty.
    levels = torch.linspace(math.log(high), math.log(low), 161, dtype=torch.float64).exp()
    grid = schedule.sigma_to_t(levels)
    grid[0], grid[-1] = start, end

    def slope(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, std = schedule.alpha(t), schedule.std(t)
        x0 = mixture.denoise(x_t / alpha, std / alpha)
        return path_velocity(x0, (x_t - alpha * x0) / std, schedule.dalpha_dt(t), schedule.dstd_dt(t))

    state = schedule.alpha(grid[0]) * x
    for t, t_next in pairwise(grid):
        h = t_next - t
        k1 = slope(state, t)
        k2 = slope(state + h / 2 * k1, t + h / 2)
        k3 = slope(state + h / 2 * k2, t + h / 2)
        k4 = slope(state + h * k3, t_next)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state / schedule.alpha(grid[-1])


def test_vp_flow_and_ve_solve_the_same_ode(
    mixture: GaussianMixture, gaussian: OneGaussian, generator: torch.Generator
) -> None:
    x = mixture.sample(8, generator, 5.0)
    ends = {}
    for name in ("cosine", "sigmoid", "linear"):
        ends[name] = solve(make_noise_schedule(name, continuous=True), mixture, x, 5.0, 0.1)
    ends["flow"] = solve(make_noise_schedule("flow"), mixture, x, 5.0, 0.1)
    ends["ve"] = solve(make_noise_schedule("ve"), mixture, x, 5.0, 0.1)
    for name, end in ends.items():
        torch.testing.assert_close(end, ends["ve"], rtol=0, atol=2e-6, msg=f"{name} ends elsewhere than ve")
    exact = gaussian.flow(x, 5.0, 0.1)
    torch.testing.assert_close(solve(make_noise_schedule("flow"), gaussian, x, 5.0, 0.1), exact, rtol=0, atol=1e-7)


def test_the_denoisers_score_is_the_densitys(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x = mixture.sample(6, generator, 0.8)
    level = torch.tensor(0.8, dtype=torch.float64)
    torch.testing.assert_close(score_of(mixture.denoise(x, level), x, level), mixture.score(x, level))


@settings(deadline=None, max_examples=50)
@given(seeds, sigmas)
def test_edm_with_unit_data_is_the_v_prediction_with_its_sign_turned(seed: int, sigma: float) -> None:
    x0, eps = draw(seed)
    level = torch.tensor(sigma, dtype=torch.float64)
    scalings = edm_preconditioning(level, sigma_data=1.0)
    x = x0 + sigma * eps
    raw = edm_target(x0, x, scalings)
    torch.testing.assert_close(raw, -target_of("v", x0, eps, *alpha_and_std(level, "vp")), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(edm_denoised(raw, x, scalings), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 60.0])
def test_edm_keeps_input_and_target_at_unit_variance(sigma: float, generator: torch.Generator) -> None:
    # Karras et al. 2022, appendix B.6: the defining property. n = 400000: standard error 0.0022, 6 of them.
    x0 = 0.5 * torch.randn(1, 400_000, generator=generator, dtype=torch.float64)
    x = x0 + sigma * torch.randn(1, 400_000, generator=generator, dtype=torch.float64)
    scalings = edm_preconditioning(torch.tensor(sigma, dtype=torch.float64))
    assert float((scalings.c_in * x).var()) == pytest.approx(1, abs=0.014)
    assert float(edm_target(x0, x, scalings).var()) == pytest.approx(1, abs=0.014)


def test_impossible_conversions_and_bad_shapes_are_refused() -> None:
    x0, eps = draw(2)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with pytest.raises(InvalidInput, match="determines x0"):
        to_x0(eps, eps, zero, one, "eps")
    with pytest.raises(InvalidInput, match="determines eps"):
        to_eps(x0, x0, one, zero, "x0")
    with pytest.raises(ShapeMismatch):
        to_x0(eps[:2], x0, one, one, "eps")
    with pytest.raises(ShapeMismatch):
        denoised_from(eps, x0, torch.ones(2), "eps", "vp")
    with pytest.raises(UnknownName, match="Did you mean 'eps'"):
        target_of("epss", x0, eps, one, one)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="sigma_data"):
        edm_preconditioning(one, sigma_data=0.0)


def test_v_still_determines_the_data_where_no_signal_is_left() -> None:
    x0, eps = draw(3)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(to_x0(target_of("v", x0, eps, zero, one), eps, zero, one, "v"), x0)
