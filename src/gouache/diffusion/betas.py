"""Tables of beta_t and alphas_cumprod for the discrete forward process, in fp64.

The chain is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) (Ho et al. 2020, arXiv:2006.11239, equation 2),
and alphas_cumprod[t] = prod_{s <= t} (1 - beta_s). Index 0 carries the least noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.errors import InvalidInput

ALPHAS_CUMPROD_FLOOR = 2.0**-24
"""Least alphas_cumprod a schedule may hold: sigma stays finite (4096) where the signal is meant to vanish."""

LAST_FRACTION = 1 - 1e-4
"""Where a path ends in pure noise sigma would be infinite; continuous schedules stop at this fraction of it."""

COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


def linear_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """beta_t rising linearly (Ho et al. 2020, arXiv:2006.11239, section 4). Returns [T] fp64."""
    _check(num_timesteps, beta_start, beta_end)
    return torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)


def scaled_linear_betas(num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """sqrt(beta_t) rising linearly: Stable Diffusion's schedule (Rombach et al. 2022, arXiv:2112.10752, appendix E).

    Returns [T] fp64. The defaults are those of every released Stable Diffusion 1, 2 and XL.
    """
    _check(num_timesteps, beta_start, beta_end)
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps, dtype=torch.float64) ** 2


def cosine_betas(num_timesteps: int) -> Tensor:
    """beta_t = min(1 - acp(t+1) / acp(t), 0.999) of the cosine path (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).

    Returns [T] fp64.
    """
    _check(num_timesteps, COSINE_OFFSET, COSINE_MAX_BETA)
    s = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    acp = cosine_alphas_cumprod(s)
    # The last beta would be 1 and leave no signal at all: a singularity, which the authors cut off the same way.
    return (1 - acp[1:] / acp[:-1]).clamp(max=COSINE_MAX_BETA)


def cosine_alphas_cumprod(s: Tensor) -> Tensor:
    """acp(s) = cos^2((s + 0.008) / 1.008 * pi / 2), scaled to 1 at s = 0 (Nichol & Dhariwal 2021, equation 17).

    s [...] in [0, 1] is the fraction of the forward process that has passed.
    """

    def squared_cosine(s: Tensor) -> Tensor:
        return torch.cos((s + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    return squared_cosine(s) / squared_cosine(torch.zeros_like(s))


def sigmoid_alphas_cumprod(s: Tensor, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """acp(s) falling along a sigmoid from 1 to 0 (Chen 2023, arXiv:2301.10972, algorithm 1; Jabri et al. 2022).

    Args:
        s: fraction of the forward process, in [0, 1]. [...]
        start, end: the piece of the sigmoid that is used.
        tau: temperature; above 1 the middle of the path is flatter.
    """
    low, high = torch.sigmoid(s.new_tensor(start / tau)), torch.sigmoid(s.new_tensor(end / tau))
    return (high - torch.sigmoid((start + s * (end - start)) / tau)) / (high - low)


def sigmoid_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """beta_t rising along a sigmoid over [-6, 6] (Xu et al. 2022, GeoDiff, arXiv:2203.02923, appendix). [T] fp64."""
    _check(num_timesteps, beta_start, beta_end)
    ramp = torch.sigmoid(torch.linspace(-6, 6, num_timesteps, dtype=torch.float64))
    return beta_start + ramp * (beta_end - beta_start)


def alphas_cumprod_of(betas: Tensor) -> Tensor:
    """alphas_cumprod[t] = prod_{s <= t} (1 - beta_s) (Ho et al. 2020, equation 4). betas [T] -> [T] fp64."""
    return torch.cumprod(1 - betas.double(), dim=0)


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    """beta_t = 1 - alphas_cumprod[t] / alphas_cumprod[t-1] (Ho et al. 2020, equation 4 backwards). [T] -> [T] fp64."""
    acp = alphas_cumprod.double()
    return 1 - acp / torch.cat([acp.new_ones(1), acp[:-1]])


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(acp) so that the last step holds no signal (Lin et al. 2024, arXiv:2305.08891, algorithm 1).

    The first value is kept and the last becomes exactly 0. alphas_cumprod [T] -> [T] fp64.
    """
    root = alphas_cumprod.double().sqrt()
    # The root, since it is the data's scale alpha that is shifted; shifting its square would bend the whole table.
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


