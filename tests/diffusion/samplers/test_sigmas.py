"""Sigma schedules for inference: exact forms, agreement with diffusers' lists, refusal of bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule, VarianceExploding, make_noise_schedule
from gouache.diffusion.samplers.names import SCHEDULE_INFOS
from gouache.diffusion.samplers.published import ALIGN_YOUR_STEPS, ALIGN_YOUR_STEPS_32, GITS, STOPPING_ABOVE_ZERO
from gouache.diffusion.samplers.sigmas import SCHEDULES, ScheduleOption, discard_penultimate, make_sigmas
from gouache.errors import InvalidInput, UnknownName

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = make_noise_schedule("scaled_linear")
NAMES = sorted(set(SCHEDULES) - {"custom", *STOPPING_ABOVE_ZERO})
TABLE_NAMES = ("simple", "leading", "trailing", "linspace", "lcm", "turbo", "sd_turbo")
TABLES_OF_LEVELS = {"align_your_steps", "align_your_steps_11", "align_your_steps_32", "align_your_steps_gits"}


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize(
    "schedule", [SD, make_noise_schedule("cosine"), make_noise_schedule("ve")], ids=["sd", "cosine", "ve"]
)
@pytest.mark.parametrize("name", NAMES)
def test_shape_order_and_end(name: str, schedule: NoiseSchedule, n: int) -> None:
    n = min(n, 10) if name == "sd_turbo" else n
    sigmas = make_sigmas(name, schedule, n)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (n + 1,)
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[0]) <= schedule.sigma_max * 1.01
    lowest = min(schedule.sigma_min, 0.015) if name == "align_your_steps_32" else schedule.sigma_min
    assert float(sigmas[-2]) >= lowest * 0.99
    if name in TABLE_NAMES:
        assert set(sigmas[:-1].tolist()) <= set(schedule.sigmas.tolist()), "levels that the network was trained on"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"leading"} - TABLES_OF_LEVELS))
def test_starts_at_the_most_noise(name: str) -> None:
    assert float(make_sigmas(name, SD, 7)[0]) == pytest.approx(SD.sigma_max, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["karras", "exponential", "polyexponential", "uniform", "linspace", "beta", "kl_optimal"]
)
def test_ends_at_the_least_noise_before_zero(name: str) -> None:
    assert float(make_sigmas(name, SD, 13)[-2]) == pytest.approx(SD.sigma_min, rel=1e-12)


def test_equal_steps_where_they_are_promised() -> None:
    """karras in sigma^(1/7), exponential in log sigma, kl_optimal in atan sigma, uniform in time."""
    for name, warp in (
        ("karras", lambda s: s ** (1 / 7)),
        ("exponential", torch.log),
        ("kl_optimal", torch.atan),
        ("uniform", SD.sigma_to_t),
        ("sgm_uniform", SD.sigma_to_t),
    ):
        steps = warp(make_sigmas(name, SD, 12)[:-1]).diff()
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-8, atol=1e-8)


DIFFUSERS = [
    ("karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("exponential", "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("beta", "EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("uniform", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("leading", "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("trailing", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
]


@pytest.mark.parametrize("n", [5, 12, 20, 33])
@pytest.mark.parametrize(("name", "peer", "config"), DIFFUSERS, ids=[case[0] for case in DIFFUSERS])
def test_lists_of_diffusers(
    name: str, peer: str, config: dict[str, Any], n: int, read_in_fp64: Callable[[str], ModuleType]
) -> None:
    """Between table entries diffusers interpolates sigma, we log sigma, as k-diffusion does."""
    pytest.importorskip("diffusers")
    module = "dpmsolver_multistep" if "DPM" in peer else "euler_discrete"
    scheduler = getattr(read_in_fp64(f"diffusers.schedulers.scheduling_{module}"), peer)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **config
    )
    scheduler.set_timesteps(n)
    bound = 3e-5 if name == "uniform" else 1e-10
    torch.testing.assert_close(make_sigmas(name, SD, n), scheduler.sigmas, rtol=bound, atol=1e-12)


@pytest.mark.parametrize("n", [4, 10, 25, 50])
@pytest.mark.parametrize(
    ("name", "peer", "config"),
    [
        ("leading", "DDIMScheduler", {"steps_offset": 1}),
        ("trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("linspace", "DDIMScheduler", {"timestep_spacing": "linspace"}),
        ("lcm", "LCMScheduler", {}),
    ],
)
def test_timesteps_of_diffusers(name: str, peer: str, config: dict[str, Any], n: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, peer)(**config)
    scheduler.set_timesteps(n)
    assert torch.equal(make_sigmas(name, SD, n)[:-1], SD.sigmas[scheduler.timesteps])


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("sd1", "StableDiffusionSigmas"),
        ("sdxl", "StableDiffusionXLSigmas"),
        ("svd", "StableDiffusionVideoSigmas"),
    ],
)
def test_align_your_steps_is_the_published_table(family: str, key: str) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    schedule = VarianceExploding(0.002, 700.0) if family == "svd" else SD
    sigmas = make_sigmas("align_your_steps", schedule, 10, options={"family": family})
    assert sigmas.tolist() == module.AysSchedules[key]


def test_align_your_steps_between_its_entries() -> None:
    """Twenty steps keep the ten levels and put the geometric mean between."""
    ten, twenty = (make_sigmas("align_your_steps", SD, n) for n in (10, 20))
    torch.testing.assert_close(twenty[:-1:2], ten[:-1])
    torch.testing.assert_close(twenty[1:18:2], (ten[:9] * ten[1:10]).sqrt())
    with pytest.raises(InvalidInput, match="kl_optimal"):
        make_sigmas("align_your_steps", make_noise_schedule("linear", num_timesteps=200), 10)


@pytest.mark.parametrize("a", [0.3, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("b", [0.6, 1.0, 4.0])
def test_beta_quantiles_against_scipy(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    sigmas = make_sigmas("beta", SD, 9, options={"concentration_1": a, "concentration_0": b})
    shares = (sigmas[:-1] - SD.sigma_min) / (SD.sigma_max - SD.sigma_min)
    expected = torch.tensor([float(stats.beta.ppf(1 - k / 8, a, b)) for k in range(9)], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=1e-9, atol=1e-12)


def test_beta_over_time_is_symmetric_in_time() -> None:
    times = SD.sigma_to_t(make_sigmas("beta", SD, 9, options={"over": "time"})[:-1])
    torch.testing.assert_close(times + times.flip(0), torch.full_like(times, 999.0))


def test_flow_matching_visits_uniform_times() -> None:
    """sgm_uniform on rectified flow with shift 3, as SD3 does: f' = 3 f / (1 + 2 f)."""
    flow = make_noise_schedule("flow", shift=3.0)
    sigmas = make_sigmas("sgm_uniform", flow, 4)
    place = torch.tensor([999.0, 749.25, 499.5, 249.75], dtype=torch.float64)
    fraction = ((place + 1) / 1000).clamp(max=1 - 1e-4)
    torch.testing.assert_close(sigmas[:-1], 3 * fraction / (1 - fraction))


