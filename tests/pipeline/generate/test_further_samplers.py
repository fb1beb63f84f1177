"""The samplers and lists that other programs have, through the whole pipeline.

The kind: a sampler or list that is known by name works like every other one: alone and in a batch, from a picture, on a
flow-matching model, under a mask, and again from its recipe; what it can't do it refuses by name, and where its numbers
mean something else than usual a note says so.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.samplers.infos import FURTHER_SAMPLERS, FURTHER_SCHEDULES
from gouache.diffusion.samplers.names import SAMPLER_INFOS, a1111_schedule, default_guidance, resolve, resolve_schedule
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.denoiser import Denoiser
from gouache.pipeline.generate.generation import Progress, digest_of
from gouache.pipeline.generate.guided import sigmas_of
from gouache.pipeline.generate.sampler_settings import _lower_level, _middle_level
from gouache.pipeline.output.a1111_text import infotext_of, request_of
from gouache.pipeline.output.infotext import parse_infotext
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import resolve_request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

NAMES = [info.name for info in FURTHER_SAMPLERS]
CFG_PP = [info.name for info in FURTHER_SAMPLERS if info.cfg_pp]


@pytest.fixture(scope="module")
def flow(make_tiny: MakeBundle) -> Pipeline:
    from dataclasses import replace

    from gouache.models.configs import DenoiserConfig

    config = DenoiserConfig.from_dict({"parameterization": "flow", "schedule": {"name": "flow"}})
    return Pipeline(replace(make_tiny(), denoiser_config=config, name="tiny-flow"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("start") / "start.png"
    Image.effect_noise((32, 32), 60).convert("RGB").save(path)
    return str(path)


def asked(name: str, **fields: object) -> Request:
    """Three steps; for dpm_adaptive, which makes very many on a network of random weights, of a short list."""
    few = {"sigmas": (0.7, 0.5, 0.3, 0.0)} if name in ("dpm_adaptive", "DPM adaptive") else {}
    return Request.from_dict({"prompt": "a cat", "seed": 7, "num_inference_steps": 3, "sampler": name, **few, **fields})


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB"), int)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the network; the real one still answers."""
    counted: list[int] = []
    real = Denoiser.__call__

    def counting(self: Denoiser, x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        counted.append(len(x))
        return real(self, x, sigma, condition)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "__call__", counting)
    return counted


@pytest.mark.every_time(
    "tcd", "euler_cfg_pp", "dpm_fast", "pndm_prk", "ipndm", "sa_solver", "res_multistep_ancestral", "seeds_2"
)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_holds_the_pictures_made_alone_and_each_comes_again_from_its_recipe(pipe: Pipeline, name: str) -> None:
    first, second = pipe.paint(asked(name, count=2))
    (alone,) = pipe.paint(asked(name, seed=8))
    assert second.image.tobytes() == alone.image.tobytes()
    assert first.image.tobytes() != second.image.tobytes()
    (again,) = pipe.paint(Recipe.from_json(second.recipe.to_json()).request)
    assert again.image.tobytes() == second.image.tobytes()
    assert again.recipe.steps == second.recipe.steps


@pytest.mark.every_time("dpm_fast", "sa_solver", "tcd")
@pytest.mark.parametrize("name", ["dpm_adaptive", "dpm_fast", "sa_solver", "seeds_3", "euler_ancestral_cfg_pp", "tcd"])
def test_painted_together_they_differ_by_rounding_only(pipe: Pipeline, name: str) -> None:
    one, other = (pipe.paint(asked(name, count=2, determinism=level))[1] for level in ("exact", "portable"))
    assert np.abs(pixels(one.image) - pixels(other.image)).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_from_a_picture(pipe: Pipeline, start: str, rows: list[int], name: str) -> None:
    """Half the strength walks the second half of the list, from the picture with the noise of its first level."""
    four = {} if name == "dpm_adaptive" else {"num_inference_steps": 4}
    (painted,) = pipe.paint(asked(name, init_image=start, strength=0.5, guidance_scale=0.6, **four))
    if not SAMPLER_INFOS[name].own_levels:
        assert len(painted.recipe.steps) == 2
    assert len(rows) > 0
    untouched = pipe.paint(asked(name, init_image=start, strength=0.0))[0]
    assert painted.image.tobytes() != untouched.image.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_mask_leaves_out_stays(pipe: Pipeline, start: str, name: str) -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    path = Path(start).with_name("mask.png")
    mask.save(path)
    mask_only = {"image": str(path), "blur": 0}
    (painted,) = pipe.paint(asked(name, init_image=start, strength=1.0, mask=mask_only, num_inference_steps=2))
    assert np.abs(pixels(painted.image)[:, 20:] - pixels(Image.open(start))[:, 20:]).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_flow_matching(flow: Pipeline, name: str) -> None:
    if SAMPLER_INFOS[name].flow:
        (painted,) = flow.paint(asked(name))
        assert pixels(painted.image).std() > 0
        return
    with pytest.raises(InvalidInput, match=f"{name} for tiny-flow.*flow matching"):
        flow.paint(asked(name))


