"""What passes between a sampler, its denoiser and its caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma) -> denoised: x [B, ...] at noise level sigma [] (a scalar tensor), x = x0 + sigma * eps."""


class NoiseSource(Protocol):
    """Standard-normal noise for a stochastic step.

    A callable so that a Brownian path may answer: the two sigmas name the interval the noise belongs to.
    """

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Noise of the shape, dtype and device of `x`, for the interval from `sigma` down to `sigma_next`."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a sampler, already taken.

    Attributes:
        i: index of the step, 0 <= i < number of steps.
        sigma: noise level the step started from.
        sigma_next: noise level it arrived at.
        x: the state after the step, at `sigma_next`. [B, ...]
        denoised: the denoiser's estimate of x0 that led there. [B, ...]
    """

    i: int
    sigma: float
    sigma_next: float
    x: Tensor
    denoised: Tensor


Steps = Iterator[Step]
