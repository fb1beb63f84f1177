"""The reverse step against diffusers' DDPM for every kind of variance, and against the exact reverse of a Gaussian."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from diffusers import DDPMScheduler

from gouache.diffusion.chain import (
    VARIANCES,
    ForwardProcess,
    Variance,
    ancestral_step,
    log_variance_of,
    reverse_step,
)
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.parameterization import Prediction
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName

T = 1000


def peer_of(kind: Literal["fixed_small", "fixed_large", "learned_range"], chain: ForwardProcess) -> DDPMScheduler:
    """diffusers' scheduler over the same table in fp64; its own is fp32, which costs 1e-5 at the least noise."""
    peer = DDPMScheduler(
        num_train_timesteps=chain.num_timesteps, variance_type=kind, clip_sample=False, prediction_type="sample"
    )
    peer.betas, peer.alphas, peer.alphas_cumprod = chain.betas, 1 - chain.betas, chain.alphas_cumprod
    peer.one = torch.ones((), dtype=torch.float64)
    return peer


def draw(number: int) -> torch.Tensor:
    return torch.randn(number, 2, 3, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "cosine"])
@pytest.mark.parametrize("t", [1, 10, 500, 999])
@pytest.mark.parametrize(
    ("variance", "peer_kind"),
    [("fixed_small", "fixed_small"), ("fixed_large", "fixed_large"), ("learned", "learned_range")],
)
def test_a_step_equals_that_of_diffusers(
    variance: Variance, peer_kind: Literal["fixed_small", "fixed_large", "learned_range"], t: int, name: str
) -> None:
    x0, x_t, noise = draw(3)
    interpolation = draw(4)[3].clamp(-1, 1) if variance == "learned" else None
    chain = ForwardProcess(make_noise_schedule(name, num_timesteps=T))
    peer = peer_of(peer_kind, chain)
    output = x0 if interpolation is None else torch.cat([x0, interpolation], 1)
    # Both sides draw the same noise: diffusers asks the generator itself.
    generator = torch.Generator().manual_seed(77)
    shared = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    theirs = peer.step(output, t, x_t, generator=generator).prev_sample
    ours = ancestral_step(chain, Prediction(x0, interpolation), x_t, t, variance, shared)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not ours.equal(ancestral_step(chain, Prediction(x0, interpolation), x_t, t, variance, noise))


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_last_step_adds_no_noise(variance: Variance) -> None:
    x0, x_t, noise, interpolation = draw(4)
    chain = ForwardProcess(make_noise_schedule("linear"))
    out = ancestral_step(chain, Prediction(x0, interpolation), x_t, 0, variance, noise)
    torch.testing.assert_close(out, x0)


def test_learned_variance_reaches_from_one_bound_to_the_other() -> None:
    x_t = draw(1)[0]
    chain = ForwardProcess(make_noise_schedule("cosine"))
    for t in (1, 300, 999):
        least, middle, most = (
            log_variance_of(chain, t, x_t, "learned", torch.full_like(x_t, v)) for v in (-1.0, 0.0, 1.0)
        )
        torch.testing.assert_close(least, log_variance_of(chain, t, x_t, "fixed_small").expand_as(least))
        torch.testing.assert_close(most, log_variance_of(chain, t, x_t, "fixed_large").expand_as(most))
        torch.testing.assert_close(middle, (least + most) / 2)


def test_on_standard_normal_data_the_reverse_chain_keeps_the_distribution_exactly() -> None:
    """Data N(0, 1): x0_hat = sqrt(acp) x_t and fixed_large make p(x_{t-1} | x_t) exact, so every marginal is N(0, 1).

    Carried as numbers: the step is affine in x_t, so variance' = slope^2 variance + Sigma must stay 1.
    """
    chain = ForwardProcess(make_noise_schedule("cosine", num_timesteps=40))
    one = torch.ones(1, 1, dtype=torch.float64)
    variance = 1.0
    for t in range(39, 0, -1):
        step = reverse_step(chain, Prediction(chain.alphas_cumprod[t].sqrt() * one), one, t, "fixed_large")
        variance = float(step.mean) ** 2 * variance + float(step.variance)
        assert variance == pytest.approx(1, abs=1e-12)


def test_bad_input_is_refused() -> None:
    x0, x_t, other = draw(3)
    chain = ForwardProcess(make_noise_schedule("linear"))
    with pytest.raises(InvalidInput, match="interpolation"):
        reverse_step(chain, Prediction(x0), x_t, 5, "learned")
    with pytest.raises(ShapeMismatch, match="interpolation"):
        reverse_step(chain, Prediction(x0, other[:1]), x_t, 5, "learned")
    with pytest.raises(UnknownName, match="Did you mean 'fixed_small'"):
        reverse_step(chain, Prediction(x0), x_t, 5, "fixedsmall")  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch):
        reverse_step(chain, Prediction(x0[:1]), x_t, 5, "fixed_small")
