"""Sentences of several things: how they are taken apart, and that each thing is drafted and laid where they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gouache.colours import colour_name, main_colour, named_indices, visible
from gouache.data.scene_rules import check_relation, count_parts, foreground
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.prompts.layout import ROWS, Thing, read_layout
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
        ("three blue cups", [("a cup", 0.26, 0.26)]),
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
        "a fire engine, 3d style",
        "a red and white flag",
        "a red panda",
        "a blue orange",
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


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red fox", [("a fox", "red")]),
        ("An Orange cat, flat style", [("a cat, flat style", "orange")]),
        ("a blue owl in 3d style", [("an owl, 3d style", "blue")]),
        ("red fire engine", [("fire engine", "red")]),
        ("a violet hat in the snow", [("a hat", "purple")]),
        ("two brown dogs", [("a dog", "brown")]),
        ("a red cup next to a blue car", [("a cup", "red"), ("a car", "blue")]),
        ("a cat and a green apple", [("a cat", None), ("an apple", "green")]),
        ("一只蓝色的猫", [("一只猫", "blue")]),
        ("一朵粉红色的花，立体风格", [("一朵花，立体风格", "pink")]),
        ("三个红色的苹果", [("一个苹果", "red")]),
        ("红色的狐狸", [("狐狸", "red")]),
    ],
)
def test_a_thing_is_told_apart_from_its_colour(prompt: str, expected: list[tuple[str, str | None]]) -> None:
    layout = read_layout(prompt)
    assert layout is not None
    assert [(thing.words, thing.colour) for thing in layout.things] == expected
    before = read_layout(prompt, plain=False)
    assert before is None or all(thing.colour is None for thing in before.things)


def test_a_thing_alone_on_a_ground_fills_the_picture() -> None:
    layout = read_layout("a cat on a yellow background")
    assert layout is not None
    assert (layout.things, layout.ground) == ((Thing("a cat", ()),), True)
    assert read_layout("a cat on a transparent background") is None
    assert read_layout("a cat on a yellow background", plain=False) is None
    assert read_layout("on a yellow background") is None


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


@pytest.mark.parametrize(
    ("prompt", "field", "value", "version"),
    [
        ("two red apples", "layout", False, 1),
        ("a blue cat", "plain", False, 4),
        ("a red fox in the snow", "scenery", "ignore", 5),
    ],
)
def test_a_picture_of_an_older_recipe_comes_out_as_it_did(
    shipped: Pipeline, prompt: str, field: str, value: bool | str, version: int
) -> None:
    before = Prior.from_dict({field: value})
    made = shipped.paint(Request(prompt=prompt, seed=5, num_inference_steps=2, prior=before))[0]
    old = made.recipe.model_dump(mode="json") | {"recipe": version}
    del old["request"]["prior"][field]
    recipe = Recipe.from_json(json.dumps(old), where="old recipe")
    assert shipped.paint(recipe.request)[0].recipe.pixels == made.recipe.pixels


def test_the_evaluation_paints_what_users_get(shipped: Pipeline) -> None:
    prompts = ["a cat to the left of a tree", "a red fire engine, 3d style"]
    together = painter(shipped)(prompts, [5, 5], Setting(2, draft=True))
    for prompt, picture in zip(prompts, together, strict=True):
        alone = painted(shipped, prompt, determinism="portable", num_inference_steps=2)
        seen = alone[..., 3] > 8
        assert np.abs(picture.astype(int) - alone.astype(int))[seen].max() <= 2, prompt


@pytest.mark.parametrize(("prompt", "noun", "colour"), [("a blue cat", "a cat", "blue"), ("a red fox", "a fox", "red")])
def test_a_thing_of_a_colour_has_the_shape_of_the_thing(shipped: Pipeline, prompt: str, noun: str, colour: str) -> None:
    def opaque(asked: str, *, plain: bool = True) -> tuple[np.ndarray, str]:
        request = Request(prompt=asked, seed=1, prior=Prior(plain=plain))
        picture = np.asarray(shipped.paint(request)[0].image)
        return picture[..., 3] > 127, main_colour(visible(picture)).name

    thing, _ = opaque(noun)
    shape, found = opaque(prompt)
    assert found == colour
    at_once, _ = opaque(prompt, plain=False)
    alike = (thing & shape).sum() / (thing | shape).sum()
    assert alike > 0.7
    assert alike > (thing & at_once).sum() / (thing | at_once).sum() + 0.15


def test_a_thing_alone_keeps_its_shape_on_a_ground(shipped: Pipeline) -> None:
    picture = np.asarray(shipped.paint(Request(prompt="a cat on a yellow background", seed=1))[0].image)
    assert picture[..., 3].min() > 220
    assert colour_name(tuple(picture[2, 2, :3])) == "yellow"
    cat = np.asarray(shipped.paint(Request(prompt="a cat", seed=1))[0].image)[..., 3] > 127
    seen = named_indices(picture[..., :3]) != named_indices(picture[2:3, 2:3, :3])[0, 0]
    assert (cat & seen).sum() / (cat | seen).sum() > 0.6
