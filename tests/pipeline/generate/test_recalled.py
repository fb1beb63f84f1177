"""Drafts of the shipped model that follow what its prior remembers: which picture, in which style, and when not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gouache.diffusion.rng import ImageSeed
from gouache.models.prior import Draw
from gouache.pipeline.generate.draft import Kept, as_drafted, draft, draw_of, draw_tokens
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.prompts.encode import PromptReader
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
    return as_drafted(request, shipped.bundle, seed, encode(prompt), encode)[0]


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
        request = shipped.resolve(Request(prompt=prompt, seed=1, prior=Prior(recall=recall)))
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
