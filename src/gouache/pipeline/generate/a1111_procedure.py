"""AUTOMATIC1111's procedure: how many steps a strength leaves, how large the second pass is, and when a prompt changes.

Read in that program's version 1.10 (2024: processing.py, sd_samplers_common.py, sd_samplers_timesteps.py and
prompt_parser.py), and judged by an independent second account of it (benchmarks/same_picture.py). It differs from
gouache's and diffusers' own ways in small things, each of which makes another picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gouache.diffusion.brownian_tree import TreeNoise, stage_times
from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.rng import ImageNoise, seed_stream
from gouache.diffusion.samplers.names import sampler_info
from gouache.diffusion.samplers.step import NoiseSource
from gouache.errors import InvalidInput
from gouache.pipeline.fields.values import MAX_SIDE
from gouache.pipeline.request import Hires, Request

A1111: Literal["a1111"] = "a1111"
SECOND_ORDER = frozenset(("heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart"))
"""Samplers whose steps that program counts twice, once for each network call, when a prompt changes."""
TIMESTEP_SAMPLERS = frozenset(("ddim", "ddim_cfg_pp", "plms", "unipc_bh1", "unipc_bh2"))
"""Samplers that walk timesteps of the training schedule there; the others walk noise levels."""
DRAWS_EVERY_STEP = frozenset(("euler", "heun", "dpm_2"))
"""Samplers of k-diffusion that draw a block for churn at every step, whether or not it is used."""
STRONGEST = 0.999
"""Strengths count as at most this."""
LONGEST = 100_000
"""Steps of a list of which a second pass walks the end."""


def follows(request: Request) -> bool:
    """Whether a resolved request is painted by this procedure."""
    return request.procedure == A1111


def skipped_steps(steps: int, strength: float, sampler: str | None) -> int:
    """Levels left out at the start of image to image: int(strength * steps) + 1 steps are walked, or without the one
    more by the samplers that walk timesteps.

    >>> skipped_steps(20, 0.75, "euler"), skipped_steps(20, 1.0, "euler"), skipped_steps(20, 0.0, "euler")
    (4, 0, 19)
    """
    walked = int(min(strength, STRONGEST) * steps) + (sampler not in TIMESTEP_SAMPLERS)
    return max(steps - walked, 0)


def second_walk(steps: int, strength: float, sampler: str | None) -> tuple[int, int]:
    """Of how many steps the second pass has a list, and how many of its levels it leaves out: it walks all asked steps,
    or one less with the samplers that walk timesteps.

    >>> second_walk(20, 0.7, "euler")
    (28, 8)
    """
    if strength <= 0:
        return steps, steps
    total = max(int(steps / min(strength, STRONGEST)), steps)
    if total > LONGEST:
        raise InvalidInput(
            "hires.strength",
            given=f"{strength:g} with {steps} steps",
            expected=f"a list of at most {LONGEST} steps, not {total}",
            cure="Raise the strength, or take fewer steps.",
        )
    return total, total - steps + (sampler in TIMESTEP_SAMPLERS)


@dataclass(frozen=True, slots=True)
class SecondSize:
    """Sizes of the second pass in pixels.

    Attributes:
        enlarged: width and height to which the first picture is enlarged, in its own proportions.
        painted: width and height after the middle is cut out.
    """

    enlarged: tuple[int, int]
    painted: tuple[int, int]


def second_size(options: Hires, width: int, height: int, factor: int) -> SecondSize:
    """How large the second pass is: one side alone brings the other in proportion, both cut the enlarged picture.

    Args:
        options: what is asked.
        width, height: of the first pass.
        factor: pixels of one latent; every size ends at a whole latent, rounded down.
    """
    wide, high = options.width or 0, options.height or 0
    if not wide and not high:
        enlarged = (int(width * options.scale), int(height * options.scale))
    elif not high or (wide and width / height < wide / high):
        enlarged = (wide, wide * height // width)
    else:
        enlarged = (high * width // height, high)
    enlarged = min(enlarged[0], MAX_SIDE), min(enlarged[1], MAX_SIDE)
    cut = [0, 0]
    if wide and high:
        cut = [max((whole - asked) // factor, 0) for whole, asked in zip(enlarged, (wide, high), strict=True)]
    painted = tuple(max(whole // factor - less, 1) * factor for whole, less in zip(enlarged, cut, strict=True))
    return SecondSize(enlarged, (painted[0], painted[1]))


def latent_sizes(first: Request, second: Request, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width in latents of what the first pass painted, enlarged; and of its middle, which is painted on."""
    size = whole = ((second.height or 0) // factor, (second.width or 0) // factor)
    if follows(second):
        enlarged = second_size(first.hires or Hires(), first.width or 0, first.height or 0, factor).enlarged
        whole = max(enlarged[1] // factor, size[0]), max(enlarged[0] // factor, size[1])
    return whole, size


def middle_of(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of some latents [B,C,H,W] at a smaller size (h, w); of an odd rest the larger half goes behind."""
    down, across = latents.shape[2] - size[0], latents.shape[3] - size[1]
    return latents[:, :, down // 2 : down // 2 + size[0], across // 2 : across // 2 + size[1]]


@dataclass(frozen=True, slots=True)
class PromptClock:
    """The steps that prompt editing counts.

    Attributes:
        steps: of this pass; network calls for samplers of second order.
        earlier: those of the passes before, whose edits are over.
    """

    steps: int
    earlier: int = 0


def prompt_clock(request: Request, sampler: str, earlier: int = 0) -> PromptClock:
    """What an edit's step or share refers to: the asked steps, even if a strength walks fewer of them."""
    asked = len(request.sigmas) - 1 if request.sigmas else request.num_inference_steps or 1
    return PromptClock(asked * (2 if sampler in SECOND_ORDER else 1), earlier)


def entry_scale(noised_at: float, sigma: float) -> float:
    """Factor on x = x0 + noised_at * noise where the state is taken for one at another level.

    The samplers that walk timesteps noise the picture at one step and begin at the next, with the variance-preserving
    state as it is: sqrt(1 + sigma^2) / sqrt(1 + noised_at^2) in x = x0 + sigma * noise.
    """
    return math.hypot(1.0, sigma) / math.hypot(1.0, noised_at)


def step_noise(
    request: Request, sampler: str, noise: ImageNoise, sigmas: Tensor, whole: Tensor, schedule: NoiseSchedule
) -> NoiseSource:
    """The noise of the steps as that program draws it.

    Args:
        request: resolved.
        sampler: our name.
        noise: the pictures' streams.
        sigmas: the levels that are walked.
        whole: those with the ones left out before.
        schedule: of the model.
    """
    if "sde" in sampler:
        return tree_noise(request, sampler, noise, whole, schedule)
    if sampler in DRAWS_EVERY_STEP and request.churn is not None:
        return _drawn_every_step(noise, sigmas.tolist())
    return noise


def tree_noise(request: Request, sampler: str, noise: ImageNoise, whole: Tensor, schedule: NoiseSchedule) -> TreeNoise:
    """A Brownian tree for each picture, seeded by its seed, between the lowest and highest level of the whole list."""
    levels = whole.tolist()
    singles = _single_list(request, whole, schedule)
    times = stage_times(levels, singles) if sampler == "dpmpp_sde" else dict(zip(levels, singles, strict=True))
    mode, positive = noise.mode, [level for level in singles if level > 0]

    def draw(seed: int, shape: Sequence[int]) -> Tensor:
        return seed_stream(seed, mode).randn(shape)

    return TreeNoise([seed.seed for seed in noise.seeds], draw, min(positive), max(positive), times)


def _single_list(request: Request, whole: Tensor, schedule: NoiseSchedule) -> list[float]:
    """The list in k-diffusion's fp32 arithmetic: a path is rough, so that a time's last digit shows in its noise."""
    rounded: list[float] = whole.float().tolist()
    steps = len(whole) - 1
    skips = sampler_info(request.sampler or "ddim").discard_penultimate
    made = None if request.sigmas else _in_fp32(request.schedule or "", schedule, steps + skips)
    if made is None:
        return rounded
    singles = [*made[:steps].tolist(), 0.0]
    same = all(abs(one - other) <= 1e-4 * other for one, other in zip(singles, rounded, strict=True))
    return singles if same else rounded


def _in_fp32(name: str, schedule: NoiseSchedule, n: int) -> Tensor | None:
    """One of k-diffusion's lists without its last 0; None for any other."""
    products = schedule.alphas_cumprod.float()
    table = ((1 - products) / products) ** 0.5
    low, high = table[0].item(), table[-1].item()
    if name == "karras":
        start, end = high ** (1 / 7), low ** (1 / 7)
        levels: Tensor = (start + torch.linspace(0, 1, n) * (end - start)) ** 7
        return levels
    if name == "exponential":
        return torch.linspace(math.log(high), math.log(low), n).exp()
    if name == "polyexponential":
        return (torch.linspace(1, 0, n) * (math.log(high) - math.log(low)) + math.log(low)).exp()
    if name == "uniform":
        places = torch.linspace(len(table) - 1, 0, n)
        below = places.floor().long()
        above = (below + 1).clamp(max=len(table) - 1)
        share, logs = places - below, table.log()
        return ((1 - share) * logs[below] + share * logs[above]).exp()
    return None


def _drawn_every_step(noise: ImageNoise, levels: list[float]) -> NoiseSource:
    drawn = 0

    def answer(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        nonlocal drawn
        index = min(range(len(levels)), key=lambda i: abs(levels[i] - sigma))
        while drawn < index:
            noise(x, sigma, sigma_next)
            drawn += 1
        drawn += 1
        return noise(x, sigma, sigma_next)

    return answer
