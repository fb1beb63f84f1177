"""Models with an autoregressive prior: drafts per picture, best of several, completion, and switching it off."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.rng import ImageSeed
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults
from gouache.models.unet import UNet
from gouache.pipeline.generate.draft import draft, draw_of, kept_tokens, tokens_to_keep
from gouache.pipeline.inputs.start import encode
from gouache.pipeline.likelihood import prior_bits
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Hires, Request
from gouache.pipeline.request import Prior as PriorOptions

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

POOLED = 24


@pytest.fixture(scope="module")
def pipe(pocket: ModelBundle) -> Pipeline:
    return Pipeline(pocket)


def paint(pipe: Pipeline, **changes: object) -> bytes:
    base = Request(prompt="a cat", seed=3, num_inference_steps=2)
    return pipe.paint(base.replace(changes))[0].image.tobytes()


def test_every_picture_has_its_own_draft(pipe: Pipeline) -> None:
    request = Request(prompt="a cat", seed=3, num_inference_steps=2)
    batch = pipe.paint(request.replace({"count": 3}))
    assert len({one.image.tobytes() for one in batch}) == 3
    for k, one in enumerate(batch):
        alone = pipe.paint(request.replace({"seed": 3 + k}))[0]
        assert alone.image.tobytes() == one.image.tobytes()
        assert alone.recipe == one.recipe
    together = pipe.paint(request.replace({"count": 3, "determinism": "portable"}))
    assert len(together) == 3
    best = pipe.paint(request.replace({"best_of": 3}))[0]
    assert any("best of 3" in note for note in best.recipe.notes)


def test_the_prior_matters_and_can_be_left_out(pipe: Pipeline) -> None:
    pictures = {paint(pipe), paint(pipe, prior=PriorOptions(enabled=False)), paint(pipe, prior={"temperature": 0.0})}
    assert len(pictures) == 3
    assert paint(pipe, prior=PriorOptions(temperature=0.0)) == paint(pipe, prior=PriorOptions(top_k=1))


def test_the_best_of_several_is_the_likeliest_under_the_prompt(pocket: ModelBundle) -> None:
    reader = PromptReader(pocket.text, "a1111", None)
    text, empty = reader.encode("a cat"), reader.encode("")

    def score(count: int) -> float:
        made = draft(Request(best_of=count), pocket, text, empty, ImageSeed(3), (8, 8))
        assert made.tokens is not None
        assert made.score == pytest.approx(float(prior_bits(pocket, made.tokens, text).sum()), abs=1e-3)
        return made.score or 0.0

    two, four, eight = score(2), score(4), score(8)
    assert two >= four >= eight
    assert two > eight
    assert draft(Request(), pocket, text, empty, ImageSeed(3), (8, 8)).score is None


def test_a_variation_draws_more_of_the_draft_anew_the_further_it_goes(pocket: ModelBundle) -> None:
    reader = PromptReader(pocket.text, "a1111", None)
    text, empty = reader.encode("a cat"), reader.encode("")

    def tokens(strength: float, subseed: int = 8, seed: int = 3, **options: Any) -> Tensor:
        request = Request(subseed_strength=strength, prior=PriorOptions(**options))
        made = draft(request, pocket, text, empty, ImageSeed(seed, subseed, strength), (8, 8)).tokens
        assert made is not None
        return made

    own = tokens(0.0)
    kept = [tokens_to_keep(own, strength, 8, "prior")[0] >= 0 for strength in (0.0, 0.1, 0.25, 0.5, 1.0)]
    assert [bool(one[0]) for one in kept] == [True, True, True, True, False], "the whole picture's colour"
    for less, more in pairwise(kept):
        assert not (more & ~less).any(), "what a smaller variation draws anew, a larger one does too"
        assert less.sum() > more.sum()
    assert kept[0].all()
    for strength, mask in zip((0.1, 0.25, 0.5), kept[1:4], strict=True):
        made = tokens(strength)
        assert (made[0][mask] == own[0][mask]).all()
        assert (made != own).any()
        assert torch.equal(made, tokens(strength))
        assert not torch.equal(made, tokens(strength, subseed=9))
    assert torch.equal(tokens(1.0), tokens(0.0, seed=8)), "at 1 it is the subseed's own draft"
    assert torch.equal(tokens(0.5, variation=0.0), own)
    assert torch.equal(tokens(0.0, variation=0.25), tokens(0.25))


def test_the_variations_of_old_recipes_keep_the_draft(pipe: Pipeline) -> None:
    varied = pipe.paint(Request(prompt="a", seed=3, subseed=4, subseed_strength=0.5, num_inference_steps=2))[0]
    stored = json.loads(varied.recipe.to_json())
    assert Recipe.from_dict(stored, where="recipe").request == varied.recipe.request
    old = Recipe.from_dict(stored | {"recipe": 4}, where="recipe").request
    assert old.prior is not None
    assert old.prior.variation == 0.0
    plain = stored | {"recipe": 4, "request": stored["request"] | {"subseed": None, "subseed_strength": 0.0}}
    found = Recipe.from_dict(plain, where="recipe").request.prior
    assert found is not None
    assert found.variation is None, "so that a variation of it is one"


def test_tokens_inside_a_block_are_kept(pocket: ModelBundle, tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:32] * 8
    picture = Image.fromarray(np.stack([x, y, 255 - x, np.full_like(x, 255)], -1).astype(np.uint8))
    latents = encode(pocket, picture)
    assert pocket.quantizer is not None
    known = kept_tokens(pocket.quantizer, latents, (0.0, 0.0, 1.0, 0.5)).known[0]
    true = pocket.quantizer.encode(latents)[0]
    assert known[0] == -1, "the coarsest token covers more than the block"
    assert (known[1:3] == true[1:3]).all()
    assert (known[3:5] == -1).all()
    assert (known[5:13] == true[5:13]).all()
    assert (known[13:] == -1).all()
    reader = PromptReader(pocket.text, "a1111", None)
    options = PriorOptions(keep=(0.0, 0.0, 1.0, 0.5))
    request = Request(prior=options, init_image="given")
    made = draft(request, pocket, reader.encode("a"), reader.encode(""), ImageSeed(1), (8, 8), latents)
    assert made.tokens is not None
    assert (made.tokens[0][known >= 0] == known[known >= 0]).all()
    path = tmp_path / "a.png"
    picture.save(path)
    pictures = {
        paint(Pipeline(pocket), init_image=str(path), strength=1.0, prior=options, prompt=prompt)
        for prompt in ("a cat", "a dog")
    }
    assert len(pictures) == 2
    with pytest.raises(InvalidInput, match="8x8"):
        kept_tokens(pocket.quantizer, torch.zeros(1, 4, 16, 16), (0.0, 0.0, 1.0, 1.0))


def test_other_sizes_get_a_stretched_draft(pipe: Pipeline) -> None:
    (painted,) = pipe.paint(Request(prompt="a", seed=1, width=64, height=48, num_inference_steps=1))
    assert painted.image.size == (64, 48)


def test_models_without_a_prior_say_so(make_tiny: MakeBundle) -> None:
    bundle = make_tiny()
    reader = PromptReader(bundle.text, "a1111", None)
    with pytest.raises(InvalidInput, match="prior"):
        draft(Request(), bundle, reader.encode("a"), reader.encode(""), ImageSeed(1), (8, 8))
    plain = Pipeline(bundle)
    for changes in ({"best_of": 4}, {"prior": {"temperature": 0.5}}):
        with pytest.raises(InvalidInput, match="this model has no prior"):
            plain.run(Request(prompt="a").replace(changes))
    plain.resolve(Request(prompt="a", prior=PriorOptions(enabled=False)))


def test_options_reach_the_draw() -> None:
    own = GenerationDefaults(prior_temperature=0.3, prior_top_p=0.8, prior_guidance_scale=1.5)
    made = draw_of(PriorOptions(temperature=0.5, top_k=7, top_p=0.9, guidance_scale=2.0), own)
    assert (made.temperature, made.top_k, made.top_p, made.guidance_scale) == (0.5, 7, 0.9, 2.0)
    made = draw_of(None, own)
    assert (made.temperature, made.top_k, made.top_p, made.guidance_scale) == (0.3, 0, 0.8, 1.5)
    assert draw_of(PriorOptions(temperature=0.0), own).top_k == 1
    assert (draw_of(None, own).recall, draw_of(PriorOptions(recall=3.0), own).recall) == (0.0, 3.0)
    assert draw_of(None, own.model_copy(update={"prior_recall": 8.0})).recall == 8.0


def test_what_the_prior_is_left_comes_from_the_model_and_stands_in_the_recipe(pocket: ModelBundle) -> None:
    own = pocket.defaults.model_copy(update={"prior_temperature": 0.25, "prior_top_p": 0.75})
    given = Request(prompt="a", prior=PriorOptions(guidance_scale=2.0))
    resolved = Pipeline(replace(pocket, defaults=own)).resolve(given)
    expected = {
        "temperature": 0.25,
        "top_p": 0.75,
        "guidance_scale": 2.0,
        "top_k": 0,
        "start_sigma": 0.0,
        "recall": 0.0,
        "scenery": "draw",
    }
    assert resolved.prior == PriorOptions.from_dict(expected)


ON_DRAFT = GenerationDefaults(
    width=32, height=32, num_inference_steps=8, prior_start_sigma=1.0, prior_num_inference_steps=4
)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["uniform", "karras", "exponential"])
def test_it_begins_on_the_draft_noised_to_the_level_with_all_its_steps(
    schedule: str, steps: int, pocket: ModelBundle
) -> None:
    """The first call is shown draft + sigma * noise: with the draft known, the noise in it has deviation 1."""
    pipe = Pipeline(pocket)
    seen: list[tuple[torch.Tensor, float, torch.Tensor]] = []
    assert isinstance(pocket.unet, UNet)
    own = pocket.unet.forward

    def watched(x: torch.Tensor, t: torch.Tensor, *given: Any, draft: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.append((x.clone(), float(t.flatten()[0]), draft.clone()))
        return own(x, t, *given, draft=draft, **named)

    asked = Request(
        prompt="a cat", seed=3, num_inference_steps=steps, schedule=schedule, sampler="ddim", guidance_scale=1.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pocket.unet, "forward", watched)
        pipe.paint(asked.replace({"prior": {"start_sigma": 1.0}}))
    assert len(seen) == steps
    levels = [float(pocket.schedule.t_to_sigma(torch.tensor(t))) for _, t, _ in seen]
    assert levels[0] == pytest.approx(1.0, rel=1e-3)
    assert levels == sorted(levels, reverse=True)
    (x, _, given), sigma = seen[0], levels[0]
    noise = (x * (1 + sigma**2) ** 0.5 - given) / sigma
    assert 0.8 < float(noise.std()) < 1.2
    assert abs(float(noise.mean())) < 0.3


def test_a_level_of_0_begins_on_noise_and_a_level_changes_the_picture(pipe: Pipeline) -> None:
    assert paint(pipe, prior={"start_sigma": 0.0}) == paint(pipe)
    assert paint(pipe, prior={"start_sigma": 1.0}) != paint(pipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "edit",
    [
        {"inversion": {"source_prompt": "a cat"}},
        {"strength": 0.5},
        {"prior": {"keep": (0.0, 0.0, 1.0, 1.0)}},
        {"mask": {"image": "a.png"}},
        {"outpaint": {"left": 16}},
    ],
    ids=lambda edit: next(iter(edit)),
)
@pytest.mark.usefixtures("start_picture")
def test_half_precision_reads_a_picture_into_tokens(
    pocket: ModelBundle, dtype: torch.dtype, edit: dict[str, object]
) -> None:
    request = Request.from_dict(
        {"prompt": "a dog", "seed": 1, "num_inference_steps": 2, "init_image": "a.png", **edit}, where="test"
    )
    (full,) = Pipeline(pocket).paint(request)
    (half,) = Pipeline(deepcopy(pocket).to(torch.device("cpu"), dtype)).paint(request)
    left = np.abs(np.asarray(full.image, float) - np.asarray(half.image, float)).mean()
    assert left < 25  # A few tokens may fall to the other side of a boundary.


@pytest.fixture
def start_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture a.png in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("a.png")


ON_NOISE: tuple[dict[str, Any], ...] = (
    {"prior": {"enabled": False}},
    {"prior": {"start_sigma": 0.0}},
    {"sigmas": [5.0, 1.0, 0.0]},
    {"procedure": "a1111"},
    {"init_image": "a.png"},
    {"init_image": "a.png", "strength": 0.99},
    {"init_image": "a.png", "strength": 1.0, "mask": {}},
    {"init_image": "a.png", "outpaint": {"left": 8}},
    {"init_image": "a.png", "inversion": {"source_prompt": "a dog"}},
)


@pytest.mark.usefixtures("start_picture")
@pytest.mark.parametrize("changes", [{}, {"prior": {"temperature": 0.0}}, {"init_image": "a.png", "strength": 1.0}])
def test_a_picture_that_begins_on_its_draft_takes_that_many_steps(changes: dict[str, Any], pocket: ModelBundle) -> None:
    pipe = Pipeline(replace(pocket, defaults=ON_DRAFT))
    assert pipe.resolve(Request(prompt="a cat", **changes)).num_inference_steps == 4
    assert pipe.resolve(Request(prompt="a cat", num_inference_steps=7, **changes)).num_inference_steps == 7


@pytest.mark.usefixtures("start_picture")
@pytest.mark.parametrize("changes", ON_NOISE)
def test_any_other_picture_takes_the_usual_steps(changes: dict[str, Any], pocket: ModelBundle) -> None:
    pipe = Pipeline(replace(pocket, defaults=ON_DRAFT))
    assert pipe.resolve(Request(prompt="a cat", **changes)).num_inference_steps == 8


def test_the_second_pass_takes_the_usual_steps_unless_the_request_says_how_many(pocket: ModelBundle) -> None:
    pipe = Pipeline(replace(pocket, defaults=ON_DRAFT))
    resolved = pipe.resolve(Request(prompt="a cat", hires=Hires()))
    assert (resolved.num_inference_steps, resolved.hires and resolved.hires.num_inference_steps) == (4, 8)
    resolved = pipe.resolve(Request(prompt="a cat", num_inference_steps=5, hires=Hires()))
    assert (resolved.num_inference_steps, resolved.hires and resolved.hires.num_inference_steps) == (5, None)


@pytest.mark.parametrize(
    "changes", [{"sigmas": [5.0, 1.0, 0.0]}, {"procedure": "a1111"}, {"init_image": "start.png", "strength": 0.5}]
)
def test_what_begins_elsewhere_says_that_the_level_was_not_used(
    changes: dict[str, object], pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("start.png")
    request = Request(prompt="a cat", seed=3, num_inference_steps=2, prior=PriorOptions(start_sigma=1.0))
    painted = pipe.paint(request.replace(changes))[0]
    assert any("prior.start_sigma" in note for note in painted.recipe.notes)
    plain = pipe.paint(request.replace({**changes, "prior": {"start_sigma": 0.0}}))[0]
    assert painted.image.tobytes() == plain.image.tobytes()
