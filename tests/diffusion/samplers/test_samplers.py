"""The samplers' laws: right distribution, no wasted or missing calls, purity, and refusal of bad input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.samplers.ancestral import Restart, restart_plan
from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.diffusion.samplers.registry import SAMPLERS, Option, check_sigmas, sample, sampler_options
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.diffusion.samplers.step import NoiseSource
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture

NAMES = sorted(SAMPLER_INFOS)
LEVELS = torch.tensor([6.0, 2.0, 0.7, 0.2, 0.0], dtype=torch.float64)


def noise_of(seed: int) -> NoiseSource:
    generator = torch.Generator().manual_seed(seed)
    return lambda x, *_: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def recording(drawn: list[float]) -> NoiseSource:
    """Noise of zeros that writes down from which level it was asked for."""

    def draw(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        drawn.append(sigma)
        return torch.zeros_like(x) * sigma_next

    return draw


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, sigma) for N(0, 1)."""
    return x / (1 + sigma**2)


# Statistics. The state starts from the exact marginal and takes enough steps (60; first-order samplers 240) for the
# bias to be below the scatter of 4000 points. Two statistics a case, each refused beyond what chance alone exceeds once
# in 10^6: Hotelling's T^2 of the mean (chi-square, 2 degrees of freedom) and, for the covariance, the largest of its
# three entries in units of their own scatter. 28 cases: less than one false alarm in 17 000 runs; seeds are fixed.
POINTS = 4000
T2_LIMIT = -2 * math.log(1e-6)
Z_LIMIT = 5.1  # two-sided, three entries: 1e-6

STATISTICS: list[tuple[str, dict[str, Option]]] = [
    ("ddpm", {}),
    ("ddpm", {"variance": "fixed_large"}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {}),
    ("euler", {"s_churn": 20.0}),
    ("heun", {"s_churn": 20.0}),
    ("dpm_2", {"s_churn": 20.0}),
    ("euler_ancestral", {}),
    ("dpm_2_ancestral", {}),
    ("dpmpp_2s_ancestral", {}),
    ("dpmpp_sde", {}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde_heun", {}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_3m_sde", {"curvature": "exact"}),
    ("restart", {"restarts": (Restart(0.1, 2.0, times=2), Restart(0.5, 3.0))}),
    ("dpmpp_2m", {}),
    ("unipc_bh2", {}),
    ("dpmpp_2s_ancestral_cfg_pp", {}),
    ("res_multistep_ancestral", {}),
    ("sa_solver", {}),
    ("sa_solver", {"eta": 0.6}),
    ("sa_solver_2", {}),
    ("er_sde", {}),
    ("seeds_2", {}),
    ("seeds_3", {}),
    ("dpm_fast", {"eta": 1.0}),
]


@pytest.mark.parametrize(("name", "options"), STATISTICS)
def test_mean_and_covariance(name: str, options: dict[str, Option], mixture: GaussianMixture) -> None:
    steps = 240 if SAMPLER_INFOS[name].order == 1 else 60
    levels = torch.linspace(8.0 ** (1 / 5), 0.03 ** (1 / 5), steps + 1, dtype=torch.float64) ** 5
    x = mixture.sample(POINTS, torch.Generator().manual_seed(17), sigma=8.0)
    *_, last = sample(name, mixture.denoise, x, [*levels.tolist(), 0.0], options=options, noise=noise_of(23))
    offsets = last.x - mixture.mean
    mean = offsets.mean(0)
    t2 = POINTS * mean @ torch.linalg.solve(mixture.covariance, mean)
    assert float(t2) < T2_LIMIT
    products = torch.stack([offsets[:, 0] ** 2, offsets[:, 1] ** 2, offsets[:, 0] * offsets[:, 1]], 1)
    expected = torch.stack([mixture.covariance[0, 0], mixture.covariance[1, 1], mixture.covariance[0, 1]])
    scatter = products.std(0) / math.sqrt(POINTS)
    z = (products.mean(0) - expected) / scatter
    assert float(z.abs().max()) < Z_LIMIT, z.tolist()