LISTS_OF_TABLES = [
    ("align_your_steps_11", ALIGN_YOUR_STEPS, "sd1"),
    ("align_your_steps_11", ALIGN_YOUR_STEPS, "sdxl"),
    ("align_your_steps_gits", GITS, "sd1"),
    ("align_your_steps_gits", GITS, "sdxl"),
    ("align_your_steps_32", ALIGN_YOUR_STEPS_32, "sd1"),
    ("align_your_steps_32", ALIGN_YOUR_STEPS_32, "sdxl"),
]


@pytest.mark.parametrize("n", [2, 3, 8, 10, 11, 12, 20, 31, 32, 33, 50])
@pytest.mark.parametrize(("name", "tables", "family"), LISTS_OF_TABLES)
def test_lists_from_tables(name: str, tables: dict[str, tuple[float, ...]], family: str, n: int) -> None:
    """n levels from the table's first to its last, log-linear between its entries (numpy's interpolation), then 0."""
    table = tables[family]
    places = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(table)), np.log(table))
    sigmas = make_sigmas(name, SD, n, options={"family": family})
    torch.testing.assert_close(sigmas[:-1], torch.tensor(np.exp(places)), rtol=1e-12, atol=0)
    assert sigmas[-1] == 0
    if n == len(table):
        assert tuple(sigmas[:-1].tolist()) == table


