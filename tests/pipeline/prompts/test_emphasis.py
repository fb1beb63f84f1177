"""Emphasis that holds for every text encoder.

The kind of fault: a rule of another tool that is sound for the encoders that tool runs, applied to one where its
formula has a pole. A1111's rule divides by the mean of the weighted states; where an encoder's token means lie around
zero, ordinary weights bring that mean to zero or through it, and the states are blown up or turned round. Members: the
shipped sentence encoder, CLIP whose last norm has no offset, one of two encoders only, prompts of any length, any
weight, weights near or below zero on a whole chunk, several chunks, negative prompts.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gouache.checkpoints.hub import shipped_model
from gouache.checkpoints.load import load_bundle
from gouache.models.bundle import ModelBundle
from gouache.models.configs import TextEncoderConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.pipeline.output.a1111_text import infotext_of, request_of
from gouache.pipeline.output.infotext import format_infotext, parse_infotext
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.emphasis import MOST, STEADY, weight_sensitivity
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Emphasis, Request

SUBJECTS = ("house", "car", "cat", "apple", "tree", "bird", "red fox", "teapot", "sailing boat", "mushroom")
FORMS = (
    "a ({}:{}) with garden, noto style",
    "a blue ({}:{}), flat style",
    "a ({}:{}) to the left of a tree",
    "({}:{})",
    "two dogs and a ({}:{}) in the snow",
)
WEIGHTS = (0.5, 0.8, 1.2, 1.5)
ORDINARY = [
    (form.format(subject, weight), weight) for form, subject, weight in itertools.product(FORMS, SUBJECTS, WEIGHTS)
]


@pytest.fixture(scope="module")
def shipped() -> TextStack:
    path = shipped_model()
    if path is None:
        pytest.skip("no model is shipped with this installation")
    return load_bundle(path, device=torch.device("cpu"), dtype=torch.float32).text


def clip(offset: float, *, seed: int = 0, width: int = 32) -> TextEncoder:
    """A CLIP encoder whose last norm shifts every state by `offset`."""
    encoder = TextEncoder(TextEncoderConfig(width=width, inner_width=64, layers=2, heads=2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            spread = 0.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + float(parameter.ndim == 1))
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(offset if "final_layer_norm" in name else 0.0)
    return encoder.eval()


def states(stack: TextStack, text: str, rule: Emphasis, **others: bool) -> Tensor:
    return PromptReader(stack, rule, None, **others).encode(text).context


def chunks(context: Tensor) -> tuple[Tensor, ...]:
    return torch.split(context, 77, dim=1)


def plain(text: str) -> str:
    return text.replace("(", "").split(":")[0] + text.partition(")")[2] if "(" in text else text


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_ordinary_weights_never_blow_up_the_shipped_models_states(shipped: TextStack, every: int) -> None:
    reader = PromptReader(shipped, "a1111", None)
    assert len(ORDINARY) == 200
    for text, weight in ORDINARY[::every]:
        ratio = float(reader.encode(text).context.norm() / reader.encode(plain(text)).context.norm())
        assert min(weight, 1.0) - 1e-4 <= ratio <= max(weight, 1.0) + 1e-4, text
    assert reader.notes == [
        "emphasis: the text encoder has no steady mean; weights act without keeping it, as no_norm"
    ], "said once, not for every text"


def test_the_formula_to_the_letter_does_blow_them_up(shipped: TextStack) -> None:
    text = "a blue (car:2.5), flat style"
    blown = states(shipped, text, "original").norm() / states(shipped, plain(text), "original").norm()
    assert blown > 3, "otherwise this model is no example of the fault any more"
    assert torch.equal(states(shipped, text, "a1111"), states(shipped, text, "no_norm"))
    letter = states(shipped, text, "a1111", to_the_letter=True)
    assert torch.equal(letter, states(shipped, text, "no_norm")), "A1111 has no picture by such an encoder to repeat"


@pytest.mark.every_time("a ({}:{})")
@pytest.mark.parametrize("text", ["a ({}:{})", "a ({}:{}) to the left of a tree", "{}, a tree, ({}:{})"])
def test_states_follow_the_weight_without_a_jump(shipped: TextStack, text: str) -> None:
    reader = PromptReader(shipped, "a1111", None)
    count = text.count("{}") - 1
    found = [reader.encode(text.format(*["cat"] * count, k / 20)).context for k in range(2, 61)]
    moves = [float((after - before).norm() / before.norm()) for before, after in itertools.pairwise(found)]
    assert max(moves) < 0.2


@pytest.mark.parametrize("offset", [0.1, -0.1, 0.5, 1.0, 3.0, -2.0])
@pytest.mark.parametrize("text", ["a (cat:1.5)", "((a)) [cat] on a (mat:0.3)", "a cat " * 30 + "(on a mat:1.3)"])
def test_an_encoder_with_a_steady_mean_keeps_a1111s_rule_bit_for_bit(offset: float, text: str) -> None:
    stack = TextStack.of_clip([clip(offset)])
    reader = PromptReader(stack, "a1111", None)
    context = reader.encode(text).context
    assert torch.equal(context, states(stack, text, "original"))
    assert reader.notes == []
    for row, before in zip(chunks(context), chunks(states(stack, text, "ignore")), strict=True):
        assert float(row.mean()) == pytest.approx(float(before.mean()), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_clip_encoder_without_a_mean_doesnt_keep_one(seed: int) -> None:
    stack = TextStack.of_clip([clip(0.0, seed=seed)])
    assert weight_sensitivity(stack, None)[0] > STEADY
    reader = PromptReader(stack, "a1111", None)
    for text in ("a (cat:1.2)", "a cat, (a dog:0.7)", "((((a)))) cat"):
        assert torch.equal(reader.encode(text).context, states(stack, text, "no_norm"))
    assert len(reader.notes) == 1
    text = "a (cat:1.2)"
    assert torch.equal(states(stack, text, "a1111", to_the_letter=True), states(stack, text, "original"))


@pytest.mark.parametrize("unsteady", [0, 1])
def test_each_of_two_encoders_is_judged_by_itself(unsteady: int) -> None:
    offsets = [0.5, 0.5]
    offsets[unsteady] = 0.0
    stack = TextStack.of_clip([clip(offset, seed=k) for k, offset in enumerate(offsets)])
    reader = PromptReader(stack, "a1111", None)
    text = "a (cat:1.4) on a [mat]"
    parts = [reader.encode(text).context, states(stack, text, "original"), states(stack, text, "no_norm")]
    found, kept, free = (torch.split(part, 32, dim=-1) for part in parts)
    for k in (0, 1):
        assert torch.equal(found[k], free[k] if k == unsteady else kept[k])
    assert [note.partition(":")[2].split(" has")[0] for note in reader.notes] == [f" text encoder {unsteady + 1}"]


@pytest.mark.parametrize("weight", [0.05, 0.02, 0.0, -0.02, -0.5, -1.0])
def test_weights_that_cancel_a_whole_chunk_are_bounded(weight: float) -> None:
    stack = TextStack.of_clip([clip(0.5)])
    text = f"({'a cat on a mat ' * 15}:{weight})"
    bounded, free = states(stack, text, "a1111"), states(stack, text, "no_norm")
    assert float(bounded.norm() / free.norm()) <= MOST * 1.001
    assert bool(torch.isfinite(bounded).all())


def test_the_four_rules_of_a1111(tiny: ModelBundle) -> None:
    text, words = "a (cat:1.5) [on] a mat AND \\(x\\)", "a cat on a mat AND (x)"
    rules: tuple[Emphasis, ...] = ("a1111", "original", "no_norm", "ignore", "none")
    plans = {rule: PromptReader(tiny.text, rule, None).plan(text, 4) for rule in rules}
    assert {rule: len(plan.branches) for rule, plan in plans.items()} == dict.fromkeys(rules, 2) | {"none": 1}
    first = {rule: plan.at(1)[0][1].context for rule, plan in plans.items()}
    ignored = PromptReader(tiny.text, "ignore", None).plan(words, 4).at(1)[0][1].context
    assert torch.equal(first["ignore"], ignored)
    assert torch.equal(first["no_norm"][0, 2], ignored[0, 2] * 1.5)
    assert torch.equal(first["no_norm"][0, 1], ignored[0, 1])
    assert torch.equal(first["a1111"], first["original"])
    assert not torch.equal(first["a1111"], first["no_norm"])


@pytest.mark.parametrize("rule", ["a1111", "original", "no_norm", "ignore", "comfy", "none"])
def test_a_picture_tells_its_rule_and_replays_by_it(tiny: ModelBundle, rule: str) -> None:
    request = Request(prompt="a (cat:1.5)", seed=3, num_inference_steps=2).replace({"emphasis": rule})
    (painted,) = Pipeline(tiny).paint(request)
    assert painted.recipe.request.emphasis == rule
    (again,) = Pipeline(tiny).paint(Recipe.from_dict(json.loads(painted.recipe.to_json()), where="recipe").request)
    assert again.recipe.pixels == painted.recipe.pixels
    text = format_infotext(infotext_of(painted.recipe))
    expected = "a1111" if rule == "original" else rule
    assert request_of(parse_infotext(text), "text").emphasis == expected


@pytest.mark.parametrize(
    ("label", "rule"), [("None", "none"), ("Ignore", "ignore"), ("Original", "a1111"), ("No norm", "no_norm")]
)
def test_a1111s_names_are_read(label: str, rule: str) -> None:
    text = f"a (cat:1.5)\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Emphasis: {label}"
    assert request_of(parse_infotext(text), "text").emphasis == rule


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "inversion", "interpolation"])
def test_older_recipes_keep_the_formula_they_were_painted_by(tiny: ModelBundle, version: int, field: str) -> None:
    (painted,) = Pipeline(tiny).paint(Request(prompt="a cat", seed=3, num_inference_steps=1))
    data = json.loads(painted.recipe.to_json())
    words: object = "a [cat] on a (mat:1.2)"
    if field in ("inversion", "interpolation"):
        data["request"]["init_image"] = "cat.png"
        words = {"source_prompt" if field == "inversion" else "prompt": words}
    data["recipe"] = version
    assert Recipe.from_dict(data, where="recipe").request.emphasis == "a1111", "no weights, nothing to keep"
    data["request"][field] = words
    assert Recipe.from_dict(data, where="recipe").request.emphasis == ("a1111" if version == 3 else "original")
    data["request"]["emphasis"] = "comfy"
    assert Recipe.from_dict(data, where="recipe").request.emphasis == "comfy"


def test_the_note_stands_in_the_recipe(tmp_path: Path) -> None:
    if shipped_model() is None:
        pytest.skip("no model is shipped with this installation")
    pipeline = Pipeline.load(shipped_model() or tmp_path)
    request = Request(prompt="a (cat:1.3)", seed=1, num_inference_steps=1, background="white")
    (painted,) = pipeline.paint(request)
    assert any("no steady mean" in note for note in painted.recipe.notes)
    (painted,) = pipeline.paint(request.replace({"prompt": "a cat"}))
    assert not any("no steady mean" in note for note in painted.recipe.notes)
    (painted,) = pipeline.paint(request.replace({"prompt": "a cat", "negative_prompt": "(dog)"}))
    assert any("no steady mean" in note for note in painted.recipe.notes)
