"""Drafts of the shipped model that follow what its prior remembers: which picture, in which style, and when not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gouache.diffusion.rng import ImageSeed
from gouache.models.prior import Draw
from gouache.pipeline.generate.draft import Kept, draft, draw_of, draw_tokens
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.remembered import as_drafted
from gouache.pipeline.request import Prior, Request

TABLES = ("tokens", "residuals")


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return open_pipeline(None)[0]


def reader(shipped: Pipeline) -> PromptReader:
    return PromptReader(shipped.bundle.text, "a1111", None)


def drafted(shipped: Pipeline, prompt: str, seed: int = 1, **prior: float) -> str:
    encode = reader(shipped).encode
    request = shipped.resolve(Request(prompt=prompt, seed=seed, prior=Prior.from_dict(prior)))
    return as_drafted(request, shipped.bundle, seed, encode(prompt), encode).prompt


def test_a_prompt_without_a_style_gets_one_by_its_seed(shipped: Pipeline) -> None:
    found = {drafted(shipped, "a dog", seed) for seed in range(24)}
    assert found <= {f"a dog, {style} style" for style in shipped.bundle.styles}
    assert len(found) >= 3
    assert drafted(shipped, "a dog", 3) == drafted(shipped, "a dog", 3)


@pytest.mark.parametrize("prompt", ["a dog, 3d style", "一只狗，立体风格", "a (dog:1.2)", "a dog AND a cat", ""])
def test_what_names_a_style_or_is_no_plain_sentence_is_drafted_as_it_stands(shipped: Pipeline, prompt: str) -> None:
    assert drafted(shipped, prompt) == prompt


def test_without_recall_the_prompt_is_drafted_as_it_stands(shipped: Pipeline) -> None:
    assert drafted(shipped, "a dog", recall=0.0) == "a dog"


def test_styles_in_which_nothing_near_is_remembered_are_passed_over(shipped: Pipeline) -> None:
    recall = shipped.bundle.prior.recall if shipped.bundle.prior is not None else None
    assert recall is not None
    near = {
        style: float(recall.nearness(pooled))
        for style in shipped.bundle.styles
        if (pooled := reader(shipped).encode(f"消防车, {style} style").pooled) is not None
    }
    counts = dict.fromkeys(near, 0)
    for seed in range(24):
        counts[drafted(shipped, "一辆消防车", seed).rsplit(", ", 1)[1].removesuffix(" style")] += 1
    best, worst = max(near, key=near.__getitem__), min(near, key=near.__getitem__)
    assert near[best] > near[worst] + 0.05
    assert counts[best] > 3 * counts[worst]


def test_the_draft_is_mostly_the_nearest_pictures_tokens(shipped: Pipeline) -> None:
    bundle, text = shipped.bundle, reader(shipped).encode
    assert bundle.prior is not None
    assert bundle.prior.recall is not None
    prompt = "a birthday cake, noto style"
    own = text(prompt)
    assert own.pooled is not None
    nearest = bundle.prior.recall.find(own.pooled).tokens[0]

    def alike(recall: float) -> float:
        request = shipped.resolve(Request(prompt=prompt, seed=1, prior=Prior(recall=recall, pose=False)))
        found = draft(request, bundle, own, text(""), ImageSeed(1), (16, 16)).tokens
        assert found is not None
        return float((nearest == found[0]).float().mean(1).max())

    assert alike(8.0) > 0.9
    assert alike(0.0) < 0.7


def test_what_the_tokens_leave_of_the_followed_picture_is_recalled_with_them(shipped: Pipeline) -> None:
    """Draft by draft: where its tokens are the picture's, the draft is that picture's latents to within its codes."""
    bundle, text = shipped.bundle, reader(shipped).encode
    prior, quantizer = bundle.prior, bundle.quantizer
    assert prior is not None
    assert prior.recall is not None
    assert quantizer is not None
    own = text("a birthday cake, noto style")
    assert own.pooled is not None
    row = int(prior.recall.followed(own.pooled, torch.zeros(1))[0])
    kept = Kept(prior.recall.tokens[row][None].long(), *(prior.recall.get_buffer(name)[row][None] for name in TABLES))
    drawn = draw_tokens(bundle, own, text(""), Draw(recall=60.0), [1], kept=kept)
    assert torch.equal(drawn.tokens, prior.recall.tokens[row][None].long())
    assert drawn.residuals is not None
    assert torch.equal(drawn.residuals, prior.recall.residuals[row][None])
    freely = draw_tokens(bundle, own, text(""), Draw(), [1])
    assert freely.residuals is not None
    assert not freely.residuals.any()
    refined, plain = (quantizer.decode(drawn.tokens, one) for one in (drawn.residuals, None))
    assert 0.02 < float((refined - plain).square().mean()) < 0.2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_remembered_is_the_same_in_every_number_format(shipped: Pipeline, dtype: str) -> None:
    prior, own = open_pipeline(None, dtype=dtype)[0].bundle.prior, shipped.bundle.prior
    assert prior is not None
    assert own is not None
    assert prior.recall is not None
    assert own.recall is not None
    for name, kind in (("tokens", torch.int16), ("residuals", torch.uint8)):
        assert prior.recall.get_buffer(name).dtype == kind
        assert torch.equal(prior.recall.get_buffer(name), own.recall.get_buffer(name))
    assert int(own.recall.tokens.max()) > 600


def test_guidance_is_for_what_the_prior_draws_itself(shipped: Pipeline) -> None:
    def guidance(**prior: float) -> float | None:
        resolved = shipped.resolve(Request(prompt="a cat", prior=Prior.from_dict(prior))).prior
        return None if resolved is None else resolved.guidance_scale

    assert guidance() == 1.0
    assert guidance(recall=0.0) == shipped.bundle.defaults.prior_guidance_scale > 1
    assert guidance(guidance_scale=2.0) == 2.0


def test_a_lora_switches_it_off_unless_it_is_asked_for(shipped: Pipeline) -> None:
    def recall(prompt: str, **prior: float) -> float | None:
        resolved = shipped.resolve(Request(prompt=prompt, prior=Prior.from_dict(prior))).prior
        return None if resolved is None else resolved.recall

    assert recall("a cat") == shipped.bundle.defaults.prior_recall > 0
    assert recall("a cat <lora:ink>") == 0.0
    assert recall("a cat <lora:ink>", recall=3.0) == 3.0
    assert draw_of(None, shipped.bundle.defaults.of_a_tuned_prior()).recall == 0.0


def test_measure_words_make_no_difference(shipped: Pipeline) -> None:
    pictures = [
        np.asarray(shipped.paint(Request(prompt=prompt, seed=4))[0].image.convert("RGBA"), np.float64)
        for prompt in ("一匹马, 3d style", "马, 3d style")
    ]
    seen = [picture[..., 3] > 127 for picture in pictures]
    assert (seen[0] & seen[1]).sum() / (seen[0] | seen[1]).sum() > 0.9


def named(shipped: Pipeline, prompt: str, seed: int = 1, **prior: bool) -> dict[str, str]:
    encode = reader(shipped).encode
    request = shipped.resolve(Request(prompt=prompt, seed=seed, prior=Prior.from_dict(prior)))
    return as_drafted(request, shipped.bundle, seed, encode(prompt), encode).renamed


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("一只可爱的熊猫", "panda"),
        ("机器人", "robot"),
        ("火箭, 3d style", "rocket"),
        ("一碗面条", "steaming bowl"),
        ("a bowl of noodles", "steaming bowl"),
        ("the planet Saturn, noto style", "ringed planet"),
        ("sneakers", "running shoe"),
        ("a cute kitten", "cat"),
    ],
)
def test_a_thing_is_drafted_by_the_label_that_it_is_remembered_by(shipped: Pipeline, prompt: str, label: str) -> None:
    assert list(named(shipped, prompt).values()) == [label]
    assert not named(shipped, prompt, synonyms=False)


@pytest.mark.parametrize(
    "prompt",
    [
        "a birthday cake",  # a label itself
        "a fast sports car",  # near enough to what is remembered, and no sport utility vehicle
        "a knight in armor",  # a keyword of the dragon, to which it is not like
        "下雪的山",
        "qwzx",
        "a (doctor:1.2)",
    ],
)
def test_what_is_no_other_name_of_anything_stays(shipped: Pipeline, prompt: str) -> None:
    assert not named(shipped, prompt)


def test_a_background_that_the_prompt_names_stays_whatever_the_thing_is_drafted_as(shipped: Pipeline) -> None:
    painted = shipped.paint(Request(prompt="红色的苹果，黄色背景", seed=2))[0]
    assert any("is drafted as" in note for note in painted.recipe.notes)
    rim = np.asarray(painted.image.convert("RGBA"), np.float64)[:4].reshape(-1, 4).mean(0)
    assert rim[3] > 200
    assert min(rim[0], rim[1]) > rim[2] + 50  # yellow


def test_of_several_things_the_seed_chooses_the_likelier_more_often(shipped: Pipeline) -> None:
    found = [label for seed in range(24) for label in named(shipped, "a wizard", seed).values()]
    assert len(found) == 24
    assert set(found) <= {"mage", "magic wand"}
    assert found.count("mage") > found.count("magic wand")
    assert named(shipped, "a wizard", 3) == named(shipped, "a wizard", 3)


def test_the_recipe_says_by_what_name_a_thing_was_drafted(shipped: Pipeline) -> None:
    painted = shipped.paint(Request(prompt="一只可爱的熊猫", seed=1))[0]
    assert "'可爱的熊猫' is drafted as 'panda'" in painted.recipe.notes
    older = Recipe.model_validate({**painted.recipe.model_dump(mode="json"), "recipe": 6, "request": BEFORE})
    assert older.request.prior is not None
    assert not older.request.prior.synonyms


BEFORE = {"prompt": "一只可爱的熊猫", "seed": 1, "count": 1, "prior": {"recall": 8.0}}