def test_a_table_that_a_family_lacks_is_refused() -> None:
    for name in ("align_your_steps_gits", "align_your_steps_32"):
        with pytest.raises(UnknownName, match="sdxl"):
            make_sigmas(name, SD, 10, options={"family": "svd"})
        with pytest.raises(InvalidInput, match="kl_optimal"):
            make_sigmas(name, make_noise_schedule("linear", num_timesteps=200), 10)


@pytest.mark.parametrize(
    ("name", "n", "timesteps"),
    [
        ("turbo", 1, [999]),
        ("turbo", 2, [999, 499]),
        ("turbo", 4, [999, 749, 499, 249]),
        ("turbo", 16, [999, 936, 874, 812, 749, 686, 624, 562, 499, 436, 374, 312, 249, 186, 124, 62]),
        ("turbo", 30, [999, 966, 932, 899, 866, 832, 799]),
        ("sd_turbo", 1, [999]),
        ("sd_turbo", 4, [999, 899, 799, 699]),
        ("sd_turbo", 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("leading_to_first", 20, [951, 901, 851]),
        ("leading_to_first", 28, [981, 946, 911]),
        ("leading_to_first", 3, [999, 667, 334, 1]),
    ],
)
def test_timesteps_of_other_programs(name: str, n: int, timesteps: list[int]) -> None:
    """Worked out by hand from their rules: (k T / n) - 1 rounded, T - 100 k, and 1, 1 + T // n and so on up to T."""
    places = SD.sigma_to_t(make_sigmas(name, SD, n))[: len(timesteps)]
    torch.testing.assert_close(places, torch.tensor(timesteps, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 7, 20, 31, 50])
def test_linear_quadratic(n: int) -> None:
    """Equal steps up to 2.5 %, a parabola that goes on with their slope, and all noise taken away at the end."""
    for schedule in (SD, make_noise_schedule("flow", shift=3.0)):
        sigmas = make_sigmas("linear_quadratic", schedule, n)
        share = sigmas / (1 + sigmas) if schedule.path == "flow" else sigmas
        taken = 1 - share / share[0]
        half = n // 2
        torch.testing.assert_close(taken[: half + 1], torch.linspace(0, 0.025, half + 1, dtype=torch.float64))
        assert float(taken[-1]) == 1
        if n - half > 2:
            bends = taken[half:].diff().diff()
            torch.testing.assert_close(bends, bends[:1].expand_as(bends), rtol=1e-9, atol=1e-12)
            # A parabola through the threshold whose first step is slope + bend / 2.
            slope = 0.025 / half
            torch.testing.assert_close(taken[half + 1] - taken[half], slope + bends[0] / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STOPPING_ABOVE_ZERO)
@pytest.mark.parametrize("n", [1, 2, 5, 20, 50])
def test_lists_that_stop_above_zero(name: str, n: int) -> None:
    sigmas = make_sigmas(name, SD, n)
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[-1]) == pytest.approx(float(SD.sigmas[1]) if name == "leading_to_first" else SD.sigma_min)
    if name == "kl_optimal_to_min":
        steps = torch.atan(sigmas).diff()
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-8, atol=1e-8)
    if name == "uniform_to_min":
        steps = SD.sigma_to_t(sigmas).diff()
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-8, atol=1e-8)


