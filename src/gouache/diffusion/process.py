"""The footing of every noise schedule: time, noise level, and what follows from them.

Every path here is x_t = alpha(t) x0 + std(t) eps. Its one invariant is `sigma` = std / alpha, the noise level that
samplers use (x_t / alpha = x0 + sigma eps). A *path* says how alpha and std follow from sigma:

    vp     alpha^2 + std^2 = 1     alpha = 1 / sqrt(1 + sigma^2)     (Ho et al. 2020; Song et al. 2021)
    flow   alpha + std = 1         alpha = 1 / (1 + sigma)           (Liu et al. 2022; Lipman et al. 2023)
    ve     alpha = 1               std = sigma                       (Song & Ermon 2019; Karras et al. 2022)

A *schedule* says how sigma grows with t, the timestep that the network is told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gouache.errors import InvalidInput, unknown_name

Path = Literal["vp", "flow", "ve"]


def alpha_and_std(sigma: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Split sigma into (alpha, std) with std / alpha = sigma (Karras et al. 2022, arXiv:2206.00364, table 1).

    Args:
        sigma: noise level, >= 0. [...]
        path: ``"vp"``, ``"flow"`` or ``"ve"``.

    Returns:
        alpha and std of x_t = alpha x0 + std eps, each of sigma's shape.
    """
    if path == "vp":
        alpha = (1 + sigma**2).rsqrt()
    elif path == "flow":
        alpha = 1 / (1 + sigma)
    elif path == "ve":
        alpha = torch.ones_like(sigma)
    else:
        raise unknown_name("path", str(path), ("vp", "flow", "ve"))
    return alpha, sigma * alpha


