"""Gradients of every loss against finite differences in fp64, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gouache.errors import ConfigError, InvalidInput
from gouache.training.losses import (
    PatchDiscriminator,
    adversarial_loss,
    contrastive_loss,
    edge_loss,
    psnr,
    reverse_gradient,
)
from gouache.training.stage import Stage


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_edge_loss_gradient() -> None:
    picture = random(2, 3, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: edge_loss(p, random(2, 3, 8, 8, seed=1)), (picture,))


def test_edge_loss_of_a_step_edge() -> None:
    picture = torch.zeros(1, 1, 8, 8)
    picture[..., 4:] = 1.0
    # One of seven horizontal differences is 1 in every row; at half the size one of three; at a quarter one of one.
    assert edge_loss(picture, torch.zeros_like(picture)).item() == pytest.approx((1 / 7 + 1 / 3 + 1) / 3)
    assert edge_loss(picture + 0.5, picture).item() == 0
    with pytest.raises(InvalidInput, match="scales"):
        edge_loss(picture, picture, scales=0)


def test_contrastive_loss_gradient_and_closed_form() -> None:
    text, image = (nn.functional.normalize(random(4, 5, seed=s), dim=1).requires_grad_() for s in (1, 2))
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrastive_loss, (text, image, scale))
    # Four equal rows cannot be told apart: the loss is log 4.
    same = torch.ones(4, 5, dtype=torch.float64) / 5**0.5
    assert contrastive_loss(same, same, scale).item() == pytest.approx(torch.tensor(4.0).log().item())


@pytest.mark.parametrize("loudness", [1e-3, 1.0, 1e3])
def test_adversarial_loss_turns_the_gradient_of_the_maker(loudness: float) -> None:
    """However loud the discriminator is, its gradient at the picture has a quarter of the reconstruction's length."""
    discriminator = PatchDiscriminator(2, 8).double()
    with torch.no_grad():
        for parameter in discriminator.layers[-1].parameters():
            parameter.mul_(loudness)
    target, picture = random(2, 2, 16, 16), random(2, 2, 16, 16, seed=1).requires_grad_()
    reconstruction = (picture - target).square().mean()
    torch.autograd.backward(adversarial_loss(discriminator, picture, target, 0.25, reconstruction))
    assert picture.grad is not None
    direct = picture.detach().clone().requires_grad_()
    torch.autograd.backward(torch.relu(1 + discriminator(direct)).mean())
    assert direct.grad is not None
    length = (2 * (picture - target) / picture.numel()).detach().norm()
    torch.testing.assert_close(picture.grad, -0.25 * length * direct.grad / direct.grad.norm())
    with torch.no_grad():
        assert adversarial_loss(discriminator, direct.detach(), target, 0.25, reconstruction).isfinite()


def test_reversed_gradient_is_negated_and_brought_to_its_length() -> None:
    x = torch.ones(2, requires_grad=True)
    torch.autograd.backward((reverse_gradient(x, torch.tensor(10.0)) * torch.tensor([3.0, 4.0])).sum())
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([-6, -8])


def test_psnr_of_a_known_error() -> None:
    target = torch.zeros(2, 1, 4, 4)
    assert psnr(target + 0.2, target).tolist() == pytest.approx([20.0, 20.0])
    assert psnr(torch.full_like(target, 7.0), torch.ones_like(target)).min() >= 100


# The stage "tokens" is left out: rounding passes gradients straight through, which no finite difference sees.
@pytest.mark.parametrize("name", ["vae", "prior", "denoiser"])
def test_the_gradient_of_every_stage_is_its_finite_difference(name: str, make_stage: Callable[..., Stage[Any]]) -> None:
    stage = make_stage(name).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in stage.batch(range(2)).items()}
    parameters = [p for p in stage.parameters() if p.requires_grad]
    directions = [random(*p.shape, seed=i) for i, p in enumerate(parameters)]
    torch.autograd.backward(stage(batch)["loss"])
    pairs = zip(parameters, directions, strict=True)
    slope = sum(float((p.grad * d).sum()) for p, d in pairs if p.grad is not None)
    step, losses = 1e-7, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=sign * step)
            losses.append(stage(batch)["loss"].item())
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


def test_group_weights_weigh_the_tokens_of_the_prior(make_stage: Callable[..., Stage[Any]]) -> None:
    losses = {}
    # Groups of 1, 4 and 16 tokens: each loss is a mean over 21 tokens with weights scaled to a mean of 1.
    for weights in (
        (),
        (3.0, 3.0, 3.0),
        (1.0, 1e-12, 1e-12),
        (1e-12, 1.0, 1e-12),
        (1e-12, 1e-12, 1.0),
        (8.0, 4.0, 2.0),
    ):
        stage = make_stage("prior", group_weights=weights).double().eval()
        batch = {k: v.double() if v.is_floating_point() else v for k, v in stage.batch(range(3)).items()}
        losses[weights] = stage(batch)["loss"].item()
        bits = stage(batch)["bits_per_token"].item()
        assert bits == pytest.approx(losses[()] / math.log(2))
    first, second, third = (losses[w] for w in list(losses)[2:5])
    assert losses[3.0, 3.0, 3.0] == pytest.approx(losses[()]) == pytest.approx((first + 4 * second + 16 * third) / 21)
    assert losses[8.0, 4.0, 2.0] == pytest.approx((8 * first + 4 * 4 * second + 16 * 2 * third) / (8 + 16 + 32))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0)])
def test_group_weights_must_fit_the_groups(make_stage: Callable[..., Stage[Any]], weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"group_weights.*3 numbers above 0"):
        make_stage("prior", group_weights=weights)
