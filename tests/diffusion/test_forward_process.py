"""The forward chain: step by step it is the closed form, and its posterior is Bayes' rule."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from gouache.diffusion.chain import ForwardProcess, Gaussian
from gouache.diffusion.noise_schedule import DiscreteVP, make_noise_schedule
from gouache.errors import InvalidInput, ShapeMismatch

NAMES = ("linear", "scaled_linear", "cosine", "sigmoid")
X0 = torch.tensor([[0.7, -1.2, 0.1]], dtype=torch.float64)


def process(name: str = "scaled_linear", num_timesteps: int = 50) -> ForwardProcess:
    return ForwardProcess(make_noise_schedule(name, num_timesteps=num_timesteps))


@pytest.mark.parametrize("name", NAMES)
def test_the_chain_composed_step_by_step_is_the_closed_form(name: str) -> None:
    """Exactly, without sampling: each step is affine, so mean and variance are carried by it as numbers."""
    chain = process(name)
    zero, one = torch.zeros_like(X0), torch.ones_like(X0)
    mean, variance = X0, torch.zeros_like(X0)
    for t in range(chain.num_timesteps):
        scale = chain.step(one, t, zero)
        noise_std = chain.step(zero, t, one)
        mean, variance = chain.step(mean, t, zero), scale**2 * variance + noise_std**2
        closed = chain.marginal(X0, t)
        torch.testing.assert_close(mean, closed.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(variance, closed.variance.expand_as(variance), rtol=1e-12, atol=1e-14)


def test_sampled_chains_have_the_closed_forms_mean_and_variance(generator: torch.Generator) -> None:
    # n = 100000: standard errors at most 0.0032 and 0.0045; bounds at 6 of them, false alarm < 1e-7.
    chain, number = process("linear", 20), 100_000
    x = X0.expand(number, 3)
    for t in range(12):
        x = chain.step(x, t, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    closed = chain.marginal(X0, 11)
    torch.testing.assert_close(x.mean(0, keepdim=True), closed.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.var(0), closed.variance.expand(1, 3)[0], rtol=0.03, atol=0)


def test_diffuse_equals_diffusers_add_noise(generator: torch.Generator) -> None:
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 400, 999])
    chain = ForwardProcess(make_noise_schedule("scaled_linear"))
    peer = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    peer.alphas_cumprod = (
        chain.alphas_cumprod
    )  # the same table in fp64; its own is fp32 (compared in the schedule's test)
    torch.testing.assert_close(chain.diffuse(x0, t, noise), peer.add_noise(x0, noise, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 7, 30, 48])
def test_the_posterior_is_bayes_rule(name: str, t: int) -> None:
    """log q(x_t | x_{t-1}) + log q(x_{t-1} | x0) - log q(x_t | x0) at several places, nothing completed to a square."""
    chain = process(name)
    x_t = torch.tensor([[0.4, -0.9, 1.3]], dtype=torch.float64)
    for shift in (-0.8, 0.0, 0.5):
        previous = X0 * 0.5 + shift
        step = Gaussian((1 - chain.betas[t]).sqrt() * previous, chain.betas[t].log())
        bayes = (
            step.log_density(x_t)
            + chain.marginal(X0, t - 1).log_density(previous)
            - chain.marginal(X0, t).log_density(x_t)
        )
        torch.testing.assert_close(chain.posterior(X0, x_t, t).log_density(previous), bayes, rtol=1e-7, atol=1e-8)


def test_at_the_first_step_the_posterior_is_the_data() -> None:
    chain = process()
    torch.testing.assert_close(chain.posterior(X0, X0 + 3, 0).mean, X0)
    assert float(chain.posterior_variance[0]) == 0
    assert float(chain.posterior_log_variance[0]) == pytest.approx(math.log(float(chain.posterior_variance[1])))


def test_a_respaced_chain_passes_through_the_chosen_levels() -> None:
    chain = process("linear", 100)
    chosen = torch.tensor([0, 9, 33, 99])
    short = chain.respaced(chosen)
    torch.testing.assert_close(short.alphas_cumprod, chain.alphas_cumprod[chosen])
    torch.testing.assert_close(torch.cumprod(1 - short.betas, 0), chain.alphas_cumprod[chosen])


def test_gaussians_agree_with_torchs_own() -> None:
    from torch.distributions import Normal, kl_divergence

    first = Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([0.2, -0.7]))
    second = Gaussian(torch.tensor([0.1, 0.5]), torch.tensor([-0.4, 0.9]))
    peers = [Normal(g.mean, g.variance.sqrt()) for g in (first, second)]
    torch.testing.assert_close(first.kl(second), kl_divergence(peers[0], peers[1]))
    x = torch.tensor([0.0, 2.0])
    torch.testing.assert_close(first.log_density(x), peers[0].log_prob(x))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(first.sample(x), first.mean + x * peers[0].stddev)


def test_pictures_at_different_times_are_treated_each_at_its_own() -> None:
    chain = process()
    x0 = X0.expand(2, 3)
    both = chain.diffuse(x0, torch.tensor([3, 40]), torch.ones_like(x0))
    for k, t in enumerate((3, 40)):
        assert both[k].equal(chain.diffuse(X0, t, torch.ones_like(X0))[0])


@pytest.mark.parametrize("t", [-1, 50, 3.0, torch.tensor([1, 50]), torch.tensor([0.5])])
def test_times_that_are_no_steps_are_refused(t: int | Tensor) -> None:
    with pytest.raises(InvalidInput, match="t:"):
        process().diffuse(X0, t, X0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeMismatch):
        process().diffuse(X0, 3, X0[:, :2])
    with pytest.raises(ShapeMismatch):
        process().posterior(X0.expand(3, 3), X0.expand(3, 3), torch.tensor([1, 2]))
    with pytest.raises(InvalidInput, match="strictly ascending"):
        process().respaced(torch.tensor([5, 3]))
    with pytest.raises(InvalidInput, match="vp path"):
        ForwardProcess(make_noise_schedule("flow"))
    assert ForwardProcess(DiscreteVP(torch.tensor([0.9, 0.1]))).num_timesteps == 2