@pytest.mark.parametrize("name", [name for name in NAMES if not SAMPLER_INFOS[name].own_levels])
def test_calls_steps_and_levels(name: str) -> None:
    """As many network calls as the table says, each at a level within the list, one step for each interval."""
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == ()
        assert sigma.dtype == torch.float64
        seen.append(float(sigma))
        return shrink(x, sigma)

    options: dict[str, Option] = {"restarts": ()} if name == "restart" else {}
    steps = list(sample(name, denoise, torch.ones(1, 3), LEVELS, options=options, noise=noise_of(0)))
    assert [step.i for step in steps] == [0, 1, 2, 3]
    walked = LEVELS.flip(0) if name == "ddim_inversion" else LEVELS
    assert [step.sigma for step in steps] == walked[:-1].tolist()
    assert [step.sigma_next for step in steps] == walked[1:].tolist()
    # The step to 0 takes one call; heunpp2 looks one level less ahead before it; pndm_prk has three steps of four.
    extra = {"plms": 1, "pndm_prk": 9, "heunpp2": 5}.get(name, 3 * (SAMPLER_INFOS[name].calls - 1))
    assert len(seen) == 4 + extra
    assert all(0 < sigma <= 6.0 for sigma in seen)
    assert steps[-1].x.dtype == torch.float32
    assert bool(steps[-1].x.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_pure_lazy_and_leaves_its_input_alone(name: str) -> None:
    x = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(1, 3, 2, 2)
    kept, state = x.clone(), torch.random.get_rng_state()
    results = [list(sample(name, shrink, x, LEVELS, noise=noise_of(3)))[-1].x for _ in range(2)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"

    def never(*_: Tensor) -> Tensor:
        raise AssertionError("called before the first step was asked for")

    sample(name, never, x, LEVELS, noise=noise_of(3))


@pytest.mark.parametrize("name", [n for n in NAMES if SAMPLER_INFOS[n].stochastic == "no"])
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, together = sample(name, shrink, x, LEVELS)
    *_, alone = sample(name, shrink, x[1:2], LEVELS)
    assert torch.equal(together.x[1:2], alone.x)


@pytest.mark.parametrize(
    ("stochastic", "plain"),
    [
        ("euler_ancestral", "euler"),
        ("ddim", "euler"),
        ("dpm_2_ancestral", "dpm_2"),
        ("dpmpp_2s_ancestral", "dpmpp_2s"),
        ("dpmpp_sde", "dpmpp_2s"),
        ("dpmpp_2m_sde", "dpmpp_2m"),
    ],
)
def test_without_noise_it_is_the_deterministic_one(stochastic: str, plain: str) -> None:
    x = torch.full((1, 2), 4.0, dtype=torch.float64)
    for one, other in zip(
        sample(stochastic, shrink, x, LEVELS, options={"eta": 0.0}), sample(plain, shrink, x, LEVELS), strict=True
    ):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-12)


def test_eta_one_is_the_ddpm_chain() -> None:
    x = torch.full((1, 2), 4.0, dtype=torch.float64)
    for one, other in zip(
        sample("ddpm", shrink, x, LEVELS, noise=noise_of(5)),
        sample("ddim", shrink, x, LEVELS, options={"eta": 1.0}, noise=noise_of(5)),
        strict=True,
    ):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-12)


def test_restart_plan() -> None:
    levels = [10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.0]
    plain = [(10.0, 5.0), (5.0, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.1), (0.1, 0.0)]
    assert restart_plan(levels, ()) == plain
    again = [(2.0, 1.0), (1.0, 0.5)]
    assert restart_plan(levels, [Restart(0.4, 2.1, times=2)]) == [*plain[:4], *again, *again, *plain[4:]]
    karras = restart_plan(levels, [Restart(0.5, 5.0, steps=3)])[4:7]
    assert [karras[0][0], karras[-1][1]] == [5.0, 0.5]
    assert karras[1][0] == pytest.approx((2 / 3 * 5.0 ** (1 / 7) + 1 / 3 * 0.5 ** (1 / 7)) ** 7)
    assert restart_plan([10.0, 5.0, 0.0], [Restart(0.1, 2.0)]) == [(10.0, 5.0), (5.0, 0.0)], "both ends meet: nothing"


