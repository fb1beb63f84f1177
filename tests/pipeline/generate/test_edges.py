"""Canny's edges: OpenCV is the judge, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gouache.pipeline.inputs.edges import canny

cv2 = pytest.importorskip("cv2")


def picture(kind: str) -> Image.Image:
    generator = np.random.default_rng(3)
    y, x = np.mgrid[0:90, 0:120].astype(float)
    pixels: np.ndarray
    if kind == "noise":
        pixels = generator.integers(0, 256, (90, 120, 3))
    elif kind == "shapes":
        inside = ((x - 60) ** 2 + (y - 40) ** 2 < 900) | (np.abs(x - y) < 6)
        pixels = np.stack([inside * 200, inside * 90 + 40, 255 - inside * 130], -1)
    else:
        pixels = np.stack([128 + 100 * np.sin(x / 5 + y / 9), 2 * x, 128 + 60 * np.cos(y / 4)], -1)
        pixels = pixels + generator.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


@pytest.mark.parametrize("thresholds", [(100, 200), (30, 90), (0, 0), (150, 150), (400, 900)])
@pytest.mark.parametrize("kind", ["noise", "shapes", "waves"])
def test_the_same_pixels_as_opencv(kind: str, thresholds: tuple[int, int]) -> None:
    found = np.asarray(canny(picture(kind), *thresholds))
    wanted = cv2.Canny(np.asarray(picture(kind)), *thresholds)
    assert (found == wanted).all()
    if thresholds == (100, 200):
        assert 0 < (found == 255).mean() < 0.6


def test_a_blank_and_a_tiny_picture() -> None:
    assert not np.asarray(canny(Image.new("RGB", (16, 16), "red"), 100, 200)).any()
    assert canny(Image.new("RGB", (1, 1)), 100, 200).size == (1, 1)
