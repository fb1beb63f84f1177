"""Noise schedules: which noise level belongs to which time, discrete or continuous, on one footing.

Every path here is x_t = alpha(t) x0 + std(t) eps. Its one invariant is `sigma` = std / alpha, the noise level that
samplers use (x_t / alpha = x0 + sigma eps). A *path* says how alpha and std follow from sigma:

    vp     alpha^2 + std^2 = 1     alpha = 1 / sqrt(1 + sigma^2)     (Ho et al. 2020; Song et al. 2021)
    flow   alpha + std = 1         alpha = 1 / (1 + sigma)           (Liu et al. 2022; Lipman et al. 2023)
    ve     alpha = 1               std = sigma                       (Song & Ermon 2019; Karras et al. 2022)

A *schedule* says how sigma grows with t, the timestep that the network is given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gouache.diffusion import betas as tables
from gouache.errors import InvalidInput, unknown_name

__all__ = [
    "NAMES",
    "ContinuousVP",
    "DiscreteVP",
    "EdmSchedule",
    "FlowMatching",
    "NoiseSchedule",
    "Path",
    "VarianceExploding",
    "alpha_and_std",
    "make_noise_schedule",
]


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
        """1 / (1 + sigma^2) at the T levels: squared alpha of the variance-preserving form. [T] fp64, descending"""
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
    # sigma is made of 1 - alphas_cumprod, which keeps four digits in fp32 where alphas_cumprod is 0.999. On the CPU,
    # since some devices have no fp64.
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


class DiscreteVP(NoiseSchedule):
    """A variance-preserving chain given by its table; between the entries log sigma is linear in t.

    Args:
        alphas_cumprod: descending, within (0, 1). [T]
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        acp = _as_double(alphas_cumprod, "alphas_cumprod")
        if acp.ndim != 1 or len(acp) < 2:
            raise InvalidInput("alphas_cumprod", given=f"shape {tuple(acp.shape)}", expected="one axis of length >= 2")
        if not (acp[0] < 1 and acp[-1] > 0 and bool((acp.diff() < 0).all())):
            raise InvalidInput(
                "alphas_cumprod",
                given=_range_of(acp),
                expected="strictly descending values between 1 and 0, both excluded",
            )
        super().__init__("vp", len(acp), 0.0, float(len(acp) - 1))
        self._table = acp
        # Interpolating log sigma is k-diffusion's choice and so that of most tools: timesteps between entries agree.
        self._log_sigmas = ((1 - acp) / acp).log() / 2

    @cached_property
    def sigmas(self) -> Tensor:
        """sqrt((1 - acp) / acp), ascending. [T] fp64"""
        return ((1 - self._table) / self._table).sqrt()

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The table as it was given. [T] fp64, descending"""
        return self._table

    def _cell(self, t: Tensor) -> Tensor:
        # The last entry closes the cell before it; it opens none.
        return t.floor().long().clamp(0, self.num_timesteps - 2)

    def _sigma(self, t: Tensor) -> Tensor:
        low = self._cell(t)
        return torch.lerp(self._log_sigmas[low], self._log_sigmas[low + 1], t - low).exp()

    def _time(self, sigma: Tensor) -> Tensor:
        # Also for sigma = 0, whose logarithm is infinite: samplers end there.
        log_sigma = sigma.log().clamp(self._log_sigmas[0], self._log_sigmas[-1])
        low = (torch.searchsorted(self._log_sigmas, log_sigma) - 1).clamp(0, self.num_timesteps - 2)
        start, end = self._log_sigmas[low], self._log_sigmas[low + 1]
        return low + (log_sigma - start) / (end - start)

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        low = self._cell(t)
        return self._log_sigmas[low + 1] - self._log_sigmas[low]


class FlowMatching(NoiseSchedule):
    """Rectified flow, x_f = (1 - f) x0 + f eps with f in (0, 1) (Liu et al. 2022, arXiv:2209.03003, equation 1).

    The network is given t = T f. `shift` moves the table's levels towards noise, f' = shift f / (1 + (shift - 1) f)
    (Esser et al. 2024, arXiv:2403.03206, equation 23), which multiplies sigma by `shift`; it does not change sigma(t).

    Args:
        shift: > 0; 1 leaves the levels uniform in f.
        num_timesteps: T.
    """

    def __init__(self, shift: float = 1.0, num_timesteps: int = 1000) -> None:
        if not (math.isfinite(shift) and shift > 0):
            raise InvalidInput("shift", given=shift, expected="a finite number > 0")
        self.shift = shift
        last = self._shifted(tables.LAST_FRACTION)
        super().__init__("flow", num_timesteps, num_timesteps * 1e-6, num_timesteps * last)

    def _shifted(self, fraction: float) -> float:
        return self.shift * fraction / (1 + (self.shift - 1) * fraction)

    def _index_to_t(self, index: Tensor) -> Tensor:
        fraction = ((index + 1) / self.num_timesteps).clamp(max=tables.LAST_FRACTION)
        return self.num_timesteps * self.shift * fraction / (1 + (self.shift - 1) * fraction)

    def _sigma(self, t: Tensor) -> Tensor:
        return t / (self.num_timesteps - t)

    def _time(self, sigma: Tensor) -> Tensor:
        return self.num_timesteps * sigma / (1 + sigma)

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        return 1 / t + 1 / (self.num_timesteps - t)


class VarianceExploding(NoiseSchedule):
    """sigma(t) rising geometrically over t in [0, T-1], alpha = 1 (Song et al. 2021, arXiv:2011.13456, equation 31).

    Args:
        sigma_min, sigma_max: the ends, 0 < sigma_min < sigma_max.
        num_timesteps: T.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, num_timesteps: int = 1000) -> None:
        if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
            raise InvalidInput(
                "sigma_min, sigma_max", given=(sigma_min, sigma_max), expected="0 < sigma_min < sigma_max"
            )
        super().__init__("ve", num_timesteps, 0.0, float(num_timesteps - 1))
        self._start = math.log(sigma_min)
        self._slope = math.log(sigma_max / sigma_min) / (num_timesteps - 1)

    def _sigma(self, t: Tensor) -> Tensor:
        return (self._start + self._slope * t).exp()

    def _time(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self._start) / self._slope

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self._slope)