def test_custom_list() -> None:
    sigmas = make_sigmas("custom", SD, 3, options={"levels": [10.0, 2.0, 0.5]})
    assert sigmas.tolist() == [10.0, 2.0, 0.5, 0.0]
    assert torch.equal(sigmas, make_sigmas("custom", SD, 3, options={"levels": [10.0, 2.0, 0.5, 0.0]}))
    for levels in ([2.0, 10.0, 0.5], [10.0, math.nan, 0.5], [10.0, 2.0], [10.0, 2.0, -1.0], [99.0, 2.0, 1.0]):
        with pytest.raises(InvalidInput):
            make_sigmas("custom", SD, 3, options={"levels": levels})


def test_discard_penultimate() -> None:
    sigmas = make_sigmas("karras", SD, 5)
    kept: Tensor = discard_penultimate(sigmas)
    assert kept.tolist() == [*sigmas[:4].tolist(), 0.0]
    with pytest.raises(InvalidInput):
        discard_penultimate(sigmas[-2:])


@pytest.mark.parametrize("n", [0, -3, 2.5, True])
def test_bad_step_counts(n: int) -> None:
    with pytest.raises(InvalidInput, match="num_inference_steps"):
        make_sigmas("karras", SD, n)


@pytest.mark.parametrize(
    ("name", "n", "options"),
    [
        ("karras", 5, {"rho": 0.0}),
        ("polyexponential", 5, {"rho": math.nan}),
        ("beta", 5, {"concentration_1": -1.0}),
        ("leading", 1001, {}),
        ("leading", 1000, {}),
        ("leading", 5, {"steps_offset": 900}),
        ("leading", 5, {"steps_offset": -1}),
        ("trailing", 1001, {}),
        ("linspace", 1001, {}),
        ("lcm", 51, {}),
        ("lcm", 4, {"original_steps": 2000}),
        ("turbo", 1001, {}),
        ("sd_turbo", 11, {}),
        ("leading_to_first", 1000, {}),
        ("linear_quadratic", 5, {"threshold_noise": 0.0}),
        ("linear_quadratic", 5, {"linear_steps": 5}),
    ],
)
def test_values_out_of_range(name: str, n: int, options: dict[str, ScheduleOption]) -> None:
    with pytest.raises(InvalidInput):
        make_sigmas(name, SD, n, options=options)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'karras'"):
        make_sigmas("karas", SD, 5)
    with pytest.raises(UnknownName, match="'rho'"):
        make_sigmas("karras", SD, 5, options={"roh": 7.0})
    with pytest.raises(UnknownName, match="'sdxl'"):
        make_sigmas("align_your_steps", SD, 5, options={"family": "sdx"})
    with pytest.raises(UnknownName, match="'sigma'"):
        make_sigmas("beta", SD, 5, options={"over": "sigmas"})


@pytest.mark.parametrize("n", [1, 2, 4, 8, 13, 20, 30, 50])
def test_beta_over_time_is_comfyui_s_list(n: int) -> None:
    """Quantiles by SciPy, the indices rounded, the end of the ramp left out, as ComfyUI's `beta` has them (2024)."""
    stats = pytest.importorskip("scipy.stats")
    shares = stats.beta.ppf([1 - k / n for k in range(n)], 0.6, 0.6)
    indices = [round(float(share) * (SD.num_timesteps - 1)) for share in shares]
    wanted = [float(SD.sigmas[index]) for index in indices] + [0.0]
    assert make_sigmas("beta_time", SD, n).tolist() == pytest.approx(wanted, rel=1e-9)


def test_the_table_and_the_functions_hold_the_same_names() -> None:
    """But for the two lists of schedulers, which need more than a noise schedule."""
    assert set(SCHEDULES) | {"model", "diffusers"} == set(SCHEDULE_INFOS)
    for name in ("model", "diffusers"):
        with pytest.raises(InvalidInput, match="in the pipeline"):
            make_sigmas(name, SD, 5)
