"""Samplers of two slopes are not let loose on noise levels that fall so far that they can't follow."""

from __future__ import annotations

import pytest
import torch

from gouache.diffusion.samplers.registry import sample
from gouache.errors import InvalidInput
from gouache.pipeline.generate.sampler_settings import steepest
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

ON_NOISE = {"prompt": "a red fox", "seed": 5, "prior": {"start_sigma": 0}}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@pytest.mark.parametrize("sampler", ["heun", "dpm_2"])
def test_what_can_only_break_is_refused_and_a_named_schedule_is_told(pipeline: Pipeline, sampler: str) -> None:
    if sampler == "heun":
        with pytest.raises(InvalidInput, match="heun, for noise levels that fall by a factor of") as caught:
            pipeline.plan(Request.from_dict({**ON_NOISE, "sampler": sampler}))
        assert "start_sigma" in caught.value.cure
    pipeline.plan(Request(prompt="a red fox", seed=5, sampler=sampler))  # on the draft
    named = {**ON_NOISE, "sampler": sampler, "schedule": "karras", "num_inference_steps": 8, "width": 32, "height": 32}
    (painted,) = pipeline.paint(Request.from_dict(named), progress=False)
    assert any("falls by a factor of 162 in one step" in note for note in painted.recipe.notes)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heunpp2"])
def test_others_may_begin_on_noise(pipeline: Pipeline, sampler: str) -> None:
    plan = pipeline.plan(Request.from_dict({**ON_NOISE, "sampler": sampler}))
    assert plan.request.sampler == sampler


def test_the_reason_is_the_difference_of_estimates_times_the_fall() -> None:
    """On a D that wavers by 1 % between levels: Heun's error grows with the fall, Euler's does not."""

    def wavering(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x) * (1.0 + 0.01 * (sigma.flatten()[0] > 10))

    def error(name: str, fall: float) -> float:
        sigmas = torch.tensor([4.0 * fall, 4.0, 1.0, 0.0])
        x = torch.full((1, 1, 2, 2), 4.0 * fall)
        *_, last = sample(name, wavering, x + 1.0, sigmas[:2])
        return float((last.x - 5.0).abs().max())

    assert error("euler", 5000.0) < 0.02
    assert error("heun", 5.0) < 0.05
    assert error("heun", 5000.0) > 10.0


def test_the_last_step_does_not_count() -> None:
    assert steepest(torch.tensor([8.0, 4.0, 1.0, 0.0])) == 4.0
    assert steepest(torch.tensor([8.0, 0.0])) == 1.0