class ContinuousVP(NoiseSchedule):
    """A variance-preserving process in continuous time, log alpha(s) in closed form (Song et al. 2021, equation 29).

    The fraction s = (t + 1) / T lines the network's timestep up with the chain of T steps: after chain step t, a part s
    of the process has passed. Between chain and continuum remains the O(1 / T) of replacing log(1 - beta) by -beta.

    Args:
        curve: log alpha as a function of s.
        num_timesteps: T.
    """

    def __init__(self, curve: tables.Curve, num_timesteps: int = 1000) -> None:
        last = num_timesteps * min(1.0, curve.last) - 1
        super().__init__("vp", num_timesteps, -1 + 1e-6 * num_timesteps, last)
        self._curve = curve

    def _fraction(self, t: Tensor) -> Tensor:
        return (t + 1) / self.num_timesteps

    def _index_to_t(self, index: Tensor) -> Tensor:
        return index.clamp(max=self.t_max)

    def _sigma(self, t: Tensor) -> Tensor:
        # 1 / alpha^2 - 1 by expm1: near s = 0 it is a difference of nearly equal numbers.
        return torch.expm1(-2 * self._curve.log_alpha(self._fraction(t))).sqrt()

    def _time(self, sigma: Tensor) -> Tensor:
        return self.num_timesteps * self._curve.inverse(-torch.log1p(sigma**2) / 2) - 1

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        s = self._fraction(t)
        return self._curve.slope(s) / torch.expm1(2 * self._curve.log_alpha(s)) / self.num_timesteps


class EdmSchedule(VarianceExploding):
    """Continuous levels whose timestep is c_noise = log(sigma) / 4 (Karras et al. 2022, arXiv:2206.00364, table 1).

    In units of the data's deviation, x / sigma_data at sigma / sigma_data, EDM's c_in is the vp path's, and c_skip and
    c_out are those of -v: with latents of deviation 1 that is all such a network needs. T levels, even in log sigma.

    Args:
        sigma_min, sigma_max: the ends in the network's own units, 0 < sigma_min < sigma_max.
        sigma_data: deviation of the data in these units, > 0.
        num_timesteps: T.
    """

    def __init__(self, sigma_min: float, sigma_max: float, sigma_data: float, num_timesteps: int = 1000) -> None:
        super().__init__(sigma_min, sigma_max, num_timesteps)
        if not sigma_data > 0:
            raise InvalidInput("sigma_data", given=sigma_data, expected="a deviation > 0")
        self.path, self.t_min, self.t_max = "vp", math.log(sigma_min) / 4, math.log(sigma_max) / 4
        self._start, self._slope = -math.log(sigma_data), 4.0

    def _index_to_t(self, index: Tensor) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * (index / (self.num_timesteps - 1))


NAMES = ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_betas", "flow", "ve")


