"""The oracle itself: density, score and denoiser of the Gaussian mixture agree with each other and with sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture, OneGaussian


@pytest.mark.parametrize("sigma", [0.05, 0.7, 9.0])
def test_the_score_is_the_gradient_of_the_density_and_tweedie_gives_the_denoiser(
    mixture: GaussianMixture, generator: torch.Generator, sigma: float
) -> None:
    x = mixture.sample(16, generator, sigma).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x, sigma), gradient, rtol=1e-9, atol=1e-9)
    # Tweedie: E[x0 | x] = x + sigma^2 * score (Efron 2011).
    torch.testing.assert_close(mixture.denoise(x, sigma), x + sigma**2 * gradient, rtol=1e-9, atol=1e-9)


def test_the_density_integrates_to_one(mixture: GaussianMixture) -> None:
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(mixture.log_density(grid).exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-9)


def test_samples_have_the_stated_mean_and_covariance(mixture: GaussianMixture, generator: torch.Generator) -> None:
    # Standard errors at n = 200000 are under 0.0017 for means and 0.0025 for covariances; 6 of them: alarm < 1e-8.
    x = mixture.sample(200_000, generator)
    torch.testing.assert_close(x.mean(0), mixture.mean, rtol=0, atol=0.011)
    torch.testing.assert_close(x.T.cov(), mixture.covariance, rtol=0, atol=0.015)


def test_one_gaussians_flow_solves_its_ode(gaussian: OneGaussian, generator: torch.Generator) -> None:
    x = gaussian.sample(5, generator, 2.0)
    step = 1e-5
    slope = (gaussian.flow(x, 2.0, 2.0 + step) - gaussian.flow(x, 2.0, 2.0 - step)) / (2 * step)
    torch.testing.assert_close(slope, (x - gaussian.denoise(x, 2.0)) / 2.0, rtol=1e-7, atol=1e-8)


def test_picture_shaped_mixtures_take_a_sigma_per_picture(
    picture_mixture: GaussianMixture, generator: torch.Generator
) -> None:
    x = picture_mixture.sample(3, generator, 1.0)
    sigmas = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    together = picture_mixture.denoise(x, sigmas)
    for i, sigma in enumerate(sigmas):
        torch.testing.assert_close(together[i : i + 1], picture_mixture.denoise(x[i : i + 1], sigma))
