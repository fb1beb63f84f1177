"""Noise schedules against diffusers' tables, their own derivatives, and the laws that tie the paths together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gouache.diffusion import betas as tables
from gouache.diffusion.noise_schedule import (
    NAMES,
    DiscreteVP,
    FlowMatching,
    NoiseSchedule,
    Path,
    VarianceExploding,
    alpha_and_std,
    make_noise_schedule,
)
from gouache.errors import InvalidInput, UnknownName

CONTINUOUS = ("linear", "scaled_linear", "cosine", "sigmoid")
EVERY: dict[str, Callable[[], NoiseSchedule]] = {
    **{name: partial(make_noise_schedule, name) for name in NAMES},
    **{f"{name}, continuous": partial(make_noise_schedule, name, continuous=True) for name in CONTINUOUS},
    "scaled_linear, zero terminal SNR": partial(make_noise_schedule, "scaled_linear", zero_terminal_snr=True),
    "flow, shift 3": partial(make_noise_schedule, "flow", shift=3.0),
}


@pytest.fixture(params=EVERY)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return EVERY[request.param]()


def times(schedule: NoiseSchedule, number: int = 1001) -> Tensor:
    start = max(schedule.t_min, 0.01)
    return torch.linspace(start, schedule.t_max, number, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
        ("cosine", "squaredcos_cap_v2"),
        ("sigmoid_betas", "sigmoid"),
    ],
)
@pytest.mark.parametrize("ends", [(1e-4, 0.02), (0.00085, 0.012)])
@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_tables_equal_those_of_diffusers(name: str, peer: str, ends: tuple[float, float], num_timesteps: int) -> None:
    start, end = (None, None) if name == "cosine" else ends
    ours = make_noise_schedule(name, num_timesteps=num_timesteps, beta_start=start, beta_end=end).alphas_cumprod
    theirs = DDPMScheduler(
        num_train_timesteps=num_timesteps, beta_start=ends[0], beta_end=ends[1], beta_schedule=peer
    ).alphas_cumprod
    # diffusers works in fp32: T roundings of 6e-8 each.
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-9)


def test_stable_diffusions_schedule_has_its_well_known_ends() -> None:
    # sigma_min and sigma_max as k-diffusion prints them for SD 1.x.
    schedule = make_noise_schedule("scaled_linear")
    assert schedule.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert schedule.sigma_max == pytest.approx(14.6146, abs=5e-5)


def test_zero_terminal_snr_equals_that_of_diffusers() -> None:
    table = tables.alphas_cumprod_of(tables.scaled_linear_betas(1000))
    rescaled = tables.rescale_zero_terminal_snr(table)
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod
    torch.testing.assert_close(rescaled, theirs.double(), rtol=2e-4, atol=1e-9)
    assert float(rescaled[-1]) == 0
    assert float(rescaled[0]) == pytest.approx(float(table[0]), rel=1e-15)
    assert EVERY["scaled_linear, zero terminal SNR"]().sigma_max == pytest.approx(math.sqrt(2**24 - 1))


def test_discrete_sigmas_equal_those_of_diffusers_euler() -> None:
    peer = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    theirs = peer.sigmas[:-1].flip(0).double()
    torch.testing.assert_close(EVERY["scaled_linear"]().sigmas, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_equal_those_of_diffusers(shift: float) -> None:
    peer = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = FlowMatching(shift)
    fraction = schedule.sigmas / (1 + schedule.sigmas)
    # All but the last: theirs is 1, pure noise, where sigma is infinite; ours stops just short of it.
    torch.testing.assert_close(fraction[:-1], peer.sigmas.flip(0).double()[:-1], rtol=2e-6, atol=0)
    torch.testing.assert_close(schedule.sigma_to_t(schedule.sigmas), fraction * 1000)


def test_levels_rise_and_times_come_back(schedule: NoiseSchedule) -> None:
    t = times(schedule)
    assert schedule.sigmas.shape == (1000,)
    assert bool((schedule.sigmas.diff() > 0).all())
    assert bool(schedule.sigmas.isfinite().all())
    torch.testing.assert_close(schedule.sigma_to_t(schedule.t_to_sigma(t)), t, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(schedule.log_snr_to_t(schedule.log_snr(t)), t, rtol=1e-10, atol=1e-8)
    indices = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.index_to_sigma(indices), schedule.sigmas, rtol=1e-12, atol=0)


def test_alpha_and_std_lie_on_the_path_and_give_sigma_and_log_snr(schedule: NoiseSchedule) -> None:
    t = times(schedule)
    alpha, std = schedule.alpha(t), schedule.std(t)
    law = {"vp": alpha**2 + std**2, "flow": alpha + std, "ve": alpha}[schedule.path]
    torch.testing.assert_close(law, torch.ones_like(t))
    torch.testing.assert_close(std / alpha, schedule.t_to_sigma(t))
    torch.testing.assert_close(schedule.log_snr(t), (alpha**2 / std**2).log())
    torch.testing.assert_close(schedule.alphas_cumprod, 1 / (1 + schedule.sigmas**2), rtol=1e-9, atol=0)


def test_derivatives_are_those_of_finite_differences(schedule: NoiseSchedule) -> None:
    # Off the table's knots, where a piecewise schedule has no derivative.
    t = torch.arange(2, 990, 7, dtype=torch.float64) + 0.37
    h = 1e-4

    def slope(low: Tensor, high: Tensor) -> Tensor:
        return (high - low) / (2 * h)

    for value, derivative in (
        (schedule.t_to_sigma, schedule.dsigma_dt),
        (schedule.alpha, schedule.dalpha_dt),
        (schedule.std, schedule.dstd_dt),
        (schedule.log_snr, schedule.dlog_snr_dt),
    ):
        torch.testing.assert_close(derivative(t), slope(value(t - h), value(t + h)), rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(schedule.drift(t), schedule.dalpha_dt(t) / schedule.alpha(t))
    # g^2 = d std^2/dt - 2 f std^2, written out.
    g_squared = 2 * schedule.std(t) * schedule.dstd_dt(t) - 2 * schedule.drift(t) * schedule.std(t) ** 2
    torch.testing.assert_close(schedule.diffusion_squared(t), g_squared, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_chain_tends_to_the_continuous_process(name: str) -> None:
    """The gap in log sigma over the middle of the process shrinks like 1 / T (to nothing for cosine and sigmoid)."""

    def gap(num_timesteps: int) -> float:
        ends = (0.1 / num_timesteps, 20 / num_timesteps) if "linear" in name else (None, None)
        discrete, continuous = (
            make_noise_schedule(
                name, num_timesteps=num_timesteps, beta_start=ends[0], beta_end=ends[1], continuous=flag
            )
            for flag in (False, True)
        )
        middle = slice(num_timesteps // 4, 3 * num_timesteps // 4)
        return float((discrete.sigmas.log() - continuous.sigmas.log())[middle].abs().max())

    coarse, fine = gap(500), gap(2000)
    if "linear" in name:
        assert coarse / fine == pytest.approx(4, rel=0.05)
    else:
        assert fine < 1e-10


def test_betas_and_alphas_cumprod_are_inverse() -> None:
    betas = tables.linear_betas(50)
    torch.testing.assert_close(tables.betas_of(tables.alphas_cumprod_of(betas)), betas, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=50)
@given(shift=st.floats(0.2, 8), index=st.floats(0, 998))
def test_a_shift_multiplies_sigma_and_leaves_the_networks_clock_alone(shift: float, index: float) -> None:
    plain, shifted = FlowMatching(), FlowMatching(shift)
    assert float(shifted.index_to_sigma(index)) == pytest.approx(shift * float(plain.index_to_sigma(index)), rel=1e-9)
    assert float(shifted.t_to_sigma(250.0)) == pytest.approx(float(plain.t_to_sigma(250.0)))
    # Esser et al. 2024, equation 23, written out.
    f = (index + 1) / 1000
    moved = shift * f / (1 + (shift - 1) * f)
    assert float(shifted.sigma_to_t(shifted.index_to_sigma(index))) == pytest.approx(1000 * moved, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(sigma=st.floats(1e-3, 1e3))
def test_every_path_splits_sigma_into_its_alpha_and_std(sigma: float) -> None:
    level = torch.tensor(sigma, dtype=torch.float64)
    paths: tuple[Path, ...] = ("vp", "flow", "ve")
    for path in paths:
        alpha, std = alpha_and_std(level, path)
        assert float(std / alpha) == pytest.approx(sigma, rel=1e-12)


def test_between_entries_log_sigma_is_linear_and_beyond_the_ends_time_is_clamped() -> None:
    schedule = DiscreteVP(torch.tensor([0.9, 0.5, 0.1]))
    middle = math.sqrt(float(schedule.sigmas[0] * schedule.sigmas[1]))
    assert float(schedule.t_to_sigma(0.5)) == pytest.approx(middle)
    assert float(schedule.sigma_to_t(middle)) == pytest.approx(0.5)
    assert float(schedule.sigma_to_t(0.0)) == 0
    assert float(schedule.sigma_to_t(1e6)) == 2


def test_times_between_entries_equal_those_of_diffusers() -> None:
    """diffusers spreads Karras levels over the same table by the same log-linear rule, which k-diffusion began."""
    schedule = make_noise_schedule("scaled_linear")
    peer = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    levels = torch.logspace(-1.6, 1.2, 301, dtype=torch.float64)  # beyond both ends, too
    expected = torch.from_numpy(peer._sigma_to_t(levels.numpy(), schedule.sigmas.log().numpy()))
    torch.testing.assert_close(schedule.sigma_to_t(levels), expected)


def test_answers_keep_shape_and_precision() -> None:
    schedule = EVERY["scaled_linear"]()
    given_half = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    assert schedule.sigma_to_t(given_half).dtype == torch.float32
    assert schedule.sigma_to_t(given_half).shape == (1, 2)
    assert schedule.t_to_sigma(3.0).dtype == torch.float64
    assert schedule.t_to_sigma(torch.tensor([1, 2])).dtype == torch.float32


def test_variance_exploding_is_geometric_between_its_ends() -> None:
    schedule = VarianceExploding(0.01, 100.0, 5)
    torch.testing.assert_close(schedule.sigmas, torch.tensor([0.01, 0.1, 1, 10, 100], dtype=torch.float64))


def test_bad_input_is_refused_with_a_typed_error() -> None:
    schedule = EVERY["scaled_linear"]()
    with pytest.raises(UnknownName, match="Did you mean 'scaled_linear'"):
        make_noise_schedule("scaled-linear")
    with pytest.raises(UnknownName, match="path"):
        alpha_and_std(torch.ones(()), "sub-vp")  # type: ignore[arg-type]
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="sigma"):
            schedule.sigma_to_t(bad)
    for bad in (-1.0, 1000.0, math.nan):
        with pytest.raises(InvalidInput, match="t:"):
            schedule.t_to_sigma(bad)
    with pytest.raises(InvalidInput, match="index"):
        schedule.index_to_sigma(999.5)
    for table in ([0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.5, 0.0], [0.9, math.nan], [0.9]):
        with pytest.raises(InvalidInput, match="alphas_cumprod"):
            DiscreteVP(torch.tensor(table))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"num_timesteps": 1}),
        ("linear", {"beta_start": 0.5, "beta_end": 0.1}),
        ("linear", {"beta_end": 1.5}),
        ("cosine", {"beta_start": 0.1}),
        ("linear", {"shift": 3.0}),
        ("flow", {"shift": 0.0}),
        ("flow", {"shift": math.nan}),
        ("flow", {"continuous": True}),
        ("ve", {"zero_terminal_snr": True}),
        ("linear", {"continuous": True, "zero_terminal_snr": True}),
        ("sigmoid_betas", {"continuous": True}),
        ("scaled_linear", {"continuous": True, "beta_start": 0.01, "beta_end": 0.01}),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        make_noise_schedule(name, **options)  # type: ignore[arg-type]
