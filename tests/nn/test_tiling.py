"""Tiles cover every pixel once in weight, and equal the whole where they see enough."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.models.vae import Tiles, in_tiles


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 24),
    overlap=st.integers(0, 12),
    scale=st.sampled_from([Fraction(1), Fraction(2), Fraction(8)]),
)
def test_the_weights_add_up_to_one_everywhere(
    height: int, width: int, size: int, overlap: int, scale: Fraction
) -> None:
    tiles = Tiles(size, min(overlap, size // 2))
    x = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    expected = x.repeat_interleave(int(scale), 2).repeat_interleave(int(scale), 3)
    out = in_tiles(lambda tile: F.interpolate(tile, scale_factor=int(scale)), x, tiles, scale)
    torch.testing.assert_close(out, expected)


@given(blocks=st.tuples(st.integers(1, 12), st.integers(1, 12)), size=st.integers(2, 6), overlap=st.integers(0, 3))
def test_encoders_tiles_lie_on_the_grid(blocks: tuple[int, int], size: int, overlap: int) -> None:
    x = torch.randn(1, 1, 8 * blocks[0], 8 * blocks[1], dtype=torch.float64)
    tiles = Tiles(8 * size, 8 * min(overlap, size // 2), unit=8)
    out = in_tiles(lambda tile: F.avg_pool2d(tile, 8), x, tiles, Fraction(1, 8))
    torch.testing.assert_close(out, F.avg_pool2d(x, 8))


def test_a_quarter_of_the_overlap_hides_the_border() -> None:
    kernel = torch.randn(1, 1, 5, 5, dtype=torch.float64)

    def blur(tile: Tensor) -> Tensor:
        return F.conv2d(tile, kernel, padding=2)

    x = torch.randn(1, 1, 50, 41, dtype=torch.float64)
    torch.testing.assert_close(in_tiles(blur, x, Tiles(16, 8), Fraction(1)), blur(x))
    assert not torch.allclose(in_tiles(blur, x, Tiles(16, 0), Fraction(1)), blur(x))


@pytest.mark.parametrize(("size", "overlap", "unit"), [(0, 0, 1), (8, 5, 1), (8, -1, 1), (12, 4, 8), (16, 4, 8)])
def test_tiles_that_can_not_be_are_refused(size: int, overlap: int, unit: int) -> None:
    with pytest.raises(InvalidInput, match="tiles"):
        Tiles(size, overlap, unit)
