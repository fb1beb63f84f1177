"""Sceneries as they are drawn: opaque, of the picture's seed, and light or dark as they should be."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from gouache.colours import colour_name, rgb_to_oklab
from gouache.scenery.kinds import Light, PlaceName, Scenery, Season
from gouache.scenery.shapes import Paper
from gouache.scenery.stage import drawn, settled, shaded

OUTDOORS = [place for place in get_args(PlaceName) if place not in ("space", "moon", "room")]


def lightness(picture: Image.Image) -> float:
    return float(rgb_to_oklab(np.asarray(picture)[..., :3].reshape(-1, 3))[:, 0].mean())


def shown(picture: Image.Image, x: int, y: int) -> str:
    """Name of the colour of a place and those around it."""
    part = np.asarray(picture)[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3, :3].reshape(-1, 3)
    red, green, blue = (int(value) for value in np.median(part, axis=0))
    return colour_name((red, green, blue))


@pytest.mark.parametrize("place", get_args(PlaceName))
def test_every_place_at_every_time_fills_the_picture_and_is_the_seeds_own(place: PlaceName) -> None:
    for light in get_args(Light):
        for season in get_args(Season):
            scenery = Scenery(place, light, season)
            first, other = drawn(scenery, 64, 1), drawn(scenery, 64, 2)
            assert (first.mode, first.size, first.getchannel("A").getextrema()) == ("RGBA", (64, 64), (255, 255))
            assert first.tobytes() == drawn(scenery, 64, 1).tobytes()
            assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("place", OUTDOORS)
def test_nights_are_darker_and_rain_is_greyer(place: PlaceName) -> None:
    day, night = drawn(Scenery(place), 64, 3), drawn(Scenery(place, "night"), 64, 3)
    assert lightness(night) < lightness(day) - 0.15
    if place != "underwater":
        wet = drawn(Scenery(place, rain=True), 64, 3)
        chroma = [
            np.hypot(*rgb_to_oklab(np.asarray(one)[:12, :, :3].reshape(-1, 3))[:, 1:].T).mean() for one in (day, wet)
        ]
        assert chroma[1] < chroma[0]


def test_the_ground_has_the_colour_that_it_is_named_for() -> None:
    assert shown(drawn(Scenery("meadow"), 128, 4), 64, 82) == "green"
    assert shown(drawn(Scenery(season="winter"), 128, 4), 64, 92) == "white"
    assert shown(drawn(Scenery("sea"), 128, 4), 64, 110) == "blue"
    assert shown(drawn(Scenery("sky"), 128, 4), 64, 4) == "blue"
    assert shown(drawn(Scenery("forest"), 128, 4), 64, 110) == "green"


def test_a_coverage_is_the_share_of_the_pixel() -> None:
    """A disc's area and a half plane's edge are those of the shapes, however coarse the square."""
    paper = Paper(np.zeros((64, 64, 3), np.float32))
    paper.disc(0.5, 0.5, 0.3, "white")
    assert paper.pixels[..., 0].mean() == pytest.approx(np.pi * 0.3**2, rel=0.01)
    paper = Paper(np.zeros((16, 16, 3), np.float32))
    paper.polygon([(-1, -1), (0.53, -1), (0.53, 2), (-1, 2)], "white")
    np.testing.assert_allclose(paper.pixels[..., 0].mean(1), 0.53, atol=1e-5)


@pytest.mark.parametrize("place", ["sea", "meadow", "land", "beach"])
def test_a_thing_throws_a_shadow_and_stands_behind_what_is_before_it(place: PlaceName) -> None:
    scenery = Scenery(place, season="winter" if place == "land" else "summer")
    box = (0.3, 0.3, 0.7, scenery.foot)
    ground = drawn(scenery, 128, 5)
    before = np.asarray(ground).astype(int)
    shaded(ground, scenery, box)
    shadow = np.asarray(ground).astype(int) - before
    foot = round(scenery.foot * 128)
    assert shadow[foot - 3 : foot + 1, 58:70, :3].mean() < -10
    assert (shadow[: foot - 16] == 0).all()
    thing = Image.new("RGBA", (51, 40), (255, 0, 255, 255))
    ground.alpha_composite(thing, (38, foot - 40))
    settled(ground, scenery, box)
    seen = np.asarray(ground)[foot - 40 : foot, 38:89, :3] == (255, 0, 255)
    assert seen[:30].all()
    assert seen[-1].all() == (place == "beach")


def test_what_floats_has_no_shadow() -> None:
    for scenery in (Scenery("sky"), Scenery("sea", aloft=True)):
        ground = drawn(scenery, 64, 6)
        before = ground.tobytes()
        shaded(ground, scenery, (0.3, 0.2, 0.7, 0.6))
        settled(ground, scenery, (0.3, 0.2, 0.7, 0.6))
        assert ground.tobytes() == before
