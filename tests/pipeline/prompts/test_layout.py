"""Sentences of several things: how they are taken apart, and that each thing is drafted and laid where they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gouache.data.scene_rules import check_relation, count_parts, foreground
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.prompts.layout import ROWS, read_layout
from gouache.pipeline.request import Prior, Request
from gouache.training.evaluation.painting import Setting, painter


def things(prompt: str) -> list[tuple[str, float, float]]:
    """Words and first place of every thing."""
    layout = read_layout(prompt)
    assert layout is not None, prompt
    return [(thing.words, round(thing.places[0].x, 2), round(thing.places[0].y, 2)) for thing in layout.things]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat to the left of a tree", [("a cat", 0.26, 0.5), ("a tree", 0.74, 0.5)]),
        ("A cat is to the right of a tree.", [("A cat", 0.74, 0.5), ("a tree", 0.26, 0.5)]),
        ("a bee above a sunflower, 3d style", [("a bee, 3d style", 0.5, 0.26), ("a sunflower, 3d style", 0.5, 0.74)]),
        ("a dog under a table in flat style", [("a dog, flat style", 0.5, 0.74), ("a table, flat style", 0.5, 0.26)]),
        ("a cup next to an apple, cute", [("a cup, cute", 0.26, 0.5), ("an apple, cute", 0.74, 0.5)]),
        ("a small owl in the top left corner", [("an owl", 0.22, 0.22)]),
        ("a fox at the bottom", [("a fox", 0.5, 0.78)]),
        ("three blue cups", [("a blue cup", 0.26, 0.26)]),
        ("two mice", [("a mouse", 0.26, 0.5)]),
        ("4 apples", [("an apple", 0.26, 0.26)]),
        ("a cat, a dog and a bird", [("a cat", 0.26, 0.26), ("a dog", 0.74, 0.26), ("a bird", 0.5, 0.74)]),
        ("一只猫在一棵树的左边，立体风格", [("一只猫，立体风格", 0.26, 0.5), ("一棵树，立体风格", 0.74, 0.5)]),
        ("三个杯子", [("一个杯子", 0.26, 0.26)]),
        ("左上角有一只小青蛙", [("一只青蛙", 0.22, 0.22)]),
        ("一只猫和一只狗", [("一只猫", 0.26, 0.5), ("一只狗", 0.74, 0.5)]),
    ],
)
def test_a_sentence_is_taken_apart(prompt: str, expected: list[tuple[str, float, float]]) -> None:
    assert things(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red fire engine, 3d style",
        "a bow and arrow",
        "two men holding hands",
        "a man in a suit",
        "six cups",
        "a (cat:1.2) above a dog",
        "a cat AND a dog",
        "a [cat|dog] to the left of a tree",
        "on top of the world",
        "a person in lotus position",
        "四叶草",
        "两个人手牵手",
    ],
)
def test_anything_else_is_left_whole(prompt: str) -> None:
    assert read_layout(prompt) is None


def test_a_ground_belongs_to_the_picture_and_not_to_its_things() -> None:
    layout = read_layout("a cat above a dog, flat style, on a red background")
    assert layout is not None
    assert layout.ground
    assert [thing.words for thing in layout.things] == ["a cat, flat style", "a dog, flat style"]
    clear = read_layout("a cat above a dog on a transparent background")
    assert clear is not None
    assert not clear.ground


def test_places_of_several_do_not_overlap_and_stay_inside() -> None:
    for count in ROWS:
        layout = read_layout(f"{count} apples")
        assert layout is not None
        (thing,) = layout.things
        assert len(thing.places) == count
        for k, one in enumerate(thing.places):
            assert one.side / 2 <= one.x <= 1 - one.side / 2
            assert one.side / 2 <= one.y <= 1 - one.side / 2
            for other in thing.places[:k]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.side


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return open_pipeline("pocket", device="cpu")[0]


def painted(pipeline: Pipeline, prompt: str, **changes: object) -> np.ndarray:
    request = Request(prompt=prompt, seed=5).replace(changes)
    return np.asarray(pipeline.paint(request)[0].image)


def test_two_colours_stand_where_the_sentence_says(shipped: Pipeline) -> None:
    for prompt, relation in (
        ("a blue book to the left of a red apple", "left"),
        ("a blue book below a red apple", "below"),
    ):
        assert check_relation(painted(shipped, prompt), relation, "blue", "red"), prompt


def test_as_many_are_painted_as_asked_for(shipped: Pipeline) -> None:
    for count, prompt in ((4, "four red apples"), (3, "三个苹果")):
        assert count_parts(foreground(painted(shipped, prompt))) == count, prompt


def test_a_ground_is_kept(shipped: Pipeline) -> None:
    picture = painted(shipped, "a cat above a dog, on a blue background")
    red, green, blue, alpha = np.median(picture[:4].reshape(-1, 4), axis=0)
    assert alpha > 240
    assert blue > max(red, green) + 50


def test_the_same_alone_and_in_a_batch_and_to_be_switched_off(shipped: Pipeline) -> None:
    request = Request(prompt="a cat to the left of a tree", seed=5, count=2, num_inference_steps=2)
    both = shipped.paint(request)
    assert both[1].image.tobytes() == shipped.paint(request.replace({"seed": 6, "count": 1}))[0].image.tobytes()
    whole = painted(shipped, request.prompt, prior={"layout": False}, num_inference_steps=2)
    assert not np.array_equal(whole, np.asarray(both[0].image))
    best = shipped.paint(request.replace({"count": 1, "best_of": 2}))[0]
    assert any("best of 2" in note for note in best.recipe.notes)


def test_a_picture_of_the_first_recipes_comes_out_as_it_did(shipped: Pipeline) -> None:
    made = shipped.paint(Request(prompt="two red apples", seed=5, num_inference_steps=2, prior=Prior(layout=False)))[0]
    old = made.recipe.model_dump(mode="json") | {"recipe": 1}
    del old["request"]["prior"]["layout"]
    recipe = Recipe.from_json(json.dumps(old), where="old recipe")
    assert shipped.paint(recipe.request)[0].recipe.pixels == made.recipe.pixels


def test_the_evaluation_paints_what_users_get(shipped: Pipeline) -> None:
    prompts = ["a cat to the left of a tree", "a red fire engine, 3d style"]
    together = painter(shipped)(prompts, [5, 5], Setting(2, draft=True))
    for prompt, picture in zip(prompts, together, strict=True):
        alone = painted(shipped, prompt, determinism="portable", num_inference_steps=2)
        seen = alone[..., 3] > 8
        assert np.abs(picture.astype(int) - alone.astype(int))[seen].max() <= 2, prompt