SCHEDULES = [info.name for info in FURTHER_SCHEDULES]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_list_paints_and_repeats(pipe: Pipeline, schedule: str) -> None:
    (painted,) = pipe.paint(asked("euler", schedule=schedule))
    assert painted.recipe.request.schedule == schedule
    (again,) = pipe.paint(Recipe.from_json(painted.recipe.to_json()).request)
    assert again.image.tobytes() == painted.image.tobytes()


# CFG++


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_has_a_scale_of_its_own_where_nothing_is_said(pipe: Pipeline, name: str) -> None:
    """Not the model's 3, which would burn the picture; DDIM CFG++ has the usual scale, of which 7.5 is 0.6."""
    (painted,) = pipe.paint(asked(name))
    assert painted.recipe.request.guidance_scale == pytest.approx(7.5 if name == "ddim_cfg_pp" else 0.6)
    assert any("CFG++" in note for note in painted.recipe.notes)
    (burnt,) = pipe.paint(asked(name, guidance_scale=60.0))
    assert any("mostly from 0 to 1" in note for note in burnt.recipe.notes)
    (quiet,) = pipe.paint(asked(name, guidance_scale=7.5 if name == "ddim_cfg_pp" else 0.6))
    assert not any("CFG++" in note for note in quiet.recipe.notes)


def test_the_default_of_cfg_pp_by_the_models_own() -> None:
    for plain, expected in ((0.0, 1.0), (1.0, 1.0), (1.4, 0.6), (7.5, 0.6), (10.0, 0.8), (20.0, 1.6)):
        assert default_guidance("euler_cfg_pp", plain) == pytest.approx(expected)
        assert default_guidance("DDIM CFG++", plain) == pytest.approx(12.5 * expected)
        assert default_guidance("euler", plain) == plain


