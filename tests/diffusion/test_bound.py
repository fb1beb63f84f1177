"""The variational bound against a Gaussian case worked out by hand, and its parts against torch's distributions."""

from __future__ import annotations

import math
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from gouache.diffusion.bound import (
    bits_per_dimension,
    discretised_log_likelihood,
    hybrid_loss,
    prior_term,
    simple_loss,
    variational_bound,
    vlb_term,
)
from gouache.diffusion.chain import ForwardProcess, Gaussian, reverse_step
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.parameterization import Prediction
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName


def chain_of(num_timesteps: int = 12, name: str = "cosine") -> ForwardProcess:
    return ForwardProcess(make_noise_schedule(name, num_timesteps=num_timesteps))


def gauss_hermite(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights with sum(w f(z)) = E f(z), z ~ N(0, 1), exact for polynomials up to degree 2 number - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(number)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_on_standard_normal_data_every_term_is_the_one_worked_out_by_hand(name: str) -> None:
    """Data N(0, 1), x0_hat = sqrt(acp) x_t, Sigma = beta: the exact reverse. By hand, in nats:

    L_0 = log(2 pi e beta_0) / 2,  L_t = log((1 - acp_t) / (1 - acp_{t-1})) / 2,  L_T = -log(1 - acp_{T-1}) / 2,
    and the sum telescopes to the entropy log(2 pi e) / 2 whatever the schedule.
    """
    chain = chain_of(12, name)
    nodes, weights = gauss_hermite(4)  # the terms are quadratic
    pairs, weight = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction(chain.at(chain.alphas_cumprod.sqrt(), t, x_t) * x_t, torch.ones_like(x_t))

    bound = variational_bound(
        chain, pairs[:, :1], predict, repeat(pairs[:, 1:]), variance="learned", decoder="continuous"
    )
    expected = [math.log(2 * math.pi * math.e * float(chain.betas[0])) / 2]
    left = (1 - chain.alphas_cumprod).tolist()
    expected += [math.log(left[t] / left[t - 1]) / 2 for t in range(1, 12)]
    torch.testing.assert_close(
        weight @ bound.terms, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12
    )
    assert float(weight @ bound.prior) == pytest.approx(-math.log(left[-1]) / 2, rel=1e-9)
    assert float(weight @ bound.total) == pytest.approx(math.log(2 * math.pi * math.e) / 2, rel=1e-12)


def test_terms_equal_torchs_divergences(generator: torch.Generator) -> None:
    chain = chain_of(30)
    x0, x_t, guess, interpolation = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    prediction = Prediction(guess, interpolation)
    t = torch.tensor([1, 4, 9, 20, 29])
    posterior, model = chain.posterior(x0, x_t, t), reverse_step(chain, prediction, x_t, t, "learned")
    peers = [Normal(g.mean, g.variance.sqrt().expand_as(g.mean)) for g in (posterior, model)]
    expected = kl_divergence(peers[0], peers[1]).sum(1)
    torch.testing.assert_close(vlb_term(chain, x0, x_t, t, prediction, "learned"), expected)
    last = chain.marginal(x0, 29)
    prior = kl_divergence(Normal(last.mean, last.variance.sqrt().expand_as(x0)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_term(chain, x0), prior)


def test_a_batch_may_mix_the_decoder_with_other_terms() -> None:
    chain = chain_of()
    x0 = torch.tensor([[-1.0, 0.0 + 1 / 255], [1.0, 51 / 255]], dtype=torch.float64)
    t = torch.tensor([0, 5])
    both = vlb_term(chain, x0, x0 * 0.9, t, Prediction(x0 * 0.8), "fixed_large")
    for k in range(2):
        row = slice(k, k + 1)
        alone = vlb_term(chain, x0[row], x0[row] * 0.9, t[row], Prediction(x0[row] * 0.8), "fixed_large")
        torch.testing.assert_close(both[row], alone)


@pytest.mark.parametrize("mean", [-0.98, 0.013, 0.7, 3.0])
@pytest.mark.parametrize("std", [0.002, 0.05, 0.9])
def test_the_bins_of_the_decoder_share_out_all_mass(mean: float, std: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    decoder = Gaussian(torch.full_like(levels, mean), torch.full_like(levels, 2 * math.log(std)))
    log_mass = discretised_log_likelihood(levels, decoder)
    assert float(log_mass.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool(log_mass.isfinite().all()), "no level is impossible, however far away"


def test_the_decoder_is_right_far_out_where_differences_of_cdfs_vanish() -> None:
    """The mass of a narrow bin tends to density times width."""
    decoder = Gaussian(
        torch.tensor([-0.5], dtype=torch.float64), torch.tensor([2 * math.log(0.02)], dtype=torch.float64)
    )
    x0 = torch.tensor([0.5], dtype=torch.float64)  # 50 standard deviations away: exp(-1250) underflows
    # log of the integral over the bin by 20001 points, each density taken in logarithms.
    places = torch.linspace(-1 / 1000, 1 / 1000, 20_001, dtype=torch.float64) + x0
    integral = decoder.log_density(places).logsumexp(0) + math.log(2 / 1000 / 20_000)
    assert float(discretised_log_likelihood(x0, decoder, levels=1001)) == pytest.approx(float(integral), rel=1e-5)


def test_the_bound_is_reported_in_bits_per_dimension() -> None:
    chain = chain_of(4)
    x0 = torch.linspace(-1, 1, 256, dtype=torch.float64)[torch.tensor([[0, 100, 255]])]
    bound = variational_bound(chain, x0, lambda x_t, t: Prediction(x0), repeat(torch.zeros_like(x0)))  # noqa: ARG005
    torch.testing.assert_close(bound.bits_per_dimension, bound.total / (3 * math.log(2)))
    assert bound.terms.shape == (1, 4)


def test_a_uniform_picture_costs_eight_bits_per_dimension() -> None:
    # Density 1/2 on [-1, 1]: log 2 nats per dimension; 256 levels share it evenly.
    assert float(bits_per_dimension(torch.tensor(7 * math.log(2)), 7, bin_width=2 / 256)) == pytest.approx(8)
    assert float(bits_per_dimension(torch.tensor(7 * math.log(256)), 7)) == pytest.approx(8)


def test_the_simple_loss_is_the_mean_of_squares_per_picture() -> None:
    loss = simple_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert loss.tolist() == [2.5, 4.5]


def test_the_hybrid_loss_teaches_the_variance_only_through_the_bound(generator: torch.Generator) -> None:
    chain = chain_of(10)
    x0, x_t, guess, interpolation = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    guess.requires_grad_()
    interpolation.requires_grad_()
    t = torch.tensor([0, 3, 9])
    prediction = Prediction(guess, interpolation)
    simple = simple_loss(guess, x0)
    loss = hybrid_loss(chain, x0, x_t, t, prediction, simple)
    term = vlb_term(chain, x0, x_t, t, prediction, "learned", "continuous")
    torch.testing.assert_close(loss, simple + 0.001 * 10 * term / (2 * math.log(2)))
    of_loss = torch.autograd.grad(loss.sum(), (guess, interpolation))
    (of_simple,) = torch.autograd.grad(simple_loss(guess, x0).sum(), guess)
    torch.testing.assert_close(of_loss[0], of_simple)
    assert bool((of_loss[1] != 0).all())


def test_bad_input_is_refused() -> None:
    chain, x0 = chain_of(), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="one per term"):
        variational_bound(chain, x0, lambda x_t, t: Prediction(x_t), [x0] * 3)  # noqa: ARG005
    with pytest.raises(InvalidInput, match=r"\[-1, 1\]"):
        discretised_log_likelihood(x0 + 2, Gaussian(x0, x0))
    with pytest.raises(InvalidInput, match="levels"):
        discretised_log_likelihood(x0, Gaussian(x0, x0), levels=1)
    with pytest.raises(UnknownName, match="Did you mean 'discrete'"):
        vlb_term(chain, x0, x0, torch.tensor([3]), Prediction(x0), "fixed_small", "discreet")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="dimensions"):
        bits_per_dimension(torch.zeros(1), 0)
    with pytest.raises(ShapeMismatch):
        simple_loss(x0, x0[:, :1])
