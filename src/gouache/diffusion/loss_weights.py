"""The training loss: how errors count by their size, and weights over noise levels.

A weight is published for one kind of prediction; the loss it means is the same for all. The published weights are first
written as W, the weight of |x0_hat - x0|^2, in terms of snr = alpha^2 / std^2 = 1 / sigma^2. A network that predicts
m = a x0 + b eps errs by (a - b alpha / std) times its error in x0, so its weight is W / (a - b alpha / std)^2.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import Path, alpha_and_std
from gouache.diffusion.parameterization import Parameterization, mix_of
from gouache.errors import InvalidInput, unknown_name

LossWeight = Literal["uniform", "min_snr", "edm", "truncated_snr", "p2", "debiased"]
LOSS_WEIGHTS: tuple[LossWeight, ...] = get_args(LossWeight)
LossShape = Literal["l2", "huber", "smooth_l1"]
LOSS_SHAPES: tuple[LossShape, ...] = get_args(LossShape)


def shaped(name: LossShape, square: Tensor, *, c: float = 0.1) -> Tensor:
    """How much every error d counts, from its square. square [...] -> [...].

    ==============  ==================================================================================
    ``l2``          d^2
    ``huber``       2 c (sqrt(d^2 + c^2) - c): d^2 for small errors, 2 c |d| for large ones (Charbonnier et al. 1997;
                    for diffusion Khrapov et al. 2024, arXiv:2403.16728, equation 5, times 2)
    ``smooth_l1``   the same over c: 2 |d| for large errors
    ==============  ==================================================================================

    Args:
        name: one of `LOSS_SHAPES`.
        square: of the difference of prediction and target.
        c: size of an error from which it counts as a large one.
    """
    if name == "l2":
        return square
    if name not in LOSS_SHAPES:
        raise unknown_name("loss", str(name), LOSS_SHAPES)
    if not c > 0:
        raise InvalidInput("c", given=c, expected="a number > 0")
    root = square / ((square + c * c).sqrt() + c)  # sqrt(d^2 + c^2) - c without taking near numbers from each other
    return 2 * c * root if name == "huber" else 2 * root


def x0_error_factor(sigma: Tensor, parameterization: Parameterization, path: Path) -> Tensor:
    """|m_hat - m|^2 / |x0_hat - x0|^2 at the same x_t (Salimans & Ho 2022, arXiv:2202.00512, section 4, equation 9).

    1 for x0, snr for eps, snr + 1 for v and edm on a vp path, (1 + 1 / sigma)^2 for flow on its own path.

    sigma [...] > 0 -> [...].
    """
    alpha, std = alpha_and_std(sigma, path)
    a, b = mix_of(parameterization, alpha, std)
    return (a - b * alpha / std) ** 2


def loss_weight(
    name: LossWeight,
    sigma: Tensor,
    parameterization: Parameterization,
    path: Path,
    *,
    gamma: float | None = None,
    sigma_data: float = 0.5,
    k: float = 1.0,
) -> Tensor:
    """Weight of |m_hat - m|^2 for a network that predicts m (each name's own equation below).

    ======================  ==========================================================================
    ``uniform``             1 for the network's own m: L_simple (Ho et al. 2020, equation 14) for eps
    ``min_snr``             W = min(snr, gamma), gamma 5 (Hang et al. 2023, arXiv:2303.09556, section 3.4)
    ``edm``                 W = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1)
    ``truncated_snr``       W = max(snr, 1) (Salimans & Ho 2022, arXiv:2202.00512, section 4)
    ``p2``                  W = snr / (k + snr)^gamma, gamma 1 (Choi et al. 2022, arXiv:2204.00227, eq. 8)
    ``debiased``            W = sqrt(snr): 1 / sqrt(snr) for eps (Yu et al. 2023, arXiv:2310.08442, equation 11)
    ======================  ==========================================================================

    Args:
        name: one of `LOSS_WEIGHTS`.
        sigma: noise level, > 0. [...]
        parameterization, path: of the network.
        gamma: for ``min_snr`` (5 if None) and ``p2`` (1 if None).
        sigma_data: for ``edm``.
        k: for ``p2``.

    Returns:
        The weight, of sigma's shape.
    """
    if not bool((sigma > 0).all() and sigma.isfinite().all()):
        raise InvalidInput("sigma", given="a value that is not", expected="finite noise levels > 0")
    if gamma is not None and not gamma > 0:
        raise InvalidInput("gamma", given=gamma, expected="a number > 0")
    snr = sigma**-2.0
    if name == "uniform":
        return torch.ones_like(sigma)
    if name == "min_snr":
        weight = snr.clamp(max=5.0 if gamma is None else gamma)
    elif name == "edm":
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    elif name == "truncated_snr":
        weight = snr.clamp(min=1)
    elif name == "p2":
        weight = snr / (k + snr) ** (1.0 if gamma is None else gamma)
    elif name == "debiased":
        weight = snr.sqrt()
    else:
        raise unknown_name("loss weight", str(name), LOSS_WEIGHTS)
    return weight / x0_error_factor(sigma, parameterization, path)
