"""Hand-over to a second model within one walk: the base paints down to a noise level, the refiner goes on from there.

That is the ensemble of experts of SDXL (Podell et al. 2023, arXiv:2307.01952, section 2.5; eDiff-I, Balaji et al. 2022,
arXiv:2211.01324): latents and noise levels stay, text encoders, size numbers and U-Net are the refiner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from gouache.diffusion.noise_schedule import EdmSchedule, NoiseSchedule
from gouache.diffusion.samplers.names import sampler_info
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.a1111_procedure import follows
from gouache.pipeline.generate.guided import (
    InstructDenoiser,
    NetworkInputs,
    PromptedDenoiser,
    denoiser_of,
    size_conditions,
)
from gouache.pipeline.generate.guiders import guidance_of
from gouache.pipeline.generate.savings import NAMES
from gouache.pipeline.generate.scheduler_levels import Levels
from gouache.pipeline.inputs.start import input_kind
from gouache.pipeline.prompts.encode import PromptPlan
from gouache.pipeline.request import Request


@dataclass(frozen=True, slots=True)
class HandOver:
    """Where in a walk the refiner takes over, and what it reads.

    Attributes:
        bundle: the refiner.
        first: index of the first level that is the refiner's, of those that are walked.
        level: highest noise level that is the refiner's, between those of the list.
        positive, negative: the prompts in its own encoders' words.
    """

    bundle: ModelBundle
    first: int
    level: float
    positive: PromptPlan
    negative: PromptPlan

    def denoiser(self, request: Request) -> PromptedDenoiser:
        """The refiner's D(x, sigma) under the prompts of a resolved request."""
        inputs = NetworkInputs(None, *size_conditions(self.bundle, request))
        network = denoiser_of(self.bundle, request)
        return PromptedDenoiser(self.bundle, network, self.positive, self.negative, guidance_of(request), inputs)


def handed_over(
    request: Request,
    bundle: ModelBundle,
    levels: Levels,
    skipped: int,
    plans: Callable[[ModelBundle], tuple[PromptPlan, PromptPlan]],
) -> HandOver | None:
    """The hand-over of one pass; None without a refiner, or if its share never comes.

    Args:
        request: resolved.
        bundle: the base model, with the refiner.
        levels: of the whole list.
        skipped: levels left out at its start.
        plans: encodes prompt and negative prompt by a model.
    """
    refiner = bundle.refiner
    if refiner is None or request.refiner is None or request.refiner_switch_at >= 1:
        return None
    if refiner.denoiser_config.schedule == bundle.denoiser_config.schedule and levels.timesteps:
        listed = dict(zip(levels.sigmas.tolist(), levels.timesteps, strict=False))
        refiner = replace(refiner, timesteps=listed)
    whole = levels.sigmas
    first, level = _switch(request, refiner.schedule, levels)
    return HandOver(refiner, min(max(first - skipped, 0), len(whole) - 1 - skipped), level, *plans(refiner))


def _switch(request: Request, schedule: NoiseSchedule, levels: Levels) -> tuple[int, float]:
    """Index of the refiner's first level in the whole list, and the highest level that is the refiner's.

    The share counts training timesteps of the refiner, T (1 - share) of which are its own: diffusers' `denoising_end`
    and `denoising_start`, and A1111's default. Counted in steps it is ComfyUI's `start_at_step`.
    """
    sigmas, share = levels.sigmas, request.refiner_switch_at
    last = len(sigmas) - 1
    if request.refiner_switch_by == "steps" or isinstance(schedule, EdmSchedule):
        first = min(next(k for k in range(last + 1) if k >= share * last - 1e-6), last)
        return first, float(sigmas[first])
    cutoff = round(schedule.num_timesteps * (1 - share))
    if follows(request):
        # The nearest level of the table says the timestep there.
        table = schedule.sigmas
        at = min(max(cutoff, 1), len(table) - 1)
        level = float(table[at - 1] + table[at]) / 2 if cutoff > 0 else 0.0
        level = float("inf") if cutoff >= len(table) else level
        return next((k for k in range(last) if float(sigmas[k]) < level), last), level
    times = levels.timesteps or tuple(schedule.sigma_to_t(sigmas[:-1].clamp(min=1e-9)).tolist())
    first = next((k for k, time in enumerate(times) if round(time, 3) < cutoff), last)
    return first, float(sigmas[first])


