"""Where diffusers 0.42 differs from us, and the closed form that says who is right.

For data N(0, 0.25) every update is linear. A state that holds the weights of the independent noises drawn so far, each
on an axis of its own, then carries the exact variance of the result: no chance is involved.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.samplers.registry import sample
from gouache.diffusion.samplers.sigmas import make_sigmas

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA_VARIANCE = 0.25
LEVELS = torch.logspace(1.0, -1.0, 41, dtype=torch.float64)
AXES = torch.eye(200, dtype=torch.float64)


def denoise(x: Tensor, sigma: Tensor | float) -> Tensor:
    return x * (DATA_VARIANCE / (DATA_VARIANCE + sigma**2))


def variance_error(x: Tensor, sigma: Tensor) -> float:
    return abs(float((x**2).sum() / (DATA_VARIANCE + sigma**2)) - 1)


def our_error(name: str, levels: Tensor) -> float:
    x = AXES[:1] * (DATA_VARIANCE + levels[0] ** 2).sqrt()  # [1, axes]
    unused = iter(AXES[1:])
    *_, last = sample(name, denoise, x, levels, noise=lambda *_: next(unused)[None])
    return variance_error(last.x, levels[-1])


def their_error(scheduler: Any, levels: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    unused = iter(AXES[1:])
    for module in ("dpmsolver_multistep", "dpmsolver_singlestep"):
        path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(path, lambda *_args, **_kwargs: next(unused)[None])
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = levels
    scheduler.register_to_config(final_sigmas_type="sigma_min")
    scheduler.set_begin_index(0)
    alphas = (1 + levels**2).rsqrt()
    state = AXES[:1] * (DATA_VARIANCE + levels[0] ** 2).sqrt() * alphas[0]
    for i, t in enumerate(scheduler.timesteps):
        x = state / alphas[i]
        eps = (x - denoise(x, levels[i])) / levels[i]
        state = scheduler.step(eps, t, state, return_dict=False)[0].double()
    return variance_error(state / alphas[-1], levels[-1])


def test_third_order_sde_has_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `sde-dpmsolver++` of order 3 diffusers subtracts the one half of phi_3 where it must be added."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=3, lower_order_final=False, algorithm_type="sde-dpmsolver++", solver_type="heun"
    )
    ours, theirs = our_error("dpmpp_3m_sde", LEVELS), their_error(scheduler, LEVELS, monkeypatch)
    assert ours < 0.01
    assert theirs > 5 * ours, (ours, theirs)


def test_singlestep_sde_draws_independent_noise_for_overlapping_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its middle and its whole step share a stretch of the path, so their noise must be correlated."""
    middles = (LEVELS[:-1] * LEVELS[1:]).sqrt()
    fine = torch.cat([torch.stack([LEVELS[:-1], middles], 1).flatten(), LEVELS[-1:]])
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=2, algorithm_type="sde-dpmsolver++", lower_order_final=False
    )
    ours, theirs = our_error("dpmpp_sde", LEVELS), their_error(scheduler, fine, monkeypatch)
    assert ours < 0.01
    assert theirs > 5 * ours, (ours, theirs)


def test_deis_with_karras_list_repeats_the_last_level_instead_of_going_to_zero() -> None:
    scheduler = diffusers.DEISMultistepScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2] > 0
    ours = make_sigmas("karras", make_noise_schedule("scaled_linear"), 10)
    assert ours[-1] == 0
