"""TCD, PNDM's own start, iPNDM, SA-Solver and singlestep DPM-Solver++, step by step against diffusers' schedulers in
fp64 on the closed-form denoiser. States are compared as x / alpha."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule, make_noise_schedule
from gouache.diffusion.samplers.registry import Option, sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.diffusion.samplers.step import NoiseSource
from gouache.pipeline.generate.sampler_settings import own_settings
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__ must accept:DeprecationWarning"
)
BOUND = 1e-9
SD = make_noise_schedule("scaled_linear")


@pytest.fixture(autouse=True)
def _diffusers_in_fp64(read_in_fp64: Callable[[str], types.ModuleType]) -> None:
    for name in ("tcd", "pndm", "ipndm", "sasolver", "dpmsolver_singlestep"):
        read_in_fp64(f"diffusers.schedulers.scheduling_{name}")


def alpha(sigma: Tensor | float) -> Tensor:
    return (1 + torch.as_tensor(sigma, dtype=torch.float64) ** 2).rsqrt()


def start(level: Tensor) -> Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64) * level


def seeded() -> NoiseSource:
    generator = torch.Generator().manual_seed(5)
    return lambda x, *_: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def settings(name: str, schedule: NoiseSchedule = SD) -> dict[str, Option]:
    """What the pipeline gives this sampler on its own."""
    return own_settings(Request(prompt="", sampler=name), schedule)


def ours(
    name: str, mixture: GaussianMixture, x: Tensor, levels: Tensor, noise: NoiseSource | None, **options: Option
) -> list[Tensor]:
    return [step.x for step in sample(name, mixture.denoise, x, levels, options=options, noise=noise)]


def assert_same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(mine) == len(theirs)
    worst = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    assert worst <= BOUND, f"states differ by {worst:.2e}"


@pytest.mark.parametrize("n", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_tcd(eta: float, n: int, picture_mixture: GaussianMixture) -> None:
    """The last state is left at timestep 0, as there."""
    scheduler = diffusers.TCDScheduler()
    scheduler.alphas_cumprod = SD.alphas_cumprod
    scheduler.set_timesteps(n)
    levels = make_sigmas("lcm", SD, n)
    torch.testing.assert_close(SD.sigmas[scheduler.timesteps], levels[:-1], rtol=0, atol=0)
    x = start(levels[0])
    state, theirs, generator = x * alpha(levels[0]), [], torch.Generator().manual_seed(5)
    for i, t in enumerate(scheduler.timesteps):
        seen = state / alpha(levels[i])
        eps = (seen - picture_mixture.denoise(seen, levels[i])) / levels[i]
        state = scheduler.step(eps, t, state, eta=eta, generator=generator, return_dict=False)[0]
        theirs.append(state / alpha(levels[i + 1]))
    assert_same(ours("tcd", picture_mixture, x, levels, seeded(), eta=eta, **settings("tcd")), theirs)


@pytest.mark.parametrize("n", [4, 5, 10, 25, 50])
def test_pndm_with_its_own_start(n: int, picture_mixture: GaussianMixture) -> None:
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=False, set_alpha_to_one=True, steps_offset=1)
    scheduler.alphas_cumprod = SD.alphas_cumprod
    scheduler.set_timesteps(n)
    levels = make_sigmas("leading", SD, n)
    x = start(levels[0])
    state, at, theirs = x * alpha(levels[0]), levels[0], []
    # After each call of a Runge-Kutta step the state is at the place of the next call; the fourth ends the step.
    visited = [*SD.sigmas[scheduler.timesteps[1:]], levels[-1]]
    for k, (t, then) in enumerate(zip(scheduler.timesteps.tolist(), visited, strict=True)):
        seen = state / alpha(at)
        eps = (seen - picture_mixture.denoise(seen, at)) / at
        state = scheduler.step(eps, t, state, return_dict=False)[0]
        at = then
        if k >= 12 or k % 4 == 3:
            theirs.append(state / alpha(at))
    assert_same(ours("pndm_prk", picture_mixture, x, levels, None, **settings("pndm_prk")), theirs)


@pytest.mark.parametrize("n", [3, 5, 12, 30])
def test_ipndm(n: int, picture_mixture: GaussianMixture) -> None:
    """On its scheduler's own list, up to the step to zero, on which that one extrapolates and we land on D."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(n)
    # std sin(pi t / 2) and alpha cos(pi t / 2); the first level is infinite, so the walk begins at the second.
    stds = scheduler.betas.double()
    levels = (stds / (1 - stds**2).sqrt())[1:]
    scheduler.alphas = (1 - stds**2).sqrt()
    scheduler.betas = stds
    scheduler.set_begin_index(1)
    x = start(levels[0])
    state, theirs = x * alpha(levels[0]), []
    for i, sigma in enumerate(levels[:-1]):
        seen = state / alpha(sigma)
        denoised = picture_mixture.denoise(seen, sigma)
        v = alpha(sigma) * (seen - denoised) / sigma - alpha(sigma) * sigma * denoised
        state = scheduler.step(v, scheduler.timesteps[i + 1], state, return_dict=False)[0]
        theirs.append(state / alpha(levels[i + 1]))
    assert_same(ours("ipndm", picture_mixture, x, levels, None)[:-1], theirs[:-1])


