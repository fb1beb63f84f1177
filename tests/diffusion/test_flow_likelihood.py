"""The probability-flow likelihood: exact on mixtures, unbiased with Hutchinson, and equal to the variational path."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from gouache.diffusion.bound import bits_per_dimension, variational_bound
from gouache.diffusion.chain import ForwardProcess
from gouache.diffusion.flow_likelihood import Solver, exact_trace, flow_log_likelihood, hutchinson_trace
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.parameterization import Prediction
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture, OneGaussian


def test_it_is_the_mixtures_own_density(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x = mixture.sample(64, generator)
    told = flow_log_likelihood(x, mixture.denoise, sigma_min=0.01, sigma_max=2000.0, num_steps=90)
    # What is left is the prior's O(mean / sigma_max) and the integrator's O(h^4).
    torch.testing.assert_close(told.log_likelihood, mixture.log_density(x, 0.01), rtol=0, atol=5e-4)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_the_integrators_have_their_order(
    solver: Solver, order: int, gaussian: OneGaussian, generator: torch.Generator
) -> None:
    x = gaussian.sample(16, generator)

    def error(num_steps: int) -> float:
        told = flow_log_likelihood(
            x, gaussian.denoise, sigma_min=0.1, sigma_max=50.0, num_steps=num_steps, solver=solver
        )
        return float((told.latents - gaussian.flow(x, 0.1, 50.0)).abs().max())

    slope = np.log2(error(30) / error(60))
    assert slope == pytest.approx(order, abs=0.35)


def test_hutchinsons_estimate_is_exact_on_average(picture_mixture: GaussianMixture, generator: torch.Generator) -> None:
    """Over the columns of a Hadamard matrix the mean is the trace itself; over random signs, within its error."""
    x = picture_mixture.sample(3, generator, 0.5).requires_grad_()
    denoised = picture_mixture.denoise(x, 0.5)
    trace = exact_trace(denoised, x)
    # Columns of +-1 whose sum of v v^T / 16 is the identity.
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(4):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    probes = hadamard[:, None].expand(16, 3, 16).reshape(16, *x.shape)
    torch.testing.assert_close(hutchinson_trace(denoised, x, probes), trace)
    # Six standard errors over 100 probes.
    signs = torch.randint(0, 2, (100, *x.shape), generator=generator, dtype=torch.float64) * 2 - 1
    estimates = torch.stack([hutchinson_trace(denoised, x, probe[None]) for probe in signs])
    bound = 6 * estimates.std(0) / 10
    assert bool(((estimates.mean(0) - trace).abs() < bound + 1e-12).all())


def variational_nats(mixture: GaussianMixture, x: Tensor, num_timesteps: int) -> Tensor:
    """L_vlb of each point [B] with the exact posterior mean and variance, the noise by Gauss-Hermite nodes."""
    chain = ForwardProcess(make_noise_schedule("cosine", num_timesteps=num_timesteps))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(12))
    weight = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    noise = torch.cartesian_prod(nodes, nodes).repeat_interleave(len(x), 0)  # [Q*B, 2]

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        step = int(t[0])
        acp = chain.alphas_cumprod[step]
        sigma, place = ((1 - acp) / acp).sqrt(), x_t / acp.sqrt()
        logs, offsets, variances = mixture._parts(place, sigma)
        shares = logs.softmax(1)[..., None]
        means = mixture.means + mixture.stds**2 / variances * offsets
        mean = (shares * means).sum(1)
        spread = (shares * (mixture.stds**2 * sigma**2 / variances + means**2)).sum(1) - mean**2  # Var[x0 | x_t]
        least, most = chain.posterior_log_variance[step], chain.betas[step].log()
        previous = chain.alphas_cumprod[step - 1] if step else acp.new_ones(())
        # Law of total variance: the reverse step's own variance is beta~ plus that of the mean's x0 part.
        wanted = chain.posterior_variance[step] + previous * chain.betas[step] ** 2 / (1 - acp) ** 2 * spread
        return Prediction(mean, 2 * (wanted.log() - least) / (most - least) - 1)

    data = x.repeat(len(weight), 1)
    bound = variational_bound(chain, data, predict, repeat(noise), variance="learned", decoder="continuous")
    return (bound.total.reshape(len(weight), len(x)) * weight[:, None]).sum(0)


def test_both_paths_agree_with_each_other_and_with_the_truth(
    mixture: GaussianMixture, generator: torch.Generator
) -> None:
    """Within 1 % in bits per dimension of 8-bit-sized bins; the bound closes in on the truth."""
    x = mixture.sample(24, generator)
    truth = -mixture.log_density(x)
    by_flow = -flow_log_likelihood(x, mixture.denoise, sigma_max=500.0, num_steps=60).log_likelihood
    coarse, fine = variational_nats(mixture, x, 60), variational_nats(mixture, x, 240)
    assert float(fine.mean()) == pytest.approx(float(by_flow.mean()), rel=0.01)
    assert float(by_flow.mean()) == pytest.approx(float(truth.mean()), rel=0.01)
    gaps = [float((bound - truth).mean()) for bound in (coarse, fine)]
    assert gaps[0] > gaps[1] > 0, "it is an upper bound"
    assert gaps[0] / gaps[1] > 3, "four times the steps close at least three quarters of the gap"
    bits = [bits_per_dimension(nats, 2, bin_width=2 / 256) for nats in (fine, by_flow)]
    torch.testing.assert_close(bits[0], bits[1], rtol=0.01, atol=0)


def test_bad_input_is_refused(mixture: GaussianMixture) -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="num_steps"):
        flow_log_likelihood(x, mixture.denoise, num_steps=0)
    with pytest.raises(InvalidInput, match="sigma_min < sigma_max"):
        flow_log_likelihood(x, mixture.denoise, sigma_min=1.0, sigma_max=0.5)
    with pytest.raises(UnknownName, match="Did you mean 'rk4'"):
        flow_log_likelihood(x, mixture.denoise, solver="rk45")  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch, match="probes"):
        flow_log_likelihood(x, mixture.denoise, probes=torch.ones(1, 3, 2, dtype=torch.float64))
