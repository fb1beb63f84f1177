"""Pictures of things in sceneries: the thing stands on what was drawn, and a background that is asked for wins."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gouache.colours import colour_name
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import Prior, Request

UNUSED = "the scenery of the prompt was not used"


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return open_pipeline("pocket", device="cpu")[0]


def median(picture: np.ndarray) -> str:
    red, green, blue = (int(value) for value in np.median(picture[..., :3].reshape(-1, 3), axis=0))
    return colour_name((red, green, blue))


@pytest.mark.parametrize(
    ("prompt", "thing", "above", "below"),
    [
        ("a red apple in the snow", "red", "blue", "white"),
        ("a red apple in a meadow", "red", "blue", "green"),
        ("沙滩上的红色的苹果", "red", "blue", "beige"),
    ],
    ids=["snow", "meadow", "beach"],
)
def test_a_thing_stands_in_its_scenery(shipped: Pipeline, prompt: str, thing: str, above: str, below: str) -> None:
    picture = np.asarray(shipped.paint(Request(prompt=prompt, seed=1))[0].image)
    assert picture.shape[2] == 3
    assert median(picture[:8]) == above
    assert median(picture[100:112]) == below
    assert median(picture[70:90, 54:74]) == thing


def test_a_scenery_alone_is_drawn(shipped: Pipeline) -> None:
    picture = np.asarray(shipped.paint(Request(prompt="a meadow in summer", seed=1))[0].image)
    assert (median(picture[:8]), median(picture[90:])) == ("blue", "green")


def test_two_seeds_differ_and_a_batch_has_the_pictures_made_alone(shipped: Pipeline) -> None:
    request = Request(prompt="the sea at night", seed=5, count=2, num_inference_steps=2)
    both = shipped.paint(request)
    assert both[0].image.tobytes() != both[1].image.tobytes()
    assert both[1].image.tobytes() == shipped.paint(request.replace({"seed": 6, "count": 1}))[0].image.tobytes()


def test_a_background_that_is_asked_for_wins_and_is_noted(shipped: Pipeline) -> None:
    request = Request(prompt="a red apple in the snow", seed=1, num_inference_steps=2)
    clear = shipped.paint(request.replace({"background": "transparent"}))[0]
    assert np.asarray(clear.image)[0, 0, 3] < 30
    assert any(UNUSED in note for note in clear.recipe.notes)
    again = Recipe.from_json(json.dumps(clear.recipe.model_dump(mode="json")), where="recipe")
    assert shipped.paint(again.request)[0].recipe.pixels == clear.recipe.pixels


def test_an_opaque_background_is_the_scenery(shipped: Pipeline) -> None:
    request = Request(prompt="a red apple in the snow", seed=1, num_inference_steps=2)
    opaque = shipped.paint(request.replace({"background": "opaque"}))[0]
    drawn = shipped.paint(request)[0]
    assert drawn.image.mode == "RGB"
    assert not any(UNUSED in note for note in (*opaque.recipe.notes, *drawn.recipe.notes))
    assert opaque.recipe.pixels == drawn.recipe.pixels
    assert shipped.paint(drawn.recipe.request)[0].recipe.pixels == drawn.recipe.pixels


def test_a_named_background_is_noted(shipped: Pipeline) -> None:
    request = Request(prompt="a red apple in the snow on a yellow background", seed=1, num_inference_steps=2)
    assert f"{UNUSED}: it names a background" in shipped.paint(request)[0].recipe.notes


def test_it_can_be_switched_off(shipped: Pipeline) -> None:
    def painted(prompt: str, prior: Prior) -> bytes:
        return shipped.paint(Request(prompt=prompt, seed=1, num_inference_steps=2, prior=prior))[0].image.tobytes()

    whole = painted("a dog on the beach", Prior(layout=False, plain=False))
    assert painted("a dog on the beach", Prior(scenery="ignore")) == whole
    assert painted("a dog on the beach", Prior(plain=False)) == whole
    assert painted("a dog on the beach", Prior()) != whole
