"""What single samplers need beside a request: levels by a schedule's timesteps, A1111's defaults, CFG++'s scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.samplers.names import sampler_info
from gouache.diffusion.samplers.registry import Option
from gouache.diffusion.samplers.step import Step, Steps
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.a1111_procedure import follows
from gouache.pipeline.inputs.start import INSTRUCT, input_kind
from gouache.pipeline.request import Request

NOISY_SHARE = (0.2, 0.8)
"""SA-Solver adds noise in the middle of the timesteps only, as its authors' and all other programs do."""
UNIPC_ORDER = 3
"""A1111's UniPC."""


def own_settings(request: Request, schedule: NoiseSchedule) -> dict[str, Option]:
    """The options that follow from the sampler, the noise schedule and the sigma schedule of a resolved request."""
    name = request.sampler or "ddim"
    if name == "tcd":
        return {"lower_of": lambda sigma, eta: _lower_level(schedule, sigma, eta)}
    if name == "pndm_prk":
        return {"middle_of": lambda sigma, sigma_next: _middle_level(schedule, sigma, sigma_next)}
    if name.startswith("sa_solver"):
        low, high = (float(schedule.index_to_sigma(share * (schedule.num_timesteps - 1))) for share in NOISY_SHARE)
        by_start = name == "sa_solver_2"
        return {"noisy_at": lambda sigma, sigma_next: low <= (sigma if by_start else sigma_next) <= high}
    if name.startswith("unipc") and request.schedule == "uniform_to_min":
        return {"order": UNIPC_ORDER}
    if name in ("dpm_fast", "dpm_adaptive") and follows(request):
        # A1111 gives every sampler that takes an eta its setting for ancestral ones, which is 1.
        return {"eta": 1.0}
    return {}


TWO_SLOPES = ("heun", "dpm_2")
"""Samplers that put a slope (x - D) / sigma of a lower level in the place of the whole step's."""
STEEP, TOO_STEEP = 50.0, 1000.0


def steepest(sigmas: Tensor) -> float:
    """By which factor the noise level falls at most in one step, that to zero aside."""
    levels = sigmas[sigmas > 0]
    return float((levels[:-1] / levels[1:]).max()) if len(levels) > 1 else 1.0


def check_steepness(request: Request, sigmas: Callable[[], Tensor]) -> None:
    """Refuse a sampler of two slopes over levels that fall so far that it can only paint a broken picture.

    Heun's step is (sigma' - sigma) / 2 times the sum of the slopes at both ends, so that what the estimates D differ by
    is multiplied with about sigma / (2 sigma'): with 2000 where sigma falls from 20000 to 4, as on noise alone of a
    cosine schedule. Karras et al. 2022 (arXiv:2206.00364) begin at 80, and fall by less than 5 a step.

    Args:
        request: resolved.
        sigmas: gives the whole list of its levels, for the samplers that care.

    Raises:
        InvalidInput: they fall by more than `TOO_STEEP` in one step.
    """
    if request.sampler in TWO_SLOPES and (factor := steepest(sigmas())) > TOO_STEEP:
        raise InvalidInput(
            "sampler",
            given=f"{request.sampler}, for noise levels that fall by a factor of {factor:.0f} in one step",
            expected="one that can take such a step, for example dpmpp_2m, euler or heunpp2",
            cure="Choose one of them, or a lower first level: sigmas, or a prior's start_sigma above 0.",
        )


def steep_notes(request: Request, sigmas: Tensor) -> list[str]:
    """A note where such a sampler's picture may be rough."""
    if request.sampler not in TWO_SLOPES or (factor := steepest(sigmas)) <= STEEP:
        return []
    return [f"{request.sampler}: the noise level falls by a factor of {factor:.0f} in one step, which makes it rough"]


_TIMESTEP_LISTS = ("leading_to_first", "uniform_to_min")
"""A1111's samplers on timesteps: their states are scaled as the network sees them, x / sqrt(1 + sigma^2)."""


def scaled_at_the_start(request: Request, x: Tensor, sigma: float) -> Tensor:
    """Noise alone at the first level, where A1111's samplers on timesteps take it as the scaled state. [B,C,h,w]"""
    return x * (math.sqrt(1 + sigma**2) / sigma) if request.schedule in _TIMESTEP_LISTS else x


def scaled_at_the_end(request: Request, steps: Steps, number: int) -> Steps:
    """A1111's samplers on timesteps leave the last state scaled.

    Args:
        request: resolved.
        steps: of the sampler.
        number: how many they are.
    """
    if request.schedule not in _TIMESTEP_LISTS:
        return steps
    return (_scaled(step) if step.i == number - 1 else step for step in steps)


def _scaled(step: Step) -> Step:
    return replace(step, x=step.x / math.sqrt(1 + step.sigma_next**2))


def check_sampler(name: str, bundle: ModelBundle) -> None:
    """Refuse a sampler that this kind of model can't be painted with.

    Raises:
        InvalidInput: it works on the timesteps of a diffusion, and the model is one of flow matching; or it is one of
            CFG++, and the model is guided by a picture too.
    """
    if sampler_info(name).cfg_pp and input_kind(bundle) == INSTRUCT:
        raise InvalidInput(
            "sampler",
            given=f"{name} for an instruct model",
            expected="a sampler without CFG++: the model has two guidance scales, and CFG++ is defined for one",
            cure="Choose euler, euler_ancestral or dpmpp_2m.",
        )
    if bundle.schedule.path == "flow" and not sampler_info(name).flow:
        raise InvalidInput(
            "sampler",
            given=f"{name} for {bundle.name or bundle.family}",
            expected="a sampler for flow matching, which this model was trained by",
            cure="Choose euler, dpmpp_2m or lcm.",
        )


def sampler_notes(asked: Request, resolved: Request) -> list[str]:
    """What to tell of a sampler that takes its guidance scale or its number of steps otherwise."""
    name = resolved.sampler or "ddim"
    info, notes = sampler_info(name), []
    if info.cfg_pp and asked.guidance_scale is None:
        notes.append(f"guidance {resolved.guidance_scale:g}: {name} takes the scale of CFG++, 0.6 for the usual 7.5")
    elif info.cfg_pp and (resolved.guidance_scale or 0) / info.guidance_divisor > 2:
        notes.append(f"guidance {resolved.guidance_scale:g}: {name} takes the scale of CFG++, mostly from 0 to 1")
    if info.cfg_pp and resolved.guidance_rescale > 0:
        notes.append(f"guidance_rescale acts on the guided estimate only; {name} steps along the unconditional one")
    if name == "dpm_adaptive":
        notes.append("dpm_adaptive chooses its steps itself: the number of steps counts for nothing")
    return notes


def _lower_level(schedule: NoiseSchedule, sigma: float, eta: float) -> float:
    """The level at (1 - eta) of a level's timestep, cut off to a whole one; that of timestep 0 for sigma = 0."""
    timestep = 0.0 if sigma == 0 else float(schedule.sigma_to_t(sigma))
    # A product that is a whole number but for its last bits is that number.
    return float(schedule.sigmas[math.floor((1 - eta) * timestep + 1e-6)])


def _middle_level(schedule: NoiseSchedule, sigma: float, sigma_next: float) -> float:
    """The level half way in time, a half rounded towards noise."""
    first, last = (float(schedule.sigma_to_t(one)) for one in (sigma, sigma_next))
    return float(schedule.t_to_sigma(first - math.floor((first - last) / 2 + 1e-6)))
