"""The rules and the colour names on pictures drawn by hand, and words."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from gouache.colours import SHADES, Picture, colour_name, main_colour, oklab_to_rgb, recoloured, rgb_to_oklab, visible
from gouache.data.drawing import lay, on_ground
from gouache.data.scene_rules import (
    check_background,
    check_colour,
    check_count,
    check_position,
    check_relation,
    foreground,
    part_sizes,
)
from gouache.data.wording import noun_of, plural_of, with_article
from gouache.errors import ShapeMismatch

RED, BLUE, GREEN = (215, 45, 45), (50, 90, 220), (60, 170, 75)


def blocks(*places: tuple[int, int, int, tuple[int, int, int]]) -> Picture:
    """A transparent 128 x 128 picture with squares: (left, top, side, colour)."""
    picture = np.zeros((128, 128, 4), np.uint8)
    for left, top, side, colour in places:
        picture[top : top + side, left : left + side] = (*colour, 255)
    return picture


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 165, 0), "orange"),
        ((255, 225, 0), "yellow"),
        ((0, 128, 0), "green"),
        ((0, 0, 255), "blue"),
        ((135, 206, 250), "blue"),
        ((128, 0, 128), "purple"),
        ((255, 192, 203), "pink"),
        ((139, 69, 19), "brown"),
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "gray"),
        ((0, 128, 128), "teal"),
        ((245, 222, 179), "beige"),
    ],
)
def test_css_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(rgb) == name


def test_oklab_agrees_with_published_pairs_and_inverts() -> None:
    """White, and sRGB red: L 0.62796, a 0.22486, b 0.12585 (CSS Color 4, sample conversions)."""
    lab = rgb_to_oklab(np.array([[255, 255, 255], [255, 0, 0]], np.uint8))
    assert np.allclose(lab, np.array([[1.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585]]), atol=2e-4)
    colours = np.random.default_rng(0).integers(0, 256, (5000, 3), dtype=np.uint8)
    assert np.abs(oklab_to_rgb(rgb_to_oklab(colours)).astype(int) - colours).max() <= 1


@pytest.mark.parametrize("target", list(SHADES))
def test_a_recoloured_square_is_measured_as_the_target(target: str) -> None:
    picture = blocks((30, 30, 60, RED))
    result = recoloured(picture, SHADES[target])
    assert main_colour(visible(result)).name == target
    assert np.array_equal(result[..., 3], picture[..., 3])


def test_recolouring_leaves_greys_and_far_hues() -> None:
    picture = blocks((10, 10, 80, RED), (100, 100, 20, (128, 128, 128)), (100, 10, 20, GREEN))
    result = recoloured(picture, SHADES["blue"])
    assert np.abs(result[110, 110].astype(int) - picture[110, 110]).max() <= 1
    assert np.abs(result[20, 110].astype(int) - picture[20, 110]).max() <= 1
    hue = colorsys.rgb_to_hsv(*(result[40, 40, :3] / 255))[0]
    assert 0.55 < hue < 0.7
    grey = blocks((30, 30, 60, (128, 128, 128)))
    assert np.array_equal(recoloured(grey, SHADES["red"]), grey)


def test_backgrounds_are_seen_around_the_object() -> None:
    picture = blocks((40, 40, 50, RED))
    assert check_background(picture, None)
    assert not check_background(picture, "blue")
    ground = on_ground(picture, BLUE)
    assert check_background(ground, "blue")
    assert not check_background(ground, None)
    assert not check_background(ground, "red")


def test_the_foreground_on_a_ground_is_the_object() -> None:
    picture = blocks((40, 40, 50, RED))
    assert np.array_equal(foreground(on_ground(picture, BLUE)), picture[..., 3] > 0)


def test_the_colour_is_the_objects_not_the_grounds() -> None:
    ground = on_ground(blocks((50, 50, 30, RED)), BLUE)
    assert check_colour(ground, "red")
    assert not check_colour(ground, "blue")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_counting_separate_squares(count: int) -> None:
    places = [(4, 4), (70, 4), (4, 70), (70, 70), (40, 38)][:count]
    picture = blocks(*((x, y, 24, GREEN) for x, y in places), (120, 120, 4, GREEN))  # and a crumb
    assert [n for n in range(8) if check_count(picture, n)] == [count]


def test_parts_follow_winding_shapes() -> None:
    mask = np.zeros((128, 128), bool)
    for row in range(0, 128, 16):  # one long snake
        mask[row : row + 8] = True
        mask[row : row + 24, slice(0, 8) if row % 32 else slice(120, 128)] = True
    assert len(part_sizes(mask)) == 1
    assert len(part_sizes(np.zeros((128, 128), bool))) == 0


def test_parts_agree_with_scipy() -> None:
    from scipy import ndimage

    generator = np.random.default_rng(1)
    for density in (0.2, 0.4, 0.6):
        mask = generator.random((64, 64)) < density
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        expected = sorted(np.bincount(labels.ravel())[1:].tolist())
        assert sorted(part_sizes(mask).tolist()) == expected
        assert len(expected) == count


def test_positions_and_relations() -> None:
    picture = blocks((4, 4, 30, RED))
    assert check_position(picture, "top left")
    assert not check_position(picture, "center")
    pair = blocks((4, 50, 40, RED), (80, 50, 40, BLUE))
    assert check_relation(pair, "left", "red", "blue")
    assert check_relation(pair, "right", "blue", "red")
    assert not check_relation(pair, "right", "red", "blue")
    assert not check_relation(pair, "above", "red", "blue")
    assert not check_relation(pair, "left", "red", "green")


def test_laying_over_follows_porter_duff() -> None:
    canvas = blocks((0, 0, 10, BLUE))
    sprite = np.full((10, 10, 4), (255, 0, 0, 128), np.uint8)
    lay(canvas, sprite, 5, 5)
    alpha = 128 / 255
    assert canvas[7, 7, 3] == 255
    assert abs(int(canvas[7, 7, 0]) - (255 * alpha + BLUE[0] * (1 - alpha))) <= 1
    assert canvas[12, 12].tolist() == [255, 0, 0, 128]


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="uint8"):
        foreground(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("label", "noun"),
    [
        ("red apple", "apple"),
        ("black cat", "cat"),
        ("orange", "orange"),
        ("teddy bear", "teddy bear"),
        ("flag: Chad", None),
        ("bell with slash", None),
        ("grapes", None),
        ("cooked rice", None),
        ("ONE", "one"),
    ],
)
def test_nouns_of_labels(label: str, noun: str | None) -> None:
    assert noun_of(label) == (noun if label != "orange" else None)


def test_plurals_and_articles() -> None:
    singular = ("cat", "box", "butterfly", "monkey", "mouse", "fish", "teddy bear", "bus", "tomato", "milk", "grapes")
    assert [plural_of(noun) for noun in singular] == [
        "cats",
        "boxes",
        "butterflies",
        "monkeys",
        "mice",
        "fish",
        "teddy bears",
        "buses",
        "tomatoes",
        None,
        None,
    ]
    assert [with_article(w) for w in ("owl", "cat", "unicorn", "orange cat")] == [
        "an owl",
        "a cat",
        "a unicorn",
        "an orange cat",
    ]