def make_noise_schedule(
    name: str,
    *,
    num_timesteps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    continuous: bool = False,
    zero_terminal_snr: bool = False,
    shift: float = 1.0,
    alphas_cumprod: Sequence[float] = (),
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float | None = None,
) -> NoiseSchedule:
    """Build a schedule by name (Ho et al. 2020; Rombach et al. 2022; Nichol & Dhariwal 2021, equation 17; Chen 2023).

    Args:
        name: one of `NAMES`, ``"table"`` for a given one, or ``"edm"`` for continuous levels. ``"scaled_linear"`` with
            its default betas is that of every released Stable Diffusion.
        num_timesteps: T.
        beta_start, beta_end: ends of beta_t for ``linear``, ``scaled_linear``, ``sigmoid_betas`` (own defaults each).
        continuous: the closed form in continuous time instead of the table (``linear``, ``scaled_linear``, ``cosine``,
            ``sigmoid``).
        zero_terminal_snr: rescale the table (Lin et al. 2024); its last value is `ALPHAS_CUMPROD_FLOOR` instead of 0.
        shift: for ``flow``.
        alphas_cumprod: for ``table``: from the least noise to the most. [T]
        sigma_min, sigma_max, sigma_data: for ``edm``; 0.002, 80 and 0.5 if None.

    Raises:
        UnknownName: no such schedule.
        InvalidInput: a value out of range, or an option that the schedule does not have.
    """
    if name not in (*NAMES, "table", "edm"):
        raise unknown_name("noise schedule", name, NAMES)
    if name != "edm" and (sigma_min, sigma_max, sigma_data) != (None, None, None):
        raise InvalidInput("sigma_min, sigma_max, sigma_data", given=name, expected="the schedule 'edm'")
    if len(alphas_cumprod) != (num_timesteps if name == "table" else 0):
        raise InvalidInput(
            "alphas_cumprod", given=f"{len(alphas_cumprod)} values for {name!r}", expected="one a timestep, for 'table'"
        )
    if name in ("flow", "ve", "edm") and (continuous or zero_terminal_snr):
        raise InvalidInput("continuous, zero_terminal_snr", given=name, expected="a schedule of the vp path")
    if name not in ("linear", "scaled_linear", "sigmoid_betas") and not (beta_start is None and beta_end is None):
        raise InvalidInput("beta_start, beta_end", given=name, expected="a schedule that is defined by betas")
    if name != "flow" and shift != 1.0:
        raise InvalidInput("shift", given=(name, shift), expected="a shift of 1 for every schedule but flow")
    if name == "flow":
        return FlowMatching(shift, num_timesteps)
    if name == "ve":
        return VarianceExploding(num_timesteps=num_timesteps)
    if name == "edm":
        return EdmSchedule(sigma_min or 0.002, sigma_max or 80.0, sigma_data or 0.5, num_timesteps)
    if continuous:
        if zero_terminal_snr:
            raise InvalidInput("zero_terminal_snr", given=True, expected="False for a continuous schedule")
        return ContinuousVP(_curve(name, num_timesteps, beta_start, beta_end), num_timesteps)
    if name == "table":
        table = torch.tensor(alphas_cumprod, dtype=torch.float64)
    else:
        table = _table(name, num_timesteps, beta_start, beta_end)
    table = tables.rescale_zero_terminal_snr(table) if zero_terminal_snr else table
    # A table that ends in 0 means pure noise, an infinite sigma, which no sampler can step down from.
    return DiscreteVP(torch.where(table > 0, table, tables.ALPHAS_CUMPROD_FLOOR))


_BETA_ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid_betas": (1e-4, 0.02)}


def _ends(name: str, beta_start: float | None, beta_end: float | None) -> tuple[float, float]:
    start, end = _BETA_ENDS[name]
    return (start if beta_start is None else beta_start), (end if beta_end is None else beta_end)


def _table(name: str, num_timesteps: int, beta_start: float | None, beta_end: float | None) -> Tensor:
    if name == "cosine":
        return tables.alphas_cumprod_of(tables.cosine_betas(num_timesteps))
    if name == "sigmoid":
        return tables.sigmoid_alphas_cumprod(torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps)
    makers: dict[str, Callable[[int, float, float], Tensor]] = {
        "linear": tables.linear_betas,
        "scaled_linear": tables.scaled_linear_betas,
        "sigmoid_betas": tables.sigmoid_betas,
    }
    return tables.alphas_cumprod_of(makers[name](num_timesteps, *_ends(name, beta_start, beta_end)))


def _curve(name: str, num_timesteps: int, beta_start: float | None, beta_end: float | None) -> tables.Curve:
    if name == "cosine":
        return tables.cosine_curve()
    if name == "sigmoid":
        return tables.sigmoid_curve()
    if name == "sigmoid_betas":
        raise InvalidInput("continuous", given=name, expected="one of linear, scaled_linear, cosine, sigmoid")
    make = tables.linear_curve if name == "linear" else tables.scaled_linear_curve
    return make(num_timesteps, *_ends(name, beta_start, beta_end))
