"""What a network predicts, and every way from one prediction to another.

With x_t = alpha x0 + std eps, each target is a mix a x0 + b eps:

    eps    (0, 1)          the noise                             (Ho et al. 2020, arXiv:2006.11239)
    x0     (1, 0)          the data
    v      (-std, alpha)   the rotation's velocity               (Salimans & Ho 2022, arXiv:2202.00512, section 4)
    flow   (-1, 1)         the straight line's velocity eps - x0 (Liu et al. 2022, arXiv:2209.03003, equation 1)
    edm    (std, -alpha)   F of EDM's preconditioning: -v (Karras et al. 2022, arXiv:2206.00364, table 1)

Two linear equations, two unknowns: with det = alpha b - std a,

    x0 = (b x_t - std m) / det        eps = (alpha m - a x_t) / det

so one rule serves every prediction on every path (vp, flow, ve).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import Path, alpha_and_std
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

Parameterization = Literal["eps", "v", "x0", "flow", "edm"]
PARAMETERIZATIONS: tuple[Parameterization, ...] = get_args(Parameterization)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says at (x_t, t), translated.

    Attributes:
        x0: its estimate of the data. [B, ...]
        interpolation: for learned variance, its second output: -1 = least variance, 1 = greatest (Nichol and Dhariwal
            2021, arXiv:2102.09672, equation 15, with v = (interpolation + 1) / 2). [B, ...]
    """

    x0: Tensor
    interpolation: Tensor | None = None


def expand_to(value: Tensor, x: Tensor) -> Tensor:
    """Give a per-picture value the trailing axes of x, as sigma_t multiplies x_t in Ho et al. (2020), equation 4.

    Args:
        value: one number for all, [] or [1], or one per picture, [B].
        x: [B, ...]

    Returns:
        value [B or 1, 1, ..., 1] in x's dtype and device.
    """
    if value.ndim > 1 or (value.ndim == 1 and len(value) not in (1, len(x))):
        raise ShapeMismatch("noise level", given=f"shape {tuple(value.shape)}", expected=f"[] or [{len(x)}]")
    return value.to(x).reshape(-1, *(1 for _ in x.shape[1:]))


