"""The continuous-time bound against closed forms: for the exact denoiser of a Gaussian it is tight."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gouache.diffusion.bound import continuous_bound, stratified_sigmas
from gouache.diffusion.samplers.step import Denoise
from gouache.errors import InvalidInput, ShapeMismatch

LOW, HIGH = 0.01, 100.0


def gaussian_denoiser(deviation: float) -> Denoise:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x * deviation**2 / (deviation**2 + sigma**2)

    return denoise


def estimate(x0: Tensor, model: float, levels: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.rand(levels, generator=generator, dtype=torch.float64).tolist()
    noises = torch.randn(levels + 1, *x0.shape, generator=generator, dtype=torch.float64)
    sigmas = stratified_sigmas(LOW, HIGH, offsets)
    bound = continuous_bound(gaussian_denoiser(model), x0, sigmas, noises, sigma_min=LOW, sigma_max=HIGH)
    return bound.total


def test_the_bound_of_gaussian_data_under_its_own_denoiser_is_the_entropy() -> None:
    generator = torch.Generator().manual_seed(1)
    x0 = 0.8 * torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    bits = estimate(x0, 0.8)
    entropy = 1.5 * math.log(2 * math.pi * math.e * 0.64)
    # What is lost at the two ends is below (sigma_min / s)^2 + (s / sigma_max)^2 a dimension.
    assert bits.mean().item() == pytest.approx(entropy, abs=4 * float(bits.std()) / 2000**0.5 + 1e-3)


def test_the_bound_of_another_model_is_higher_by_the_divergence() -> None:
    """E_p[-log q] - H(p) = KL(N(0, s^2) || N(0, r^2)) = d (log(r/s) + s^2 / 2 r^2 - 1/2)."""
    generator = torch.Generator().manual_seed(2)
    x0 = 0.8 * torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    difference = estimate(x0, 1.3) - estimate(x0, 0.8)  # the same levels and noises
    expected = 3 * (math.log(1.3 / 0.8) + 0.64 / (2 * 1.69) - 0.5)
    assert difference.mean().item() == pytest.approx(expected, abs=4 * float(difference.std()) / 2000**0.5 + 2e-3)


def test_one_level_a_stratum_with_any_offset() -> None:
    sigmas = stratified_sigmas(LOW, HIGH, [0.0, 0.5, 0.999])
    assert sigmas[0].item() == pytest.approx(LOW)
    edges = [LOW * (HIGH / LOW) ** (k / 3) for k in range(4)]
    assert all(edges[k] * (1 - 1e-12) <= float(s) < edges[k + 1] for k, s in enumerate(sigmas))


def test_few_levels_estimate_the_same_on_average() -> None:
    x0 = torch.full((1, 2), 0.7, dtype=torch.float64)
    few = torch.stack([estimate(x0, 1.0, levels=8, seed=s)[0] for s in range(600)])
    many = torch.stack([estimate(x0, 1.0, levels=400, seed=s)[0] for s in range(60)])
    error = float(few.std()) / 600**0.5 + float(many.std()) / 60**0.5
    assert few.mean().item() == pytest.approx(many.mean().item(), abs=4 * error)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="sigma_min"):
        stratified_sigmas(1.0, 1.0, [0.5])
    with pytest.raises(InvalidInput, match="offsets"):
        stratified_sigmas(LOW, HIGH, [1.0])
    x0, one = torch.zeros(1, 2), torch.tensor([1.0])
    denoise = gaussian_denoiser(1.0)
    with pytest.raises(ShapeMismatch, match="noises"):
        continuous_bound(denoise, x0, one, torch.zeros(1, 1, 2), sigma_min=LOW, sigma_max=HIGH)
