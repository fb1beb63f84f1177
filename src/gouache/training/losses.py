"""Losses of the stages that are not diffusion's own (those are in `diffusion/`)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import InvalidInput


def edge_loss(picture: Tensor, target: Tensor, *, scales: int = 3) -> Tensor:
    """Mean absolute difference of horizontal and vertical gradients at `scales` resolutions .

    Mathieu et al. 2016, equation 6.

    Args:
        picture, target: [B,C,H,W], any range.
        scales: 1 or more; each halves the resolution.
    """
    if scales < 1:
        raise InvalidInput("scales", given=scales, expected="1 or more")
    difference = picture - target  # gradients are linear: the gradient of the difference is the difference of gradients
    total = picture.new_zeros(())
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return total / scales


def psnr(picture: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1,1], for each picture [B]: 10 log10(peak^2 / MSE), peak 2."""
    error = (picture.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def contrastive_loss(text: Tensor, image: Tensor, log_scale: Tensor, *, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between unit vectors text [B,E] and image [B,E] (Radford et al. 2021, figure 3).

    Args:
        log_scale: logarithm of the inverse temperature, a scalar.
        same: pairs that also match, for example pictures of one concept [B,B]; they share the target's mass.
    """
    logits = log_scale.exp() * text @ image.mT
    target = torch.eye(len(text), device=text.device) if same is None else same.float()
    rows, columns = target / target.sum(1, keepdim=True), target.mT / target.sum(0)[:, None]
    return 0.5 * (F.cross_entropy(logits, rows) + F.cross_entropy(logits.mT, columns))


class _ReverseGradient(torch.autograd.Function):
    """Identity whose gradient is turned round and brought to a given length (Ganin & Lempitsky 2015, equation 16)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, length: Tensor) -> Tensor:
        ctx.save_for_backward(length)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (length,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient = gradients[0]
        return -gradient * (length / gradient.norm().clamp_min(1e-12)).to(gradient.dtype), None


def reverse_gradient(x: Tensor, length: Tensor) -> Tensor:
    """`x`, through which the gradient passes back negated, as a vector of the given length. `length` []"""
    reversed_: Tensor = _ReverseGradient.apply(x, length)  # type: ignore[no-untyped-call]
    return reversed_


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches (Isola et al. 2017, section 3.2): [B,C,H,W] -> scores [B,1,H/8,W/8]."""

    def __init__(self, channels: int, width: int = 48) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, picture: Tensor) -> Tensor:
        scores: Tensor = self.layers(picture)
        return scores


def adversarial_loss(
    discriminator: nn.Module, picture: Tensor, target: Tensor, weight: float, reconstruction: Tensor
) -> Tensor:
    """Hinge loss of the discriminator (Lim & Ye 2017, equation 8); the picture's maker gets its gradient reversed.

    One optimizer serves both players: the discriminator goes down this loss, and through `reverse_gradient` whatever
    made `picture` goes up it. A discriminator's gradient grows by orders of magnitude as it learns, so its length at
    the picture is kept at `weight` times that of the reconstruction's (Esser et al. 2021, equation 7, there in the last
    layer).

    Args:
        discriminator: [B,C,H,W] -> scores.
        picture, target: made and real. [B,C,H,W]
        weight: 0 lets the discriminator learn and leaves the picture alone.
        reconstruction: the loss between the two, whose gradient the picture gets as well. []
    """
    length = torch.zeros((), device=picture.device)
    if picture.requires_grad:
        length = weight * torch.autograd.grad(reconstruction, picture, retain_graph=True)[0].norm()
    real = F.relu(1 - discriminator(target)).mean()
    fake = F.relu(1 + discriminator(reverse_gradient(picture, length))).mean()
    return real + fake
