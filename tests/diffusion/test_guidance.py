"""Guidance laws: what scale 1 and 0 mean, who is called, and each published rule against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gouache.diffusion.guidance import (
    AdaptiveProjection,
    Guidance,
    ProjectedGuidance,
    classifier_free,
    guided_denoiser,
    projected_guidance,
    rescaled,
)
from gouache.diffusion.noise_schedule import alpha_and_std
from gouache.diffusion.parameterization import PARAMETERIZATIONS, Parameterization, convert
from gouache.errors import InvalidInput, ShapeMismatch


def draw(seed: int = 0, number: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 2, 4, 3, 3, generator=generator, dtype=torch.float64)


class Counted:
    """Two denoisers that count their calls: the prompt's gives x / 2 + 1, the negative prompt's x / 4."""

    def __init__(self) -> None:
        self.alone = 0
        self.pairs = 0

    def conditional(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
        self.alone += 1
        return x / 2 + 1

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        self.pairs += 1
        return x / 2 + 1, x / 4


def at(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


@pytest.mark.parametrize(
    "guidance", [Guidance(1.0), Guidance(1.0, rescale=0.7), Guidance(1.0, projection=AdaptiveProjection())]
)
def test_at_one_it_is_the_conditional_prediction_bit_for_bit_in_one_call(guidance: Guidance) -> None:
    network, x = Counted(), draw(number=1)[0]
    guided = guided_denoiser(network.conditional, network.pair, guidance)(x, at(3.0))
    assert guided.equal(x / 2 + 1)
    assert (network.alone, network.pairs) == (1, 0)


def test_at_zero_it_is_the_unconditional_prediction_bit_for_bit() -> None:
    network, x = Counted(), draw(number=1)[0]
    guided = guided_denoiser(network.conditional, network.pair, Guidance(0.0))(x, at(3.0))
    assert guided.equal(x / 4)
    assert (network.alone, network.pairs) == (0, 1)


@settings(deadline=None, max_examples=60)
@given(st.floats(-3, 20), st.integers(0, 2**31))
def test_it_is_affine_in_the_scale_also_below_one(scale: float, seed: int) -> None:
    conditional, unconditional = draw(seed)
    guided = classifier_free(conditional, unconditional, scale)
    # Ho & Salimans 2022, equation 6, with w = scale - 1.
    paper = (1 + (scale - 1)) * conditional - (scale - 1) * unconditional
    torch.testing.assert_close(guided, paper, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.floats(-3, 20), st.sampled_from(PARAMETERIZATIONS), st.integers(0, 2**31))
def test_guiding_the_denoised_or_the_networks_own_prediction_is_the_same(
    scale: float, kind: Parameterization, seed: int
) -> None:
    conditional, unconditional, x_t = draw(seed, 3)
    alpha, std = alpha_and_std(at(1.3), "vp")
    there = [convert(denoised, x_t, alpha, std, "x0", kind) for denoised in (conditional, unconditional)]
    guided = convert(classifier_free(there[0], there[1], scale), x_t, alpha, std, kind, "x0")
    torch.testing.assert_close(guided, classifier_free(conditional, unconditional, scale), rtol=1e-8, atol=1e-8)


def test_the_interval_guides_only_inside() -> None:
    network, x = Counted(), draw(number=1)[0]
    denoise = guided_denoiser(network.conditional, network.pair, Guidance(3.0, sigma_low=0.5, sigma_high=4.0))
    strong = x / 4 + 3 * (x / 2 + 1 - x / 4)
    for sigma, guided in [(0.1, False), (0.5, False), (0.51, True), (4.0, True), (4.01, False)]:
        torch.testing.assert_close(denoise(x, at(sigma)), strong if guided else x / 2 + 1)
    assert (network.alone, network.pairs) == (3, 2)


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescale_equals_that_of_diffusers(phi: float) -> None:
    conditional, unconditional = draw(5)
    guided = classifier_free(conditional, unconditional, 7.5)
    expected = rescale_noise_cfg(guided, conditional, guidance_rescale=phi)
    torch.testing.assert_close(rescaled(guided, conditional, phi), expected)
    if phi == 1:
        torch.testing.assert_close(rescaled(guided, conditional, phi).std((1, 2, 3)), conditional.std((1, 2, 3)))


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_guided_denoiser_rescales_in_the_networks_space(kind: Parameterization) -> None:
    network, x = Counted(), draw(number=1)[0]
    denoise = guided_denoiser(network.conditional, network.pair, Guidance(5.0, rescale=0.7), parameterization=kind)
    alpha, std = alpha_and_std(at(2.0), "vp")
    there = [convert(denoised, alpha * x, alpha, std, "x0", kind) for denoised in (x / 2 + 1, x / 4)]
    guided = rescale_noise_cfg(there[1] + 5 * (there[0] - there[1]), there[0], guidance_rescale=0.7)
    torch.testing.assert_close(denoise(x, at(2.0)), convert(guided, alpha * x, alpha, std, kind, "x0"))


def test_a_constant_picture_passes_rescale_unharmed() -> None:
    flat = torch.full((1, 4, 2, 2), 0.25)
    assert rescaled(flat, flat, 1.0).equal(flat)


@pytest.mark.parametrize("momentum", [0.0, -0.5])
@pytest.mark.parametrize("norm_threshold", [0.0, 3.0])
def test_adaptive_projection_equals_that_of_diffusers_over_several_steps(
    momentum: float, norm_threshold: float
) -> None:
    ours = ProjectedGuidance(AdaptiveProjection(eta=0.2, norm_threshold=norm_threshold, momentum=momentum))
    buffer = MomentumBuffer(momentum)
    for step in range(4):
        conditional, unconditional = draw(step)
        # Their original formulation adds w times the update, so w = scale - 1, as the paper writes.
        theirs = normalized_guidance(
            conditional, unconditional, 5.0, buffer, 0.2, norm_threshold, use_original_formulation=True
        )
        torch.testing.assert_close(ours(conditional, unconditional, 6.0), theirs, rtol=1e-6, atol=1e-6)


def test_adaptive_projection_that_keeps_everything_is_plain_guidance() -> None:
    conditional, unconditional = draw(1)
    whole = projected_guidance(conditional, conditional - unconditional, 4.0, eta=1.0)
    torch.testing.assert_close(whole, classifier_free(conditional, unconditional, 4.0))


def test_without_the_parallel_part_the_update_is_orthogonal() -> None:
    conditional, unconditional = draw(2)
    update = projected_guidance(conditional, conditional - unconditional, 4.0) - conditional
    inner = (update * conditional).flatten(1).sum(1)
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-12)


def test_momentum_belongs_to_one_generation() -> None:
    network, x = Counted(), draw(number=1)[0]
    guidance = Guidance(4.0, projection=AdaptiveProjection(momentum=-0.5))
    first = guided_denoiser(network.conditional, network.pair, guidance)
    opening = first(x, at(3.0))
    assert not first(x, at(3.0)).equal(opening)
    assert guided_denoiser(network.conditional, network.pair, guidance)(x, at(3.0)).equal(opening)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_settings_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InvalidInput, match="guidance_scale"):
        Guidance(bad)
    with pytest.raises(InvalidInput, match="guidance_scale"):
        classifier_free(draw()[0], draw()[1], bad)
    with pytest.raises(InvalidInput, match="momentum"):
        AdaptiveProjection(momentum=bad)
    with pytest.raises(InvalidInput, match="guidance_rescale"):
        Guidance(2.0, rescale=bad)


def test_settings_out_of_range_and_unequal_shapes_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\[0, 1\]"):
        Guidance(2.0, rescale=1.2)
    with pytest.raises(InvalidInput, match="sigma_low <= sigma_high"):
        Guidance(2.0, sigma_low=3.0, sigma_high=1.0)
    with pytest.raises(InvalidInput, match="norm_threshold"):
        AdaptiveProjection(norm_threshold=-1.0)
    with pytest.raises(ShapeMismatch):
        classifier_free(draw()[0], draw()[1][:1], 2.0)