@dataclass(frozen=True, slots=True)
class Curve:
    """log alpha of a variance-preserving process over the fraction s in (0, 1] that has passed (fp64 in and out).

    Attributes:
        log_alpha: log alpha(s) = log(acp(s)) / 2.
        slope: d log alpha / ds.
        inverse: s for a given log alpha.
        last: greatest s at which sigma is finite and of use.
    """

    log_alpha: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    last: float = 1.0


def linear_curve(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Curve:
    """log alpha(s) = -T/2 (beta_0 s + (beta_1 - beta_0) s^2 / 2) (Song et al. 2021, arXiv:2011.13456, equation 33)."""
    _check(num_timesteps, beta_start, beta_end)
    half, rise = num_timesteps / 2, beta_end - beta_start

    def inverse(log_alpha: Tensor) -> Tensor:
        passed = -log_alpha / half  # the integral of beta from 0 to s
        return 2 * passed / (beta_start + (beta_start**2 + 2 * rise * passed).sqrt())

    return Curve(
        log_alpha=lambda s: -half * (beta_start * s + rise * s**2 / 2),
        slope=lambda s: -half * (beta_start + rise * s),
        inverse=inverse,
    )


def scaled_linear_curve(num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> Curve:
    """log alpha(s) = -T/2 * integral of beta, its root linear in s (Rombach et al. 2022; Song et al. 2021, eq. 29)."""
    _check(num_timesteps, beta_start, beta_end)
    half, root = num_timesteps / 2, math.sqrt(beta_start)
    rise = math.sqrt(beta_end) - root
    if rise == 0:
        raise InvalidInput("beta_start, beta_end", given=(beta_start, beta_end), expected="beta_start < beta_end")

    def log_alpha(s: Tensor) -> Tensor:
        return -half * (root**2 * s + root * rise * s**2 + rise**2 * s**3 / 3)

    def inverse(log_alpha: Tensor) -> Tensor:
        cube = root**3 - 3 * rise * log_alpha / half
        return (cube ** (1 / 3) - root) / rise

    return Curve(log_alpha=log_alpha, slope=lambda s: -half * (root + rise * s) ** 2, inverse=inverse)


def cosine_curve() -> Curve:
    """log alpha(s) = log cos(x(s)) - log cos(x(0)), x(s) = (s + 0.008) / 1.008 * pi/2 (Nichol & Dhariwal 2021,
    equation 17)."""
    scale = math.pi / 2 / (1 + COSINE_OFFSET)
    start = math.log(math.cos(COSINE_OFFSET * scale))
    return Curve(
        log_alpha=lambda s: ((s + COSINE_OFFSET) * scale).cos().log() - start,
        slope=lambda s: -scale * ((s + COSINE_OFFSET) * scale).tan(),
        inverse=lambda log_alpha: (log_alpha + start).exp().acos() / scale - COSINE_OFFSET,
        last=LAST_FRACTION,
    )


def sigmoid_curve(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Curve:
    """log alpha(s) = log(acp(s)) / 2 of `sigmoid_alphas_cumprod` (Chen 2023, arXiv:2301.10972, algorithm 1)."""
    low, high = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))

    def slope(s: Tensor) -> Tensor:
        value = torch.sigmoid((start + s * (end - start)) / tau)
        return -value * (1 - value) * (end - start) / tau / (high - value) / 2

    return Curve(
        log_alpha=lambda s: sigmoid_alphas_cumprod(s, start, end, tau).log() / 2,
        slope=slope,
        inverse=lambda log_alpha: (
            (torch.logit(high - (2 * log_alpha).exp() * (high - low)) * tau - start) / (end - start)
        ),
        last=LAST_FRACTION,
    )


def _check(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    if num_timesteps < 2:
        raise InvalidInput("num_timesteps", given=num_timesteps, expected="an integer >= 2")
    if not 0 < beta_start <= beta_end < 1:
        raise InvalidInput(
            "beta_start, beta_end", given=(beta_start, beta_end), expected="0 < beta_start <= beta_end < 1"
        )
