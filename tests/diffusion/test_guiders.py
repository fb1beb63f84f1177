"""Guiders against closed forms and independent arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

from gouache.diffusion.guidance import AdaptiveProjection, Guidance, classifier_free, guided_denoiser
from gouache.diffusion.guiders import (
    DynamicThresholding,
    adapted_scale,
    blurred_where_attended,
    perpendicular_negative,
    thresholded,
)
from gouache.errors import InvalidInput, ShapeMismatch


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COND, UNCOND = drawn(2, 4, 8, 8), drawn(2, 4, 8, 8, seed=1)


@pytest.mark.parametrize("centre", ["mean", "zero"])
@pytest.mark.parametrize("spread", ["max", "std"])
@pytest.mark.parametrize("by_channel", [True, False])
def test_at_the_mimicked_scale_thresholding_is_plain_guidance(centre: str, spread: str, by_channel: bool) -> None:
    settings = DynamicThresholding(5.0, centre=centre, spread=spread, by_channel=by_channel)  # type: ignore[arg-type]
    assert torch.allclose(thresholded(COND, UNCOND, 5.0, settings), classifier_free(COND, UNCOND, 5.0))


def test_each_channel_keeps_the_range_of_the_mimicked_scale_around_its_own_mean() -> None:
    strong, mimic = (classifier_free(COND, UNCOND, scale).flatten(2).numpy() for scale in (20.0, 4.0))
    found = thresholded(COND, UNCOND, 20.0, DynamicThresholding(4.0)).flatten(2).numpy()
    assert np.allclose(found.mean(2), strong.mean(2))
    ranges = [np.abs(x - x.mean(2, keepdims=True)).max(2) for x in (found, mimic)]
    assert np.allclose(*ranges)
    found = thresholded(COND, UNCOND, 20.0, DynamicThresholding(4.0, spread="std")).flatten(2).numpy()
    assert np.allclose(found.std(2, ddof=1), mimic.std(2, ddof=1))


def test_a_percentile_cuts_what_lies_beyond() -> None:
    """numpy's arithmetic of one channel: clamp at the larger of mimicked range and percentile, then shrink."""
    strong, mimic = (classifier_free(COND, UNCOND, scale)[1, 2].numpy() for scale in (20.0, 4.0))
    found = thresholded(COND, UNCOND, 20.0, DynamicThresholding(4.0, percentile=0.9))[1, 2].numpy()
    target = np.abs(mimic - mimic.mean()).max()
    limit = max(target, np.quantile(np.abs(strong - strong.mean()), 0.9))
    expected = np.clip(strong - strong.mean(), -limit, limit) / limit * target + strong.mean()
    assert (np.abs(strong - strong.mean()) > limit).sum() >= 5
    assert np.allclose(found, expected, atol=1e-6)


def test_phi_is_the_share_beside_plain_guidance_and_pictures_do_not_mix() -> None:
    half, whole = (thresholded(COND, UNCOND, 9.0, DynamicThresholding(3.0, phi=phi)) for phi in (0.5, 1.0))
    assert torch.allclose(half, (whole + classifier_free(COND, UNCOND, 9.0)) / 2)
    settings = DynamicThresholding(3.0, percentile=0.8, by_channel=False)
    assert torch.equal(thresholded(COND, UNCOND, 9.0, settings)[1:], thresholded(COND[1:], UNCOND[1:], 9.0, settings))


def test_a_flat_channel_has_no_range_and_stays_finite() -> None:
    flat = torch.full_like(COND, 2.0)
    for spread in ("max", "std"):
        found = thresholded(flat, torch.ones_like(COND), 4.0, DynamicThresholding(2.0, spread=spread))
        assert torch.equal(found, torch.full_like(COND, 5.0))


