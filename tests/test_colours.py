"""Turning a picture to a colour by its name; the names themselves are tested with the scenes made from them."""

from __future__ import annotations

import numpy as np
import pytest

from gouache.colours import NEUTRALS, SHADES, colour_name, main_colour, rgb_to_oklab, tinted, visible


def _of(*colours: tuple[int, int, int]) -> np.ndarray:
    """Stripes of colours beside a transparent one. [8,8n+8,4]"""
    stripes = [np.full((8, 8, 4), (*colour, 255), np.uint8) for colour in colours]
    return np.concatenate([*stripes, np.zeros((8, 8, 4), np.uint8)], axis=1)


@pytest.mark.parametrize("start", [(220, 60, 50), (70, 130, 215), (250, 210, 60), (128, 128, 128), (235, 235, 235)])
@pytest.mark.parametrize("name", SHADES)
def test_the_main_colour_has_the_name(name: str, start: tuple[int, int, int]) -> None:
    picture = _of(start)
    turned = tinted(picture, name)
    found = main_colour(visible(turned)).name
    assert found == name
    assert (turned[..., 3] == picture[..., 3]).all()
    assert (picture == _of(start)).all()


@pytest.mark.parametrize("name", NEUTRALS)
def test_a_thing_without_hue_keeps_its_shading(name: str) -> None:
    eye, dark, light = (15, 10, 10), (150, 70, 30), (230, 150, 90)
    turned = tinted(_of(eye, *[dark] * 4, *[light] * 8), name)
    assert main_colour(visible(turned)).name == name
    lab = [rgb_to_oklab(turned[:1, column, :3])[0] for column in (0, 8, 40)]
    assert max(float(np.hypot(one[1], one[2])) for one in lab) < 0.03
    assert lab[0][0] < lab[1][0] < lab[2][0]
    low, high = NEUTRALS[name]
    assert lab[1][0] == pytest.approx(low, abs=0.02)
    assert lab[2][0] == pytest.approx(high, abs=0.02)


def test_what_has_another_hue_stays() -> None:
    body, leaf, white = (220, 60, 50), (60, 170, 80), (245, 245, 245)
    picture = _of(body, body, leaf, white)
    turned = tinted(picture, "blue")
    assert colour_name(tuple(turned[0, 0, :3])) == "blue"
    np.testing.assert_allclose(turned[0, 20, :3], leaf, atol=2)
    np.testing.assert_allclose(turned[0, 28, :3], white, atol=2)


def test_a_grey_thing_keeps_its_shading_and_its_coloured_parts() -> None:
    dark, light, beak = (60, 60, 60), (150, 150, 150), (245, 140, 30)
    turned = tinted(_of(dark, light, beak), "purple")
    assert colour_name(tuple(turned[0, 8, :3])) == "purple"
    assert turned[0, 0, :3].sum() < turned[0, 8, :3].sum()
    np.testing.assert_allclose(turned[0, 16, :3], beak, atol=2)


def test_a_transparent_picture_stays() -> None:
    assert (tinted(np.zeros((4, 4, 4), np.uint8), "red") == 0).all()
