"""FreeU against diffusers' and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu

from gouache.nn.free_u import FreeU, free_u


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_version_is_diffusers(size: tuple[int, int], place: int) -> None:
    x, skip = drawn(2, 8, *size), drawn(2, 4, *size, seed=1)
    theirs = apply_freeu(place, x.clone(), skip.clone(), b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    ours = free_u(x, skip, FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=1), place, 4)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_the_second_version_weighs_each_place_by_the_mean_of_its_features() -> None:
    """numpy: 1 where the mean over channels is least, b where it is greatest, the first half of the channels alone."""
    x, skip = drawn(2, 6, 4, 4), drawn(2, 6, 4, 4)
    found, _ = free_u(x, skip, FreeU(b1=1.5), 0, 6)
    mean = x.numpy().mean(1)
    share = np.stack([(one - one.min()) / (one.max() - one.min()) for one in mean])[:, None]
    assert np.allclose(found[:, :3], x.numpy()[:, :3] * (1 + 0.5 * share), atol=1e-6)
    assert torch.equal(found[:, 3:], x[:, 3:])


def test_stages_by_width_are_those_of_the_authors() -> None:
    """SD 1.x: 1280 channels from below are the first stage, 640 the second, wherever they come."""
    settings = FreeU(1.1, 1.2, 0.3, 0.4, stages="widths")
    found = {(place, width): settings.factors(place, width, 320) for place in range(4) for width in (1280, 640, 320)}
    assert {key for key, value in found.items() if value == (1.1, 0.3)} == {(place, 1280) for place in range(4)}
    assert {key for key, value in found.items() if value == (1.2, 0.4)} == {(place, 640) for place in range(4)}
    by_place = [FreeU(1.1, 1.2, 0.3, 0.4).factors(place, 1280, 320) for place in range(4)]
    assert by_place == [(1.1, 0.3), (1.2, 0.4), None, None]


def test_factors_of_one_change_nothing_and_flat_or_tiny_maps_stay_finite() -> None:
    x, skip = drawn(1, 4, 8, 8), drawn(1, 4, 8, 8, seed=1)
    found = free_u(x, skip, FreeU(1, 1, 1, 1), 0, 4)
    assert torch.equal(found[0], x)
    assert torch.allclose(found[1], skip, atol=1e-6)
    for side in (1, 2):
        flat = torch.ones(1, 4, side, side)
        assert all(one.isfinite().all() for one in free_u(flat, flat, FreeU(), 0, 4))
    half = free_u(x.half(), skip.bfloat16(), FreeU(), 0, 4)
    assert (half[0].dtype, half[1].dtype) == (torch.float16, torch.bfloat16)
