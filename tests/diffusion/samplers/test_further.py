"""Samplers that no package has on its own: numbers of an independent program, laws that tie them to known ones, CFG++.

The kind: a sampler that users know by name from one program only. The numbers were made by the k-diffusion module of
ComfyUI (October 2025; the 2S sampler of CFG++ by its form of 2026) in fp64, over the levels, denoisers and "noise"
below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from gouache.diffusion.samplers.dpm_solver import fast_orders, singlestep_orders
from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.diffusion.samplers.registry import Option, sample
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step
from gouache.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture

LEVELS = torch.tensor([6.0, 2.5, 1.1, 0.4, 0.15, 0.0], dtype=torch.float64)
START = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
SCALE = 0.8
CFG_PP = [name for name, info in SAMPLER_INFOS.items() if info.cfg_pp]


def positive(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(x / (1 + sigma**2))


def negative(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (4 + sigma**2)


def guided(x: Tensor, sigma: Tensor) -> Tensor:
    return negative(x, sigma) + SCALE * (positive(x, sigma) - negative(x, sigma))


def cosines() -> NoiseSource:
    """cos 1, cos 2 and so on, the same for all values of a state."""
    numbers = count(1)
    return lambda x, *_: torch.full_like(x, math.cos(next(numbers)))


def last(
    name: str, denoise: Denoise, options: dict[str, Option] | None = None, noise: NoiseSource | None = None
) -> Tensor:
    *_, step = sample(name, denoise, START, LEVELS, options=options, noise=noise or cosines())
    return step.x


def in_the_middle(sigma: float, sigma_next: float) -> bool:
    del sigma
    return 0.3 <= sigma_next <= 3


NUMBERS = {
    "heunpp2": (0.380188217244, -0.473526989254),
    "ipndm": (0.417475661021, -0.508538401896),
    "ipndm_v": (0.408420254133, -0.502119308154),
    "res_multistep": (0.441580194780, -0.538800763016),
    "res_multistep_ancestral": (-0.538893761911, -0.636456353697),
    "gradient_estimation": (0.443598042571, -0.537075179239),
    "er_sde": (0.275731351804, -0.477952310174),
    "seeds_2": (0.041206932232, -0.094771659252),
    "seeds_3": (-0.012226987975, -0.169188513586),
    "sa_solver": (-0.351680209832, -0.491484702440),
    "sa_solver_pece": (-0.440727738110, -0.545838928191),
    "euler_cfg_pp": (0.360741592651, -0.446858139455),
    "euler_ancestral_cfg_pp": (-0.272792098804, -0.387111050454),
    "dpmpp_2m_cfg_pp": (0.451848526588, -0.541865073647),
    "dpmpp_2s_ancestral_cfg_pp": (-0.254177923388, -0.349772562616),
    "res_multistep_cfg_pp": (0.205864175110, -0.266489565097),
    "res_multistep_ancestral_cfg_pp": (-0.272385821121, -0.273118931946),
    "gradient_estimation_cfg_pp": (0.289067512782, -0.363030663694),
}


@pytest.mark.parametrize(("name", "numbers"), NUMBERS.items())
def test_numbers_of_the_other_program(name: str, numbers: tuple[float, float]) -> None:
    cfg_pp = SAMPLER_INFOS[name].cfg_pp
    options: dict[str, Option] = {"unconditional": negative} if cfg_pp else {}
    if name.startswith("sa_solver"):
        options["noisy_at"] = in_the_middle
    found = last(name, guided if cfg_pp else positive, options)
    bound = 1e-8 if name == "er_sde" else 1e-11  # its quadrature there runs in fp32
    torch.testing.assert_close(found[0], torch.tensor(numbers, dtype=torch.float64), rtol=0, atol=bound)


WITHOUT_GUIDANCE = {
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "ddim_cfg_pp": "ddim",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral",
    "res_multistep_cfg_pp": "res_multistep",
    "res_multistep_ancestral_cfg_pp": "res_multistep_ancestral",
    "gradient_estimation_cfg_pp": "gradient_estimation",
}


@pytest.mark.parametrize(("name", "plain"), WITHOUT_GUIDANCE.items())
def test_cfg_pp_without_guidance_is_the_plain_sampler(name: str, plain: str) -> None:
    assert set(WITHOUT_GUIDANCE) == set(CFG_PP)
    expected = last(plain, positive)
    torch.testing.assert_close(last(name, positive), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last(name, positive, {"unconditional": positive}), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_ends_on_the_guided_estimate(name: str) -> None:
    *_, step = sample(name, guided, START, LEVELS, options={"unconditional": negative}, noise=cosines())
    torch.testing.assert_close(step.x, step.denoised, rtol=0, atol=1e-12)


SAME_METHOD: list[tuple[str, dict[str, Option], str, dict[str, Option]]] = [
    ("res_multistep", {}, "dpmpp_2m_sde_heun", {"eta": 0.0}),
    ("res_multistep_ancestral", {"eta": 0.0}, "res_multistep", {}),
    ("seeds_2", {"eta": 0.0}, "dpmpp_2s", {}),
    ("exp_heun_2_x0_sde", {"eta": 0.0}, "exp_heun_2_x0", {}),
    ("gradient_estimation", {"gamma": 1.0}, "euler", {}),
    ("ipndm", {"order": 1}, "euler", {}),
    ("ipndm_v", {"order": 2, "weights": "exact"}, "ipndm_v", {"order": 2}),
    ("dpmpp_singlestep", {"order": 1}, "euler", {}),
    ("tcd", {"eta": 0.0}, "euler", {}),
    ("tcd", {"eta": 1.0}, "lcm", {}),
    ("ddim_cfg_pp", {"eta": 1.0}, "euler_ancestral", {}),
]


@pytest.mark.parametrize(("name", "options", "other", "same"), SAME_METHOD)
def test_two_names_of_one_method(name: str, options: dict[str, Option], other: str, same: dict[str, Option]) -> None:
    torch.testing.assert_close(last(name, positive, options), last(other, positive, same), rtol=0, atol=1e-12)


def test_exact_weights_of_ipndm_v_are_those_of_lms() -> None:
    """Up to the step to zero, which `lms` extrapolates across."""
    exact = list(sample("ipndm_v", positive, START, LEVELS, options={"weights": "exact"}))
    for one, other in zip(exact[:-1], sample("lms", positive, START, LEVELS), strict=False):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("calls", range(1, 40))
def test_dpm_fast_makes_as_many_calls_as_the_list_has_steps(calls: int) -> None:
    orders = fast_orders(calls)
    assert sum(orders) == calls
    assert all(order == 3 for order in orders[:-2])
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return positive(x, sigma)

    levels = torch.cat([torch.linspace(5.0, 0.5, calls, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    list(sample("dpm_fast", denoise, START, levels))
    assert len(seen) == calls


@pytest.mark.parametrize("steps", range(1, 16))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_orders(order: int, steps: int) -> None:
    for to_zero in (True, False):
        orders = singlestep_orders(steps, order, to_zero=to_zero)
        assert len(orders) == steps
        assert orders[0] == 1
        assert max(orders) <= order
        assert all(b in (1, a + 1) for a, b in pairwise(orders)), orders
        assert not to_zero or orders[-1] == 1


def test_dpm_adaptive_gives_every_picture_its_own_steps(mixture: GaussianMixture) -> None:
    """A picture of a batch, alone, and beside others: bit for bit the same."""
    x = 6 * torch.randn(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    alone = [list(sample("dpm_adaptive", mixture.denoise, one, LEVELS)) for one in (x[:1], x[1:2], x[2:])]
    together = list(sample("dpm_adaptive", mixture.denoise, x, LEVELS))
    assert len(together) == max(map(len, alone))
    assert torch.equal(together[-1].x, torch.cat([steps[-1].x for steps in alone]))
    assert [step.i for step in together] == list(range(len(together)))


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_comes_to_an_end(order: int) -> None:
    """With answers that aren't finite, and with ones that jump about however short a step is."""
    nowhere = list(sample("dpm_adaptive", lambda x, _: x * math.nan, START, LEVELS, options={"order": order}))
    assert 0 < len(nowhere) < 20
    signs = count()

    def jumping(x: Tensor, sigma: Tensor) -> Tensor:
        return x + sigma * (-1.0) ** next(signs)

    steps = list(sample("dpm_adaptive", jumping, START, LEVELS, options={"order": order}))
    assert steps[-1].sigma_next == pytest.approx(0.15)
    assert next(signs) < 10_000


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_one_step_to_zero_lands_on_d(name: str) -> None:
    (step,) = sample(name, positive, START, [5.0, 0.0])
    torch.testing.assert_close(step.x, positive(START, torch.tensor(5.0)))
    assert (step.sigma, step.sigma_next) == (5.0, 0.0)