def mix_of(parameterization: Parameterization, alpha: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the target a x0 + b eps (Salimans & Ho 2022, arXiv:2202.00512, section 4 and appendix D).

    alpha, std [...] -> a, b [...].
    """
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if parameterization == "eps":
        return zero, one
    if parameterization == "x0":
        return one, zero
    if parameterization == "v":
        return -std, alpha
    if parameterization == "flow":
        return -one, one
    if parameterization == "edm":
        return std, -alpha
    raise unknown_name("parameterization", str(parameterization), PARAMETERIZATIONS)


def target_of(parameterization: Parameterization, x0: Tensor, eps: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """What the network should predict, a x0 + b eps (Salimans & Ho 2022, section 4; Liu et al. 2022, equation 1).

    Args:
        parameterization: the network's kind.
        x0, eps: data and noise. [B, ...]
        alpha, std: scales of data and noise in x_t. [] or [B]
    """
    _same_shape(x0, eps)
    a, b = mix_of(parameterization, expand_to(alpha, x0), expand_to(std, x0))
    return a * x0 + b * eps


def to_x0(prediction: Tensor, x_t: Tensor, alpha: Tensor, std: Tensor, parameterization: Parameterization) -> Tensor:
    """x0 = (b x_t - std m) / det (Salimans & Ho 2022, arXiv:2202.00512, appendix D).

    Args:
        prediction: the network's output m. [B, ...]
        x_t: what it was shown, alpha x0 + std eps. [B, ...]
        alpha, std: scales of data and noise in x_t. [] or [B]
        parameterization: what m is.

    Raises:
        InvalidInput: m says nothing about x0 there (eps where alpha = 0).
    """
    return _solve(prediction, x_t, alpha, std, parameterization, "x0")


def to_eps(prediction: Tensor, x_t: Tensor, alpha: Tensor, std: Tensor, parameterization: Parameterization) -> Tensor:
    """eps = (alpha m - a x_t) / det (Salimans & Ho 2022, arXiv:2202.00512, appendix D). Arguments as in `to_x0`.

    Raises:
        InvalidInput: m says nothing about eps there (x0 where std = 0).
    """
    return _solve(prediction, x_t, alpha, std, parameterization, "eps")


def convert(
    prediction: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    std: Tensor,
    source: Parameterization,
    target: Parameterization,
) -> Tensor:
    """Turn a prediction of one kind into another (Salimans & Ho 2022, section 4). Arguments as in `to_x0`.

    Raises:
        InvalidInput: the source says nothing about the target at this noise level.
    """
    if source == target:
        _same_shape(prediction, x_t)
        return prediction
    return _solve(prediction, x_t, alpha, std, source, target)


def network_input(x: Tensor, sigma: Tensor, path: Path) -> Tensor:
    """x_t = alpha x: the sampler's x0 + sigma eps, scaled as the network knows it (Karras et al. 2022, table 1, c_in).

    x [B, ...], sigma [] or [B].
    """
    alpha, _ = alpha_and_std(sigma, path)
    return expand_to(alpha, x) * x


def denoised_from(
    prediction: Tensor, x: Tensor, sigma: Tensor, parameterization: Parameterization, path: Path
) -> Tensor:
    """D(x, sigma) from the network's output: c_skip x + c_out m (Karras et al. 2022, arXiv:2206.00364, equation 7).

    Args:
        prediction: the network's output for `network_input(x, sigma, path)`. [B, ...]
        x: x0 + sigma eps. [B, ...]
        sigma: noise level. [] or [B]
        parameterization: what the network predicts.
        path: the path it was trained on.
    """
    _same_shape(prediction, x)
    alpha, std = alpha_and_std(sigma, path)
    a, b = mix_of(parameterization, alpha, std)
    if parameterization == "x0":
        return prediction
    # alpha is never 0 for a finite sigma, so det = alpha b - std a is not 0 either.
    determinant = alpha * b - std * a
    return expand_to(b * alpha / determinant, x) * x - expand_to(std / determinant, x) * prediction


def score_of(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """grad log p(x; sigma) = (D(x, sigma) - x) / sigma^2 (Karras et al. 2022, arXiv:2206.00364, equation 3).

    denoised, x [B, ...]; sigma [] or [B], > 0.
    """
    _same_shape(denoised, x)
    return (denoised - x) / expand_to(sigma, x) ** 2


def path_velocity(x0: Tensor, eps: Tensor, dalpha_dt: Tensor, dstd_dt: Tensor) -> Tensor:
    """dx_t/dt = alpha'(t) x0 + std'(t) eps along the probability flow (Lipman et al. 2023, arXiv:2210.02747, theorem 3,
    equation 15).

    With the denoiser's x0 and eps this is the ODE's right side in the path's own coordinates and time.

    x0, eps [B, ...]; dalpha_dt, dstd_dt [] or [B].
    """
    _same_shape(x0, eps)
    return expand_to(dalpha_dt, x0) * x0 + expand_to(dstd_dt, x0) * eps


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, arXiv:2206.00364, equation 7).

    Each has sigma's shape.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """The scalings that keep input, target and error at unit variance (Karras et al. 2022, table 1, last column).

    Args:
        sigma: noise level, > 0. [...]
        sigma_data: standard deviation of the data, > 0. With 1 the network's F is -v of a vp path.
    """
    if not sigma_data > 0:
        raise InvalidInput("sigma_data", given=sigma_data, expected="a number > 0")
    total = (sigma**2 + sigma_data**2).sqrt()
    return Preconditioning(
        c_skip=sigma_data**2 / total**2, c_out=sigma * sigma_data / total, c_in=1 / total, c_noise=sigma.log() / 4
    )


def edm_denoised(raw: Tensor, x: Tensor, scalings: Preconditioning) -> Tensor:
    """D = c_skip x + c_out F (Karras et al. 2022, arXiv:2206.00364, equation 7). raw F and x [B, ...]."""
    _same_shape(raw, x)
    return expand_to(scalings.c_skip, x) * x + expand_to(scalings.c_out, x) * raw


def edm_target(x0: Tensor, x: Tensor, scalings: Preconditioning) -> Tensor:
    """What F should be, (x0 - c_skip x) / c_out (Karras et al. 2022, arXiv:2206.00364, equation 8). [B, ...]"""
    _same_shape(x0, x)
    return (x0 - expand_to(scalings.c_skip, x) * x) / expand_to(scalings.c_out, x)


def _solve(
    prediction: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    std: Tensor,
    source: Parameterization,
    target: Parameterization,
) -> Tensor:
    """Solve both equations for x0 and eps, then mix them; the two coefficients are worked out per picture, first."""
    _same_shape(prediction, x_t)
    if source == target:
        return prediction
    a, b = mix_of(source, alpha, std)
    wanted_a, wanted_b = mix_of(target, alpha, std)
    determinant = alpha * b - std * a
    if bool((determinant == 0).any()):
        raise InvalidInput(
            "noise level",
            given=f"{source} with alpha {alpha.min():g} and std {std.min():g}",
            expected=f"a level at which {source} determines {target}",
            cure="Use a level strictly between pure data and pure noise, or another parameterization.",
        )
    of_x = (wanted_a * b - wanted_b * a) / determinant
    of_prediction = (wanted_b * alpha - wanted_a * std) / determinant
    return expand_to(of_x, x_t) * x_t + expand_to(of_prediction, x_t) * prediction


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeMismatch(
            "tensors of one batch", given=f"{tuple(first.shape)} and {tuple(second.shape)}", expected="equal shapes"
        )