def test_ddim_cfg_pp_is_euler_cfg_pp_with_a_scale_12_5_times_as_large(pipe: Pipeline) -> None:
    one = pipe.paint(asked("DDIM CFG++", guidance_scale=7.5, schedule="karras"))[0].image
    other = pipe.paint(asked("euler_cfg_pp", guidance_scale=0.6, schedule="karras"))[0].image
    assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_cfg_pp_by_hand(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """x' = D + sigma' (x - U) / sigma with D = U + lambda (C - U): of what the network was given and answered, row by
    row, the next state follows; and the picture lands on D."""
    seen: list[tuple[Tensor, float, Tensor]] = []
    real = Denoiser.__call__

    def recording(self: Denoiser, x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        answer = real(self, x, sigma, condition)  # type: ignore[arg-type]
        seen.append((x, float(sigma), answer))
        return answer

    monkeypatch.setattr(Denoiser, "__call__", recording)
    request = asked("euler_cfg_pp", guidance_scale=0.7, sigmas=(10.0, 3.0, 0.8, 0.0), negative_prompt="mud")
    (painted,) = pipe.paint(request)
    assert [sigma for _, sigma, _ in seen] == [10.0, 3.0, 0.8]
    for (x, sigma, answer), (then, sigma_next, _) in pairwise(seen):
        conditional, other = answer
        expected = other + 0.7 * (conditional - other) + sigma_next * (x[1] - other) / sigma
        torch.testing.assert_close(then[0], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(x[0], x[1])
    conditional, other = seen[-1][2]
    assert painted.recipe.steps[-1] == digest_of(other + 0.7 * (conditional - other))


@pytest.mark.parametrize("name", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "euler_ancestral_cfg_pp"])
def test_cfg_pp_costs_no_further_call(pipe: Pipeline, rows: list[int], name: str) -> None:
    """One call of two rows a step, as guidance costs anyway; with scale 1 the unconditional row comes apart."""
    pipe.paint(asked(name, guidance_scale=0.6))
    assert rows == [2, 2, 2]
    rows.clear()
    pipe.paint(asked("euler_cfg_pp", guidance_scale=1.0))
    assert rows == [1, 1, 1, 1, 1], "none is needed on the step to zero"


def test_outside_its_interval_cfg_pp_is_the_plain_sampler(pipe: Pipeline, rows: list[int]) -> None:
    never = {"guidance_scale": 0.6, "guidance_interval": (0.0, 1e-6)}
    one = pipe.paint(asked("euler_cfg_pp", **never))[0].image
    assert rows == [1, 1, 1]
    other = pipe.paint(asked("euler", **never))[0].image
    assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_cfg_pp_is_refused_for_instruct_models(make_tiny: MakeBundle, start: str) -> None:
    instruct = Pipeline(make_tiny(draft_channels=4))
    with pytest.raises(InvalidInput, match="instruct"):
        instruct.paint(asked("euler_cfg_pp", init_image=start))


# Levels of their own


def test_dpm_fast_takes_as_many_calls_as_steps_are_asked(pipe: Pipeline, rows: list[int]) -> None:
    for steps in (3, 4, 5, 8):
        rows.clear()
        events = [e for e in pipe.run(asked("DPM fast", num_inference_steps=steps)) if isinstance(e, Progress)]
        assert len(rows) == steps
        assert [(event.step, event.steps) for event in events][-1] == (steps // 3 + 1, steps // 3 + 1)


def test_dpm_adaptive_says_that_steps_count_for_nothing(pipe: Pipeline) -> None:
    lists = ((0.7, 0.4, 0.0), (0.7, 0.6, 0.5, 0.4, 0.0))
    few, many = (pipe.paint(asked("DPM adaptive", sigmas=levels))[0] for levels in lists)
    assert few.image.tobytes() == many.image.tobytes()
    assert any("chooses its steps" in note for note in few.recipe.notes)
    events = [e for e in pipe.run(asked("DPM adaptive")) if isinstance(e, Progress)]
    fractions = [event.fraction for event in events]
    assert len(events) > 3
    assert fractions == sorted(fractions)
    assert max(fractions) <= 1


def test_a_prompt_changes_where_the_level_is_reached(pipe: Pipeline) -> None:
    """With levels of its own, [cat:dog:0.5] changes at half of the list's levels, however few steps that takes."""
    for name, steps in (("dpm_fast", 8), ("dpm_adaptive", 3)):
        prompts = ("a cat", "a [cat:dog:0.5]", "a dog")
        walks = [
            pipe.paint(asked(name, prompt=prompt, num_inference_steps=steps))[0].recipe.steps for prompt in prompts
        ]
        assert walks[0][0] == walks[1][0] != walks[2][0], name
        assert len({walk[-1] for walk in walks}) == 3, name


def test_a1111_gives_its_dpm_samplers_an_eta_of_1(pipe: Pipeline) -> None:
    for name in ("DPM fast", "DPM adaptive"):
        plain, named = (pipe.paint(asked(name, determinism="a1111", eta=eta))[0].image.tobytes() for eta in (None, 1.0))
        assert plain == named
        assert plain != pipe.paint(asked(name, determinism="a1111", eta=0.0))[0].image.tobytes()


# A1111's own lists

A1111_LISTS = [
    ("DDIM", None, "leading_to_first", 3),
    ("DDIM", "DDIM", "leading_to_first", 3),
    ("PLMS", None, "leading_to_first", 4),
    ("DDIM CFG++", None, "leading_to_first", 3),
    ("UniPC", None, "uniform_to_min", 4),
    ("DPM++ 2M", "KL Optimal", "kl_optimal_to_min", 4),
    ("Euler a", "KL Optimal", "kl_optimal_to_min", 4),
    ("DPM++ 2M KL Optimal", None, "kl_optimal_to_min", 4),
    ("Euler", "Align Your Steps", "align_your_steps_11", 4),
    ("DPM++ SDE Align Your Steps", None, "align_your_steps_11", 7),
    ("DPM++ 2M", None, "karras", 4),
    ("Euler", "SGM Uniform", "sgm_uniform", 4),
    ("Euler", "DDIM", "leading", 4),
]


@pytest.mark.parametrize(("sampler", "schedule", "expected", "calls"), A1111_LISTS)
def test_at_the_level_a1111_its_names_mean_its_lists(
    pipe: Pipeline, rows: list[int], sampler: str, schedule: str | None, expected: str, calls: int
) -> None:
    request = asked(sampler, schedule=schedule, determinism="a1111", num_inference_steps=4, guidance_scale=1.0)
    if "CFG++" in sampler:
        request = request.replace({"guidance_scale": 7.0})
    (painted,) = pipe.paint(request)
    assert painted.recipe.request.schedule == expected
    assert len(rows) == calls
    exact = pipe.plan(request.replace({"determinism": "exact"})).request
    assert exact.schedule in (expected, resolve(sampler)[1] or resolve_schedule(schedule or "leading"))
    (again,) = pipe.paint(Recipe.from_json(painted.recipe.to_json()).request)
    assert again.image.tobytes() == painted.image.tobytes()


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("ddim", "leading"), ("plms", "leading"), ("unipc_bh1", "leading"), ("euler", "kl_optimal")],
)
def test_a_recipes_own_names_keep_their_meaning(tiny: ModelBundle, sampler: str, schedule: str) -> None:
    """Pictures of before, made at the level a1111, come out as they did: their recipes have gouache's procedure."""
    request = resolve_request(asked(sampler, schedule=schedule, determinism="a1111", procedure="gouache"), tiny)
    assert request.schedule == schedule
    assert float(sigmas_of(request, tiny)[-1]) == 0


def test_the_models_own_sampler_walks_a1111s_list_by_its_procedure(tiny: ModelBundle) -> None:
    request = Request(prompt="a cat", seed=1, determinism="a1111")
    own = resolve_request(request.replace({"procedure": "gouache"}), tiny)
    assert own.schedule == tiny.defaults.schedule
    followed = resolve_request(request, tiny)
    assert followed.schedule == a1111_schedule(tiny.defaults.sampler, tiny.defaults.schedule)
    assert resolve_request(followed, tiny) == followed, "a recipe comes out as it was"


def test_a1111s_text_says_and_reads_its_words(pipe: Pipeline) -> None:
    for sampler, schedule, word in (
        ("Euler", "Align Your Steps", "Align Your Steps"),
        ("Euler", "KL Optimal", "KL Optimal"),
        ("DDIM", None, "DDIM"),
        ("UniPC", None, None),
    ):
        (painted,) = pipe.paint(asked(sampler, schedule=schedule, determinism="a1111"))
        assert infotext_of(painted.recipe).values.get("Schedule type") == word
    text = "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: KL Optimal, CFG scale: 7, Seed: 1, Version: v1.10.1"
    read = request_of(parse_infotext(text), where="picture")
    assert resolve_request(read, pipe.bundle).schedule == "kl_optimal_to_min"


def test_levels_of_timesteps() -> None:
    """What the pipeline tells TCD and PNDM of the levels between: (1 - eta) of a timestep and half of a stride."""
    table = make_noise_schedule("scaled_linear")
    places = table.sigmas.tolist()
    for t, eta, expected in ((999, 0.0, 999), (999, 1.0, 0), (499, 0.3, 349), (250, 0.3, 175), (100, 0.9, 10)):
        assert _lower_level(table, places[t], eta) == pytest.approx(places[expected], rel=1e-12)
    assert _lower_level(table, 0.0, 0.3) == pytest.approx(places[0])
    for first, last, expected in ((961, 921, 941), (981, 940, 961), (501, 500, 501)):
        found = _middle_level(table, places[first], places[last])
        assert found == pytest.approx(places[expected], rel=1e-12)