LISTS: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}]


@pytest.mark.parametrize("n", [3, 8, 20])
@pytest.mark.parametrize("spacing", LISTS, ids=["plain", "karras", "trailing"])
@pytest.mark.parametrize("kind", ["default", "ode", "sde"])
def test_sa_solver(kind: str, spacing: dict[str, Any], n: int, picture_mixture: GaussianMixture) -> None:
    """Orders 2 and 2 with noise at timesteps 200 to 800 is its default; it ends at sigma_min, ours goes on to 0."""
    taus: dict[str, Callable[[float], int] | None] = {"default": None, "ode": lambda _: 0, "sde": lambda _: 1}
    scheduler = diffusers.SASolverScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", tau_func=taus[kind], **spacing
    )
    scheduler.set_timesteps(n)
    levels = torch.unique_consecutive(scheduler.sigmas).double()
    if len(levels) <= n:
        levels = torch.cat([levels, levels[-1:] / 2])  # its karras list repeats the last level
        scheduler.sigmas = levels
    x = start(levels[0])
    state, theirs, generator = x * alpha(levels[0]), [], torch.Generator().manual_seed(5)
    pool = torch.Generator().manual_seed(5)
    blocks = [torch.randn(x.shape, generator=pool, dtype=x.dtype) for _ in range(n)]
    scheduler.set_begin_index(0)
    for i, t in enumerate(scheduler.timesteps):
        seen = state / alpha(levels[i])
        eps = (seen - picture_mixture.denoise(seen, levels[i])) / levels[i]
        state = scheduler.step(eps, t, state, generator=generator, return_dict=False)[0]
        theirs.append(state / alpha(levels[i + 1]))
    # That one draws a block at every step, used or not; ours where it is used.
    by_level = dict(zip(levels.tolist(), blocks, strict=False))
    noisy = dict(zip(levels.tolist(), (200 <= int(t) <= 800 for t in scheduler.timesteps), strict=False))
    tau = {"default": lambda sigma, _: noisy.get(sigma, False), "ode": lambda *_: False, "sde": lambda *_: True}[kind]
    mine = ours(
        "sa_solver_2",
        picture_mixture,
        x,
        torch.cat([levels, levels.new_zeros(1)]),
        lambda _, sigma, __: by_level[sigma],
        noisy_at=tau,
    )
    assert_same(mine[:n], theirs)


def test_sa_solver_has_noise_where_the_scheduler_has() -> None:
    """The pipeline's rule over sigma against 200 <= t <= 800, at every timestep but the two at the very ends."""
    noisy = settings("sa_solver_2")["noisy_at"]
    assert callable(noisy), "a rule"
    said = [noisy(float(sigma), 0.0) for sigma in SD.sigmas]  # type: ignore[call-arg, arg-type]
    assert said == [200 <= t <= 799 for t in range(1000)]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 9, 12, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("to_zero", [True, False], ids=["to zero", "above zero"])
def test_singlestep_over_the_lists_own_levels(
    *, to_zero: bool, order: int, n: int, picture_mixture: GaussianMixture
) -> None:
    """n steps are n calls, in the order of diffusers' scheduler, whatever n leaves when divided by the order."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=order,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        final_sigmas_type="zero" if to_zero else "sigma_min",
        lower_order_final=n % order != 0 or to_zero,
    )
    scheduler.set_timesteps(n)
    levels = make_sigmas("karras", SD, n) if to_zero else make_sigmas("karras", SD, n + 1)[:-1]
    scheduler.sigmas = levels
    scheduler.set_begin_index(0)
    x = start(levels[0])
    state, theirs = x * alpha(levels[0]), []
    for i, t in enumerate(scheduler.timesteps):
        seen = state / alpha(levels[i])
        eps = (seen - picture_mixture.denoise(seen, levels[i])) / levels[i]
        state = scheduler.step(eps, t, state, return_dict=False)[0]
        theirs.append(state / alpha(levels[i + 1]))
    assert_same(ours("dpmpp_singlestep", picture_mixture, x, levels, None, order=order), theirs)
