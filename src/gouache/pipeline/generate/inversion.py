"""Inversion: walk a picture up to the noise that gives it, so that a changed prompt changes only what it must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gouache.diffusion.samplers.registry import sample
from gouache.diffusion.samplers.step import Step
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.guided import (
    NetworkInputs,
    PromptedDenoiser,
    denoiser_of,
    sigmas_of,
    size_conditions,
)
from gouache.pipeline.generate.guiders import guidance_of
from gouache.pipeline.inputs.start import StartState
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Request

ITERATIONS = 4
"""Further network calls in each step upwards, so that the way down undoes it."""
FAMILY_OF_DDIM = ("ddim", "euler")
"""Samplers that walk down the same steps that inversion walks up."""


class Inverter:
    """Iterate to walk up; `state` is then the noisy latents at the first level.

    Args:
        denoise: D(x, sigma) under the words that describe the picture, without guidance.
        latents: of the picture. [1,C,h,w]
        sigmas: descending noise levels, walked from their end.
    """

    def __init__(self, denoise: PromptedDenoiser, latents: Tensor, sigmas: Tensor) -> None:
        self.denoise, self.latents, self.sigmas = denoise, latents, sigmas
        self.state: Tensor | None = None

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return max(len(self.sigmas) - 1, 0)

    @torch.no_grad()
    def __iter__(self) -> Iterator[Step]:
        if self.steps == 0:
            return
        options = {"iterations": ITERATIONS}
        for step in sample("ddim_inversion", self.denoise, self.latents, self.sigmas, options=options):
            self.state = step.x
            yield step


def inverter_of(
    bundle: ModelBundle, request: Request, sigmas: Tensor, start_state: StartState, reader: PromptReader
) -> Inverter:
    """The inversion that a resolved request asks for.

    Raises:
        InvalidInput: nothing to invert, or a sampler that does not walk the same way down.
    """
    if request.inversion is None or start_state.latents is None:
        raise InvalidInput("inversion", given="nothing", expected="a starting picture and a prompt that describes it")
    if request.sampler not in FAMILY_OF_DDIM or request.eta:
        raise InvalidInput(
            "inversion",
            given=f"sampler {request.sampler} with eta {request.eta or 0}",
            expected=f"one of {', '.join(FAMILY_OF_DDIM)} without eta",
            cure="Use --sampler ddim.",
        )
    plan = reader.plan(request.inversion.source_prompt, 1)
    guidance = replace(guidance_of(request), scale=1.0)
    numbers, _ = size_conditions(bundle, request)
    inputs = NetworkInputs(start_state.draft, numbers)
    denoise = PromptedDenoiser(bundle, denoiser_of(bundle, request), plan, plan, guidance, inputs)
    return Inverter(denoise, start_state.latents, _levels_up(bundle, request, sigmas))


def _levels_up(bundle: ModelBundle, request: Request, sigmas: Tensor) -> Tensor:
    """The levels that inversion walks: those of the way down, unless it has a number of steps of its own; then as many
    between the same ends. [n + 1]"""
    count = None if request.inversion is None else request.inversion.num_inference_steps
    steps = len(sigmas) - 1
    if count is None or count == steps or steps < 1 or request.sigmas is not None:
        return sigmas
    whole = sigmas_of(request.replace({"num_inference_steps": count}), bundle)
    between = whole[(whole < sigmas[0]) & (whole > 0)].to(sigmas)
    return torch.cat([sigmas[:1], between, sigmas[-1:]])