@pytest.mark.parametrize(
    ("sigmas", "where"),
    [
        ([], "sigmas"),
        ([1.0], "sigmas"),
        ([2.0, float("nan"), 0.0], "sigmas[1]"),
        ([float("inf"), 1.0, 0.0], "sigmas[0]"),
        ([2.0, -1.0], "sigmas[1]"),
        ([1.0, 2.0, 0.0], "sigmas[1]"),
        ([2.0, 1.0, 1.0, 0.0], "sigmas[2]"),
        ([2.0, 0.0, 0.0], "sigmas[2]"),
    ],
)
def test_bad_sigmas_are_refused_before_the_first_call(sigmas: list[float], where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        sample("euler", shrink, torch.ones(1, 2), sigmas)
    assert caught.value.where == where


def test_sigmas_need_one_axis() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(2, 2\)"):
        check_sigmas(torch.tensor([[2.0, 1.0], [1.0, 0.0]]))
    checked = check_sigmas([3.0, 1.0])
    assert checked.dtype == torch.float64
    assert checked.tolist() == [3.0, 1.0]


def test_unknown_names_offer_the_nearest() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(UnknownName, match="Did you mean 'dpmpp_2m'"):
        sample("dpmp_2m", shrink, x, LEVELS)
    with pytest.raises(UnknownName, match="'s_churn'"):
        sample("euler", shrink, x, LEVELS, options={"churn": 1.0})
    with pytest.raises(UnknownName, match="'midpoint'"):
        list(sample("dpmpp_2m_sde", shrink, x, LEVELS, options={"solver_type": "midpiont"}, noise=noise_of(0)))


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("ddim", {"eta": -0.1}, "eta"),
        ("ddim", {"eta": float("nan")}, "eta"),
        ("euler", {"s_noise": float("inf")}, "s_noise"),
        ("lms", {"order": 0}, "order"),
        ("lms", {"order": 5}, "order"),
        ("unipc_bh2", {"order": 2.5}, "order"),
        ("deis", {"order": True}, "order"),
        ("dpmpp_sde", {"r": 1.0}, "r"),
        ("ddim_inversion", {"iterations": 10_000}, "iterations"),
        ("restart", {"restarts": (Restart(2.0, 1.0),)}, "restarts"),
        ("restart", {"restarts": (Restart(steps=0),)}, "restarts.steps"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Option], where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        list(sample(name, shrink, torch.ones(1, 2), LEVELS, options=options, noise=noise_of(0)))
    assert caught.value.where == where


def test_bad_states_and_denoisers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="floating"):
        sample("euler", shrink, torch.ones(1, 2, dtype=torch.int64), LEVELS)
    with pytest.raises(ShapeMismatch, match=r"\(1, 2\)"):
        list(sample("euler", lambda x, _: x[:, :1], torch.ones(1, 2), LEVELS))


@pytest.mark.parametrize("name", [n for n in NAMES if SAMPLER_INFOS[n].stochastic == "yes"])
def test_missing_noise_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="noise"):
        list(sample(name, shrink, torch.ones(1, 2), LEVELS))


def test_churn_without_noise_is_refused() -> None:
    with pytest.raises(InvalidInput, match="noise"):
        sample("heun", shrink, torch.ones(1, 2), LEVELS, options={"s_churn": 1.0})


def test_options_are_those_of_the_function() -> None:
    assert sampler_options("Euler a") == ("eta", "s_noise")
    assert sampler_options("dpmpp_2m") == ()
    assert set(SAMPLERS) == set(SAMPLER_INFOS)


def test_stochastic_says_whether_noise_is_taken() -> None:
    x = torch.ones(1, 2)
    for name, info in SAMPLER_INFOS.items():
        drawn: list[float] = []
        list(sample(name, shrink, x, LEVELS, noise=recording(drawn)))
        assert bool(drawn) == (info.stochastic == "yes"), name
        assert ("noise" in SAMPLERS[name].__annotations__) == (info.stochastic != "no"), name


def test_a_real_schedule_runs_through_every_sampler_in_fp32() -> None:
    levels = make_sigmas("karras", make_noise_schedule("scaled_linear"), 6)
    for name in NAMES:
        start = torch.ones(1, 4, 2, 2) if name == "ddim_inversion" else torch.ones(1, 4, 2, 2) * levels[0]
        *_, last = sample(name, shrink, start.float(), levels, noise=noise_of(1))
        assert last.x.dtype == torch.float32, name
        assert isinstance(last.sigma, float), name