def test_perp_neg_by_hand() -> None:
    """In the plane: the prompt points along the first axis, the negative one along (1, 1); only (0, 1) goes."""
    empty = torch.tensor([[1.0, 1.0]])
    wanted, unwanted = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 3.0]])
    found = perpendicular_negative(empty + wanted, empty + unwanted, empty, 0.5)
    assert torch.equal(found, empty + torch.tensor([[2.0, -1.5]]))


def test_perp_neg_takes_nothing_along_the_prompt_and_keeps_pictures_apart() -> None:
    empty = drawn(2, 4, 8, 8, seed=2)
    found = perpendicular_negative(COND, UNCOND, empty, 3.0)
    along = ((found - COND) * (COND - empty)).sum((1, 2, 3))
    assert along.abs().max() < 1e-9
    assert torch.equal(perpendicular_negative(COND, UNCOND, empty, 0.0), COND)
    alone = perpendicular_negative(COND[1:], UNCOND[1:], empty[1:], 3.0)
    assert torch.equal(found[1:], alone)
    assert torch.allclose(perpendicular_negative(COND, COND, empty, 3.0), COND)
    assert torch.equal(perpendicular_negative(empty, UNCOND, empty, 1.0).isfinite().all(), torch.tensor(True))


def test_the_blur_is_scipys_where_attention_is_above_the_threshold() -> None:
    attended = torch.ones(2, 2, 2)
    attended[0, 0, 1] = 1.5
    found = blurred_where_attended(COND, attended, 1.5, 1.0)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    blurred = COND.numpy()
    for axis in (2, 3):
        blurred = convolve1d(blurred, kernel / kernel.sum(), axis=axis, mode="mirror")
    assert np.allclose(found[0, :, :4, 4:], blurred[0, :, :4, 4:], atol=1e-6)
    assert torch.equal(found[0, :, 4:], COND[0, :, 4:])
    assert torch.equal(found[1], COND[1])
    with pytest.raises(InvalidInput, match="sag"):
        blurred_where_attended(COND[..., :4, :], attended, 1.5, 1.0)


def test_a_scale_fades_to_zero_and_not_below() -> None:
    assert [adapted_scale(3.0, 0.01, elapsed) for elapsed in (0.0, 100.0, 300.0, 900.0)] == [3.0, 2.0, 0.0, 0.0]
    assert adapted_scale(3.0, 0.0, 900.0) == 3.0


def test_additions_come_on_top_before_rescaling_and_outside_the_interval_too() -> None:
    sigma = torch.tensor(2.0)
    more = torch.ones_like(COND)

    def denoise(guidance: Guidance, added: bool) -> Tensor:
        guided = guided_denoiser(
            lambda _x, _sigma: COND,
            lambda _x, _sigma: (COND, UNCOND),
            guidance,
            parameterization="x0",
            added=(lambda _x, _sigma: more) if added else (lambda _x, _sigma: None),
        )
        return guided(COND, sigma)

    assert torch.equal(denoise(Guidance(3.0), True), classifier_free(COND, UNCOND, 3.0) + 1)
    assert torch.equal(denoise(Guidance(3.0, sigma_high=1.0), True), COND + 1)
    assert torch.equal(denoise(Guidance(1.0), False), COND)
    deviations = denoise(Guidance(3.0, rescale=1.0), True).std((1, 2, 3))
    assert torch.allclose(deviations, COND.std((1, 2, 3)))


def test_shapes_and_settings_are_checked() -> None:
    with pytest.raises(ShapeMismatch, match="equal shapes"):
        thresholded(COND, UNCOND[:1], 3.0, DynamicThresholding())
    with pytest.raises(ShapeMismatch, match="equal shapes"):
        perpendicular_negative(COND, UNCOND, UNCOND[:1], 3.0)
    for name, value in (("mimic_scale", -1.0), ("percentile", 1.1), ("phi", math.nan)):
        with pytest.raises(InvalidInput, match=name):
            DynamicThresholding(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="one rule"):
        Guidance(projection=AdaptiveProjection(), thresholding=DynamicThresholding())
