"""Noise schedules: which noise level belongs to which time, discrete or continuous, on one footing (`process`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from gouache.diffusion import betas as tables
from gouache.diffusion.process import NoiseSchedule, Path, _as_double, _range_of, alpha_and_std
from gouache.errors import InvalidInput, unknown_name

__all__ = [
    "NAMES",
    "ContinuousVP",
    "DiscreteVP",
    "FlowMatching",
    "NoiseSchedule",
    "Path",
    "VarianceExploding",
    "alpha_and_std",
    "make_noise_schedule",
]


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
        return t.floor().long().clamp(0, self.num_timesteps - 2)

    def _sigma(self, t: Tensor) -> Tensor:
        low = self._cell(t)
        return torch.lerp(self._log_sigmas[low], self._log_sigmas[low + 1], t - low).exp()

    def _time(self, sigma: Tensor) -> Tensor:
        log_sigma = sigma.log().clamp(self._log_sigmas[0], self._log_sigmas[-1])
        low = (torch.searchsorted(self._log_sigmas, log_sigma) - 1).clamp(0, self.num_timesteps - 2)
        start, end = self._log_sigmas[low], self._log_sigmas[low + 1]
        return low + (log_sigma - start) / (end - start)

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        low = self._cell(t)
        return self._log_sigmas[low + 1] - self._log_sigmas[low]


class FlowMatching(NoiseSchedule):
    """Rectified flow, x_f = (1 - f) x0 + f eps with f in (0, 1) (Liu et al. 2022, arXiv:2209.03003, equation 1).

    The network is told t = T f. `shift` moves the table's levels towards noise, f' = shift f / (1 + (shift - 1) f)
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
        return torch.expm1(-2 * self._curve.log_alpha(self._fraction(t))).sqrt()

    def _time(self, sigma: Tensor) -> Tensor:
        return self.num_timesteps * self._curve.inverse(-torch.log1p(sigma**2) / 2) - 1

    def _dlog_sigma(self, t: Tensor) -> Tensor:
        s = self._fraction(t)
        return self._curve.slope(s) / torch.expm1(2 * self._curve.log_alpha(s)) / self.num_timesteps


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
) -> NoiseSchedule:
    """Build a schedule by name (Ho et al. 2020; Rombach et al. 2022; Nichol & Dhariwal 2021, equation 17; Chen 2023).

    Args:
        name: one of `NAMES`, or ``"table"`` for a given one. ``"scaled_linear"`` with its default betas is that of
            every released Stable Diffusion.
        num_timesteps: T.
        beta_start, beta_end: ends of beta_t for ``linear``, ``scaled_linear``, ``sigmoid_betas`` (own defaults each).
        continuous: the closed form in continuous time instead of the table (``linear``, ``scaled_linear``, ``cosine``,
            ``sigmoid``).
        zero_terminal_snr: rescale the table (Lin et al. 2024); its last value is `ALPHAS_CUMPROD_FLOOR` instead of 0.
        shift: for ``flow``.
        alphas_cumprod: for ``table``: from the least noise to the most. [T]

    Raises:
        UnknownName: no such schedule.
        InvalidInput: a value out of range, or an option that the schedule does not have.
    """
    if name not in (*NAMES, "table"):
        raise unknown_name("noise schedule", name, NAMES)
    if len(alphas_cumprod) != (num_timesteps if name == "table" else 0):
        raise InvalidInput(
            "alphas_cumprod", given=f"{len(alphas_cumprod)} values for {name!r}", expected="one a timestep, for 'table'"
        )
    if name in ("flow", "ve") and (continuous or zero_terminal_snr):
        raise InvalidInput("continuous, zero_terminal_snr", given=name, expected="a schedule of the vp path")
    if name not in ("linear", "scaled_linear", "sigmoid_betas") and not (beta_start is None and beta_end is None):
        raise InvalidInput("beta_start, beta_end", given=name, expected="a schedule that is defined by betas")
    if name != "flow" and shift != 1.0:
        raise InvalidInput("shift", given=(name, shift), expected="a shift of 1 for every schedule but flow")
    if name == "flow":
        return FlowMatching(shift, num_timesteps)
    if name == "ve":
        return VarianceExploding(num_timesteps=num_timesteps)
    if continuous:
        if zero_terminal_snr:
            raise InvalidInput("zero_terminal_snr", given=True, expected="False for a continuous schedule")
        return ContinuousVP(_curve(name, num_timesteps, beta_start, beta_end), num_timesteps)
    if name == "table":
        table = torch.tensor(alphas_cumprod, dtype=torch.float64)
    else:
        table = _table(name, num_timesteps, beta_start, beta_end)
    table = tables.rescale_zero_terminal_snr(table) if zero_terminal_snr else table
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
