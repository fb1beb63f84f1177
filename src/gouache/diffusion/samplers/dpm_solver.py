"""Single-step DPM solvers on levels of their own or of the list: DPM fast, DPM adaptive, singlestep DPM-Solver++."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gouache.diffusion.samplers.common import _check_count, add_noise, ancestral_split, euler_step, intervals, level
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps
from gouache.errors import InvalidInput


def dpm_fast(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """DPM-Solver-fast (Lu et al. 2022, arXiv:2206.00927, section 3.4): equal steps in log sigma, most of them of third
    order, that need as many calls as the list has steps.

    Args:
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B, ...]
        sigmas: of the list the first level, the last above 0, and the number of steps count. [n + 1]
        eta: share of fresh noise, >= 0.
        s_noise: scale of that noise.
        noise: needed where eta > 0.

    Yields:
        about a third as many steps as the list has; the last ends at the lowest level above 0, as published.
    """
    calls, top, bottom = _ends(sigmas)
    if top == bottom:
        yield _only_step(denoise, x, sigmas)
        return
    orders = fast_orders(calls)
    for i, order in enumerate(orders):
        sigma, sigma_next = (top * (bottom / top) ** (k / len(orders)) for k in (i, i + 1))
        down, up = _split_above(sigma, sigma_next, bottom, eta)
        solved = _DPMStep(denoise, x, sigma, down)
        x = add_noise(solved.of_order(order), up, noise, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, solved.denoised)


def fast_orders(calls: int) -> list[int]:
    """The orders of the steps of DPM-Solver-fast for a number of calls (Lu et al. 2022, arXiv:2206.00927, section 3.4);
    their sum is `calls`."""
    third, rest = divmod(calls, 3)
    return [3] * (third - 1) + [2, 1] if rest == 0 else [3] * third + [rest]


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise: NoiseSource | None = None,
) -> Steps:
    """DPM-Solver-12 and -23 with steps of chosen length (Lu et al. 2022, arXiv:2206.00927, appendix C). Every picture
    has its own steps, whatever else is in the batch.

    Args:
        denoise: D(x, sigma), called with one picture at a time.
        x, sigmas, eta, s_noise, noise: as `dpm_fast`; how many steps the list has doesn't matter.
        order: 2 or 3, of the better of the two solutions that are compared.
        rtol, atol: tolerance of a step's error, relative and absolute.
        h_init: first step in log sigma.
        accept_safety: least change of the step's length with which a step is accepted.

    Yields:
        accepted steps; of a batch, each picture's k-th one together, and a finished picture unchanged.
    """
    _check_count("order", order, 2, 3)
    if not h_init > 0:
        raise InvalidInput("h_init", given=h_init, expected="a number above 0")
    _, top, bottom = _ends(sigmas)
    if top == bottom:
        yield _only_step(denoise, x, sigmas)
        return
    settings = _Adaptive(denoise, order, rtol, atol, h_init, accept_safety, eta, s_noise, noise)
    pictures = [x[k : k + 1] for k in range(len(x))]
    walks = [settings.walk(one, top, bottom) for one in pictures]
    state = [Step(0, top, top, one, one) for one in pictures]
    i = 0
    while True:
        taken = [next(walk, None) for walk in walks]
        if not any(taken):
            return
        state = [new or old for new, old in zip(taken, state, strict=True)]
        now = [step for step in taken if step is not None]
        yield Step(
            i,
            max(step.sigma for step in now),
            max(step.sigma_next for step in now),
            torch.cat([step.x for step in state]),
            torch.cat([step.denoised for step in state]),
        )
        i += 1


LONGEST_WALK = 1000
"""A step of `dpm_adaptive` of this part of the whole way in log sigma is taken whatever its error."""


@dataclass(frozen=True, slots=True)
class _Adaptive:
    """Settings of `dpm_adaptive`."""

    denoise: Denoise
    order: int
    rtol: float
    atol: float
    h_init: float
    accept_safety: float
    eta: float
    s_noise: float
    noise: NoiseSource | None

    def walk(self, x: Tensor, top: float, bottom: float) -> Iterator[Step]:
        """The accepted steps of one picture."""
        sigma, h, before, i = top, self.h_init, x, 0
        shortest = math.log(top / bottom) / LONGEST_WALK
        while math.log(sigma / bottom) > 1e-5:
            sigma_next = max(bottom, sigma * math.exp(-h))
            down, up = _split_above(sigma, sigma_next, bottom, self.eta)
            solved = _DPMStep(self.denoise, x, sigma, down)
            if self.order == 2:
                low, high = solved.of_order(1), solved.of_order(2)
            else:
                low, high = solved.second(1 / 3), solved.of_order(3)
            allowed = (self.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=self.atol)
            error = float(((low - high) / allowed).square().mean().sqrt())
            # An integral controller: its exponent is one over the order, or over 3/2 with noise; arctan limits it.
            raw = (1 / (error + 1e-8)) ** (1 / (1.5 if self.eta > 0 else self.order))
            factor = 1 + math.atan(raw - 1) if math.isfinite(error) else 1 + math.pi / 2
            # A network that isn't smooth, or whose answer isn't finite, must not hold the walk up for ever.
            if factor >= self.accept_safety or h <= shortest:
                before = low
                x = add_noise(high, up, self.noise, sigma, sigma_next, s_noise=self.s_noise)
                yield Step(i, sigma, sigma_next, x, solved.denoised)
                sigma, i = sigma_next, i + 1
            h *= factor


@dataclass(slots=True)
class _DPMStep:
    """DPM-Solver-1, -2 and -3 over one step, Algorithms 1 and 2 and equation 3.7 (Lu et al. 2022, arXiv:2206.00927);
    they share their calls."""

    denoise: Denoise
    x: Tensor
    sigma: float
    sigma_next: float
    denoised: Tensor = field(init=False)
    _eps: Tensor = field(init=False)
    _first: dict[float, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.denoised = self.denoise(self.x, level(self.sigma))
        self._eps = (self.x - self.denoised) / self.sigma

    def of_order(self, order: int) -> Tensor:
        """The state at sigma_next."""
        if order == 1:
            return self._straight(self.sigma_next)
        return self.second(1 / 2) if order == 2 else self._third()

    def second(self, r: float) -> Tensor:
        """DPM-Solver-2 with its second call at r of the step in log sigma."""
        change = self._difference_at(r) / (2 * r)
        return self._straight(self.sigma_next) + (self.sigma_next - self.sigma) * change

    def _third(self) -> Tensor:
        r, h = 2 / 3, math.log(self.sigma / self.sigma_next)
        place = self._between(r)
        change = self._difference_at(1 / 3)
        state = self._straight(place) - (place * 2 * (math.expm1(r * h) / (r * h) - 1)) * change
        change = self._eps_at(state, place) - self._eps
        return self._straight(self.sigma_next) - (self.sigma_next / r * (math.expm1(h) / h - 1)) * change

    def _between(self, r: float) -> float:
        return math.pow(self.sigma, 1 - r) * math.pow(self.sigma_next, r)

    def _straight(self, place: float) -> Tensor:
        return self.x + (place - self.sigma) * self._eps

    def _difference_at(self, r: float) -> Tensor:
        """How far eps changes up to r of the step."""
        if r not in self._first:
            place = self._between(r)
            self._first[r] = self._eps_at(self._straight(place), place) - self._eps
        return self._first[r]

    def _eps_at(self, x: Tensor, place: float) -> Tensor:
        return (x - self.denoise(x, level(place))) / place


def dpmpp_singlestep(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2) -> Steps:
    """Singlestep DPM-Solver++ over the list's own levels, Algorithm 1 and equation 3.1 (Lu et al. 2022,
    arXiv:2211.01095): the levels between are the list's, so n steps are n calls.

    Args:
        denoise, x: as `dpm_fast`.
        sigmas: descending noise levels; each block of `order` intervals is one step of the solver. [n + 1]
        order: 1 .. 3; lower at the end, where the list ends at zero or is no multiple of it.

    Yields:
        states at every level of the list; within a block they are of lower order.
    """
    _check_count("order", order, 1, 3)
    levels: list[float] = sigmas.tolist()
    orders = singlestep_orders(len(levels) - 1, order, to_zero=levels[-1] == 0)
    start = x
    block: list[tuple[float, Tensor]] = []  # (sigma, D) since the block began
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if orders[i] == 1:
            start, block = x, []
        block.append((sigma, denoised))
        x = _block_step(start, block, sigma_next)
        yield Step(i, sigma, sigma_next, x, denoised)


def singlestep_orders(steps: int, order: int, *, to_zero: bool) -> list[int]:
    """Which order each interval of `dpmpp_singlestep` reaches (Lu et al. 2022, arXiv:2211.01095, section 3): 1, 2 .. in
    every block, and lower orders in what is left over, so that the last call is never wasted on a step to zero."""
    whole, rest = divmod(steps, order)
    if rest == 0 and to_zero and order > 1:
        # The last block would have to solve to zero with high order, where lambda is infinite.
        whole, left = whole - 1, [1, 2, 1] if order == 3 else [1, 1]
    else:
        left = {1: [1], 2: [1, 2]}.get(rest, [])
    orders = [k for _ in range(whole) for k in range(1, order + 1)] + left
    if to_zero:
        orders[-1] = 1
    return orders


def _block_step(start: Tensor, block: list[tuple[float, Tensor]], sigma_next: float) -> Tensor:
    """From the block's first level to sigma_next: D constant, taken half way, or integrated along its line."""
    sigma, denoised = block[0]
    base = euler_step(start, denoised, sigma, sigma_next)
    if len(block) == 1:
        return base
    h = math.log(sigma / sigma_next)
    place, newest = block[-1]
    slope = (newest - denoised) * (h / math.log(sigma / place))
    weight = -math.expm1(-h) / 2 if len(block) == 2 else math.expm1(-h) / h + 1
    return base + weight * slope


def _ends(sigmas: Tensor) -> tuple[int, float, float]:
    """Number of steps, first level, last level above 0."""
    levels: list[float] = sigmas.tolist()
    return len(levels) - 1, levels[0], levels[-1] or levels[-2]


def _only_step(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Step:
    """A list of one step to zero leaves nothing to choose: it lands on D."""
    denoised = denoise(x, level(float(sigmas[0])))
    return Step(0, float(sigmas[0]), 0.0, denoised, denoised)


def _split_above(sigma: float, sigma_next: float, bottom: float, eta: float) -> tuple[float, float]:
    """`ancestral_split` that does not solve below the lowest level."""
    down, _ = ancestral_split(sigma, sigma_next, eta)
    down = max(down, bottom)
    return down, math.sqrt(max(sigma_next**2 - down**2, 0.0))