def test_a_step_without_noise_draws_none() -> None:
    """SA-Solver outside its interval, and every sampler at eta 0: the draws of later steps don't move."""
    drawn: list[float] = []

    def draw(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        assert sigma > sigma_next
        drawn.append(sigma_next)
        return torch.zeros_like(x)

    last("sa_solver", positive, {"noisy_at": in_the_middle}, draw)
    assert drawn == [2.5, 1.1, 0.4]
    for name in ("seeds_2", "seeds_3", "exp_heun_2_x0_sde", "sa_solver", "sa_solver_2", "tcd", "dpm_fast"):
        drawn.clear()
        last(name, positive, {"eta": 0.0}, draw)
        assert not drawn, name


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("tcd", {"eta": 1.5}, "eta"),
        ("seeds_2", {"r": 0.0}, "r"),
        ("seeds_2", {"r": 1.1}, "r"),
        ("seeds_2", {"solver_type": "phi_3"}, "solver_type"),
        ("ipndm", {"order": 5}, "order"),
        ("ipndm_v", {"weights": "wrong"}, "weights"),
        ("sa_solver", {"predictor_order": 0}, "predictor_order"),
        ("sa_solver", {"corrector_order": 5}, "corrector_order"),
        ("er_sde", {"order": 4}, "order"),
        ("dpm_adaptive", {"order": 1}, "order"),
        ("dpm_adaptive", {"h_init": 0.0}, "h_init"),
        ("dpmpp_singlestep", {"order": 4}, "order"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Option], where: str) -> None:
    def walk() -> Iterator[Step]:
        return sample(name, positive, START, LEVELS, options=options, noise=cosines())

    with pytest.raises((InvalidInput, UnknownName)) as caught:
        list(walk())
    assert caught.value.where == where
