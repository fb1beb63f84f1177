"""Poses of variations: mirroring, turning against a closed form, what is never mirrored, and pictures that differ."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.poses import Pose, pose_of
from gouache.pipeline.request import Prior, Request


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return open_pipeline(None)[0]


def dot(x: float, y: float, side: int = 64) -> Image.Image:
    """A soft red dot on nothing, its centre at shares of the picture."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    alpha = 255 * np.exp(-((columns - x * side) ** 2 + (rows - y * side) ** 2) / 18)
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.rint(alpha)
    return Image.fromarray(pixels)


def centre(picture: Image.Image) -> tuple[float, float]:
    """Of its alpha, as shares."""
    alpha = np.asarray(picture)[..., 3].astype(float)
    rows, columns = np.mgrid[: alpha.shape[0], : alpha.shape[1]] + 0.5
    return float((columns * alpha).sum() / alpha.sum() / 64), float((rows * alpha).sum() / alpha.sum() / 64)


def test_mirroring_moves_pixels_and_changes_none() -> None:
    picture = dot(0.3, 0.4)
    assert np.array_equal(np.asarray(Pose(mirrored=True).of(picture)), np.asarray(picture)[:, ::-1])
    assert np.array_equal(np.asarray(Pose().of(picture)), np.asarray(picture))


@pytest.mark.parametrize(
    ("pose", "place"),
    [
        (Pose(turn=90), (0.5, 0.25)),  # from the right to the top: counter-clockwise
        (Pose(turn=-90), (0.5, 0.75)),
        (Pose(scale=0.5), (0.625, 0.5)),
        (Pose(right=0.1, down=-0.05), (0.85, 0.45)),
        (Pose(mirrored=True, scale=0.5), (0.375, 0.5)),
        (Pose(turn=30), (0.5 + 0.25 * 3**0.5 / 2, 0.5 - 0.125)),
    ],
)
def test_what_lies_right_of_the_middle_goes_where_the_pose_says(pose: Pose, place: tuple[float, float]) -> None:
    posed = pose.of(dot(0.75, 0.5))
    assert centre(posed) == pytest.approx(place, abs=0.01)
    seen = np.asarray(posed)[np.asarray(posed)[..., 3] > 100]
    assert (abs(seen[:, 0].astype(int) - 200) < 4).all()  # no dark fringe


def test_what_is_no_variation_stands_as_it_is_and_half_of_the_freest_are_mirrored() -> None:
    assert pose_of("a dog", "prior", 5, 0.0) is None
    found = [pose_of("a dog", "prior", subseed, 1.0) for subseed in range(64)]
    assert 20 < sum(one is not None and one.mirrored for one in found) < 44


@pytest.mark.parametrize(
    "words",
    [
        "flag: France",
        "the letter A",
        "a clock",
        "input numbers",
        "left arrow",
        "a world map",
        "dice",
        "红旗",
        "数字",
        "箭头",
    ],
)
def test_what_has_a_right_way_round_is_never_mirrored(words: str) -> None:
    for subseed in range(24):
        freely = pose_of(words, "prior", subseed, 1.0)
        assert freely is not None
        assert not freely.mirrored


def test_variations_go_further_the_freer_they_are() -> None:
    turns = [pose_of("a dog", "prior", 5, share) for share in (0.1, 0.4, 1.0)]
    angles = [abs(one.turn) for one in turns if one is not None]
    assert len(angles) == 3
    assert 0 < angles[0] < angles[1] < angles[2] <= 20
    assert all(0.75 <= one.scale <= 1 for one in turns if one is not None)


def test_variations_differ_and_without_poses_they_hardly_do(shipped: Pipeline) -> None:
    def painted(**changes: object) -> np.ndarray:
        asked = {"prompt": "a cat, noto style", "seed": 0, "background": "white", **changes}
        request = Request.from_dict(asked, where="test")
        return np.asarray(shipped.paint(request)[0].image.convert("RGB"), np.float64)

    def apart(first: np.ndarray, second: np.ndarray) -> float:
        return float(((first - second) ** 2).mean() ** 0.5)

    plain = painted()
    still = [painted(subseed=2, subseed_strength=share, prior={"pose": False}) for share in (0.1, 0.5)]
    varied = [painted(subseed=2, subseed_strength=share) for share in (0.1, 0.5)]
    assert np.array_equal(painted(prior={"pose": False}), plain)
    assert 5 < apart(plain, varied[0]) < apart(plain, varied[1])
    assert apart(plain, varied[1]) > 2 * apart(plain, still[1])


def test_a_mixed_draft_has_no_pose(shipped: Pipeline) -> None:
    mixed = Request(prompt="a cat", seed=1, subseed=2, subseed_strength=0.5, prior=Prior(recall=0.0))
    assert np.array_equal(
        np.asarray(shipped.paint(mixed)[0].image),
        np.asarray(shipped.paint(mixed.replace({"prior": {"recall": 0.0, "pose": False}}))[0].image),
    )