class Relay:
    """A1111's hand-over: one walk of one sampler, whose calls go to the base until one is at the refiner's level, and
    from then on to the refiner, even where a sampler goes up again.

    Args:
        base, refiner: D(x, sigma) of each; prompt editing counts the calls of both.
        level: highest noise level that is the refiner's.
    """

    def __init__(
        self,
        base: PromptedDenoiser | InstructDenoiser,
        refiner: PromptedDenoiser | InstructDenoiser,
        level: float,
    ) -> None:
        self.base, self.refiner, self.level = base, refiner, level
        self._handed_over = False

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        self._handed_over = self._handed_over or float(sigma) <= self.level
        one, other = (self.refiner, self.base) if self._handed_over else (self.base, self.refiner)
        denoised = one(x, sigma)
        other.call = one.call
        return denoised

    def unconditional(self, x: Tensor, sigma: Tensor) -> Tensor:
        """As that of the one who paints. [B,C,h,w]"""
        one = self.refiner if self._handed_over or float(sigma) <= self.level else self.base
        return one.unconditional(x, sigma) if isinstance(one, PromptedDenoiser) else one(x, sigma)


def leaves_at(request: Request, sigmas: Tensor, first: int) -> Tensor:
    """The list that the base walks: samplers that choose levels themselves get its part alone, and the others the whole
    list, of which they walk the beginning: their last step is another than their step in the middle. [m + 1]"""
    alone = sampler_info(request.sampler or "ddim").own_levels or request.sampler == "restart"
    return sigmas[: first + 1] if alone else sigmas


def check_refiner(request: Request, bundle: ModelBundle) -> None:
    """Refuse a refiner that can't go on from this model's latents, and requests that have no place for one.

    Raises:
        InvalidInput: it reads more than text, its latents are others, or the request inverts a picture.
    """
    refiner = bundle.refiner
    if refiner is None:
        return
    if request.inversion is not None:
        raise InvalidInput(
            "refiner",
            given="a refiner and an inversion",
            expected="one or the other: the noise is found with one model",
            cure="Leave the refiner out.",
        )
    if input_kind(refiner) is not None:
        raise InvalidInput(
            "refiner",
            given=f"{request.refiner}, a model that takes more than text ({input_kind(refiner)})",
            expected="a model that paints from text alone",
            cure="Choose another refiner.",
        )
    kinds = [
        (one.latent_channels, one.scale, one.shift, one.downscale) for one in (bundle.vae.config, refiner.vae.config)
    ]
    if kinds[0] != kinds[1]:
        raise InvalidInput(
            "refiner",
            given=f"{request.refiner} ({refiner.family}), whose latents are of another kind",
            expected=f"a model with the latents of {bundle.name or bundle.family}",
            cure="Choose a refiner of the same family: SDXL's for SDXL models.",
        )
    if refiner.schedule.path == "flow" and not sampler_info(request.sampler or "ddim").flow:
        raise InvalidInput(
            "refiner",
            given=f"{request.refiner}, which was trained by flow matching, with {request.sampler}",
            expected="a sampler for flow matching",
            cure="Choose euler, dpmpp_2m or lcm.",
        )


def zeros_of(request: Request, refiner: ModelBundle) -> bool:
    """Whether an unsaid negative prompt is zeros to the refiner: A1111 takes them for SDXL's too, diffusers doesn't."""
    unsaid = (request.negative_prompt, request.negative_prompt_2) == (None, None)
    return unsaid and (refiner.traits.zero_negative or (follows(request) and refiner.size_numbers > 0))


def refiner_notes(request: Request) -> list[str]:
    """What of a resolved request the refiner doesn't read."""
    if request.refiner is None:
        plain, names = Request(), ("refiner_switch_at", "refiner_switch_by")
        given = [name for name in names if getattr(request, name) != getattr(plain, name)]
        return [f"{name} was not used: there is no refiner" for name in given]
    if request.refiner_switch_at >= 1:
        return ["refiner was not used: refiner_switch_at is 1"]
    notes = []
    guiders = [
        name for name in ("pag", "slg", "sag", "perp_neg", "freeu", *NAMES) if getattr(request, name) is not None
    ]
    guiders += ["token_merging"] if request.token_merging > 0 else []
    if guiders:
        notes.append(f"{', '.join(guiders)}: on the base model only; the refiner paints without")
    if "<" in request.prompt or request.control:
        notes.append("LoRA files, textual inversions and ControlNets act on the base model; the refiner paints without")
    return notes