class NoiseSchedule(ABC):
    """sigma(t) and what follows from it (Kingma et al. 2021, arXiv:2107.00630, section 3; Karras et al. 2022, table 1).

    Times and sigmas may be given as a number or a tensor of any shape; the answer has that shape and device, in at
    least fp32. The arithmetic runs in fp64 on the CPU.

    Attributes:
        path: how alpha and std follow from sigma.
        num_timesteps: T, the number of levels in `sigmas`.
        t_min, t_max: range of the network's timestep. `sigma_to_t` clamps to it, `t_to_sigma` refuses what is outside.
    """

    def __init__(self, path: Path, num_timesteps: int, t_min: float, t_max: float) -> None:
        if num_timesteps < 2:
            raise InvalidInput("num_timesteps", given=num_timesteps, expected="an integer >= 2")
        self.path: Path = path
        self.num_timesteps = num_timesteps
        self.t_min, self.t_max = t_min, t_max

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor:
        """sigma(t), fp64."""

    @abstractmethod
    def _time(self, sigma: Tensor) -> Tensor:
        """The inverse of `_sigma`, fp64; may leave [t_min, t_max], the caller clamps."""

    @abstractmethod
    def _dlog_sigma(self, t: Tensor) -> Tensor:
        """d log sigma / dt, fp64."""

    def _index_to_t(self, index: Tensor) -> Tensor:
        return index

    @cached_property
    def sigmas(self) -> Tensor:
        """The T noise levels, ascending. [T] fp64"""
        return self.index_to_sigma(torch.arange(self.num_timesteps, dtype=torch.float64))

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """1 / (1 + sigma^2) at the T levels: the variance-preserving twin's squared alpha. [T] fp64, descending"""
        return 1 / (1 + self.sigmas**2)

    @property
    def sigma_min(self) -> float:
        """The least noise level of the table."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The greatest noise level of the table."""
        return float(self.sigmas[-1])

    def index_to_sigma(self, index: Tensor | float) -> Tensor:
        """Noise level at a place in the table, 0..T-1, fractions allowed.

        This is the axis on which "uniform in time" is meant: a flow's shift acts here. For the others it equals
        `t_to_sigma`.
        """
        value = _as_double(index, "index")
        if value.numel() and not (value.min() >= 0 and value.max() <= self.num_timesteps - 1):
            raise InvalidInput("index", given=_range_of(value), expected=f"values in [0, {self.num_timesteps - 1}]")
        return _like_given(self._sigma(self._index_to_t(value)), index)

    def t_to_sigma(self, t: Tensor | float) -> Tensor:
        """sigma(t) for the network's timestep t in [t_min, t_max]."""
        return _like_given(self._sigma(self._checked(t)), t)

    def sigma_to_t(self, sigma: Tensor | float) -> Tensor:
        """The network's timestep for a noise level >= 0; beyond the schedule's ends the end is given."""
        value = _as_double(sigma, "sigma")
        if value.numel() and value.min() < 0:
            raise InvalidInput("sigma", given=_range_of(value), expected="noise levels >= 0")
        return _like_given(self._time(value).clamp(self.t_min, self.t_max), sigma)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Scale of the data in x_t."""
        return _like_given(alpha_and_std(self._sigma(self._checked(t)), self.path)[0], t)

    def std(self, t: Tensor | float) -> Tensor:
        """Scale of the noise in x_t (the literature's sigma_t; here `sigma` is std / alpha)."""
        return _like_given(alpha_and_std(self._sigma(self._checked(t)), self.path)[1], t)

    def log_snr(self, t: Tensor | float) -> Tensor:
        """lambda(t) = log(alpha^2 / std^2) = -2 log sigma (Kingma et al. 2021, equation 1 and below)."""
        return _like_given(-2 * self._sigma(self._checked(t)).log(), t)

    def log_snr_to_t(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of `log_snr`; beyond the schedule's ends the end is given."""
        value = _as_double(log_snr, "log_snr")
        return _like_given(self._time((-value / 2).exp()).clamp(self.t_min, self.t_max), log_snr)

    def dsigma_dt(self, t: Tensor | float) -> Tensor:
        """Derivative of sigma(t)."""
        time = self._checked(t)
        return _like_given(self._sigma(time) * self._dlog_sigma(time), t)

    def dalpha_dt(self, t: Tensor | float) -> Tensor:
        """Derivative of alpha(t): alpha times `drift`."""
        time = self._checked(t)
        alpha, _ = alpha_and_std(self._sigma(time), self.path)
        return _like_given(alpha * self._drift(time), t)

    def dstd_dt(self, t: Tensor | float) -> Tensor:
        """Derivative of std(t) = sigma alpha."""
        time = self._checked(t)
        _, std = alpha_and_std(self._sigma(time), self.path)
        return _like_given(std * (self._dlog_sigma(time) + self._drift(time)), t)

    def dlog_snr_dt(self, t: Tensor | float) -> Tensor:
        """Derivative of log_snr(t); negative, since noise grows with t."""
        return _like_given(-2 * self._dlog_sigma(self._checked(t)), t)

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t) = d log alpha / dt in dx = f x dt + g dw (Song et al. 2021, arXiv:2011.13456, equation 5)."""
        return _like_given(self._drift(self._checked(t)), t)

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        """g(t)^2 = d std^2/dt - 2 f std^2 = alpha^2 d sigma^2/dt (Kingma et al. 2021, section 3)."""
        time = self._checked(t)
        _, std = alpha_and_std(self._sigma(time), self.path)
        return _like_given(2 * std**2 * self._dlog_sigma(time), t)

    def _drift(self, t: Tensor) -> Tensor:
        """d log alpha / dt = (d log alpha / d log sigma) (d log sigma / dt)."""
        sigma = self._sigma(t)
        slope = {"vp": sigma**2 / (1 + sigma**2), "flow": sigma / (1 + sigma), "ve": torch.zeros_like(sigma)}[self.path]
        return -slope * self._dlog_sigma(t)

    def _checked(self, t: Tensor | float) -> Tensor:
        value = _as_double(t, "t")
        if value.numel() and not (value.min() >= self.t_min and value.max() <= self.t_max):
            raise InvalidInput("t", given=_range_of(value), expected=f"timesteps in [{self.t_min:g}, {self.t_max:g}]")
        return value


def _as_double(value: Tensor | float, where: str) -> Tensor:
    """The value as fp64 on the CPU; refuses NaN and infinity."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    result = tensor.to("cpu", torch.float64)
    if not bool(result.isfinite().all()):
        raise InvalidInput(where, given=_range_of(result), expected="finite numbers")
    return result


def _like_given(result: Tensor, given: Tensor | float) -> Tensor:
    """Back to the device of what was given, in its precision but at least fp32; fp64 for plain numbers."""
    if not isinstance(given, Tensor):
        return result
    dtype = torch.promote_types(given.dtype, torch.float32) if given.is_floating_point() else torch.float32
    return result.to(given.device, dtype)


def _range_of(value: Tensor) -> str:
    if value.numel() == 0:
        return "no values"
    return f"{value.item():g}" if value.numel() == 1 else f"values from {value.min():g} to {value.max():g}"
