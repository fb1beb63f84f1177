"""The walks of one generation: noise levels, prompts and who paints which part of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gouache.pipeline.generate.a1111_procedure import TIMESTEP_SAMPLERS, PromptClock, follows
from gouache.pipeline.generate.guided import counted_steps, steps_of
from gouache.pipeline.generate.refiner import HandOver, leaves_at
from gouache.pipeline.prompts.encode import PromptPlan
from gouache.pipeline.prompts.regions import PlannedRegions
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from gouache.models.bundle import ModelBundle
    from gouache.pipeline.generate.controlnets import TimedControl
    from gouache.pipeline.generate.image_prompts import TimedPictures
    from gouache.pipeline.inputs.start import StartState


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the sampler within a walk.

    Attributes:
        sigmas: its list of levels. [m + 1]
        steps: how many it takes.
        first: index of its first level in the walk's list.
        stop: steps after which it is left, where its list goes on.
        by_base, by_refiner: which models paint in it.
    """

    sigmas: Tensor
    steps: int
    first: int = 0
    stop: int | None = None
    by_base: bool = True
    by_refiner: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """Which end of a list of noise levels is walked.

    Attributes:
        skipped: steps of the list that are left out at its start.
        total: steps of the whole list; None takes the request's.
        level: where the walk begins, in place of the list's own level there; None takes that.
    """

    skipped: int
    total: int | None = None
    level: float | None = None

    def of(self, sigmas: Tensor) -> Tensor:
        """The levels to walk, of the whole list. [m + 1] -> [m + 1 - skipped]"""
        own = sigmas[self.skipped :]
        return own if self.level is None else torch.cat([own.new_tensor([self.level]), own[1:]])


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk of the sampler.

    Attributes:
        request: with the size and steps of this pass.
        sigmas: noise levels to walk, descending. [n + 1]
        skipped: levels left out before them.
        positive, negative: the encoded prompts.
        beside: networks that steer, with what they see at this size; and what IP-Adapters show beside the words.
        timesteps: noise level -> timestep, where the list brings its own.
        start_ratio: the state at the first level is this times that level times noise.
        whole: the list that `sigmas` is the end of. [m + 1]
        clock: the steps that prompt editing counts, where they are others than the walk's.
        refined: where the refiner takes over, if there is one.
        regions: texts with areas of their own, at this size.
    """

    request: Request
    sigmas: Tensor
    skipped: int
    positive: PromptPlan
    negative: PromptPlan
    beside: tuple[tuple[TimedControl, ...], tuple[TimedPictures, ...]] = ((), ())
    timesteps: Mapping[float, float] = field(default_factory=dict)
    start_ratio: float = 1.0
    whole: Tensor | None = None
    clock: PromptClock | None = None
    refined: HandOver | None = None
    regions: PlannedRegions | None = None

    @property
    def prompt_steps(self) -> tuple[int, int]:
        """Steps that prompt editing counts, and those of earlier passes."""
        return (max(len(self.sigmas) - 1, 1), 0) if self.clock is None else (self.clock.steps, self.clock.earlier)

    @property
    def noised_at(self) -> float | None:
        """The level whose noise a starting picture gets, where the first step begins at another."""
        late = self.clock is not None and self.skipped > 0 and self.request.sampler in TIMESTEP_SAMPLERS
        return float(self.whole[self.skipped - 1]) if late and self.whole is not None else None

    @property
    def steps(self) -> int:
        """Steps of this pass."""
        return sum(part.steps for part in self.parts())

    @property
    def counted_steps(self) -> int:
        """Steps of which what acts for a share of them is told."""
        return counted_steps(self.request, self.sigmas)

    def parts(self) -> list[Part]:
        """One run of the sampler, or those of base and refiner. A1111's procedure makes one run of both."""
        request, sigmas, refined = self.request, self.sigmas, self.refined
        if refined is None or follows(request):
            return [Part(sigmas, steps_of(request, sigmas), by_refiner=refined is not None)]
        first = refined.first
        base = leaves_at(request, sigmas, first)
        stop = first if len(base) == len(sigmas) else None
        walked = Part(base, steps_of(request, base) if stop is None else stop, stop=stop)
        rest = Part(sigmas[first:], steps_of(request, sigmas[first:]), first, by_base=False, by_refiner=True)
        return [part for part in (walked, rest) if part.steps]


def steering(
    bundle: ModelBundle, request: Request, start_state: StartState, steps: int
) -> tuple[tuple[TimedControl, ...], tuple[TimedPictures, ...]]:
    """What ControlNets see and IP-Adapters show in a walk of so many steps. Neither is imported before it is used."""
    controls: tuple[TimedControl, ...] = ()
    pictures: tuple[TimedPictures, ...] = ()
    if request.control:
        from gouache.pipeline.generate.controlnets import timed_controls

        controls = timed_controls(bundle, request, start_state.hints, steps)
    if request.image_prompts:
        from gouache.pipeline.generate.image_prompts import timed_pictures

        pictures = timed_pictures(bundle, request, start_state.prompted, steps)
    return controls, pictures
