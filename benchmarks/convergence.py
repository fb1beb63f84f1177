"""Measured order of convergence of every sampler on distributions whose denoiser is known exactly.

    python benchmarks/convergence.py

prints two tables and writes them to docs/convergence.md. `tests/diffusion/samplers/test_convergence.py` holds
them true.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gouache.diffusion.samplers.registry import Option, sample
from gouache.diffusion.samplers.step import NoiseSource

COUNTS = (20, 40, 80, 160)
SIGMA_MAX, SIGMA_MIN = 4.0, 0.2

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[0.8, 0.4], [-0.9, 0.1], [0.2, -1.1]], dtype=torch.float64)
STDS = torch.tensor([[0.3, 0.2], [0.15, 0.35], [0.25, 0.25]], dtype=torch.float64)
DATA_VARIANCE = 0.25


@dataclass(frozen=True)
class Case:
    """A sampler with its options, and the order that is expected of it.

    `graded` puts short steps in front, so that a multistep method does not owe its start to a lower order. `counts` are
    other numbers of steps, each of which makes twice the blocks of the one before.
    """

    sampler: str
    order: int
    options: dict[str, Option] = field(default_factory=dict)
    graded: bool = False
    counts: tuple[int, ...] = COUNTS

    @property
    def label(self) -> str:
        """The sampler with its options, as one line."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        counts = "" if self.counts == COUNTS else f", {', '.join(map(str, self.counts))} steps"
        return f"{self.sampler}({options})" + " after a graded start" * self.graded + counts


DETERMINISTIC = (
    Case("euler", 1),
    Case("ddim", 1),
    Case("ddim_inversion", 1),
    Case("heun", 2),
    Case("dpm_2", 2),
    Case("dpmpp_2s", 2),
    Case("dpmpp_2m", 2),
    Case("plms", 2),
    Case("lms", 2, {"order": 2}),
    Case("lms", 3, {"order": 3}, graded=True),
    Case("lms", 4, {"order": 4}, graded=True),
    Case("deis", 2),
    Case("deis", 3, {"order": 3}, graded=True),
    Case("unipc_bh2", 2),
    Case("unipc_bh1", 2),
    Case("unipc_bh2", 3, {"order": 2, "lower_order_final": False}),
    Case("unipc_bh2", 4, {"order": 3, "lower_order_final": False}),
    Case("euler_ancestral", 1, {"eta": 0.0}),
    Case("dpm_2_ancestral", 2, {"eta": 0.0}),
    Case("dpmpp_2s_ancestral", 2, {"eta": 0.0}),
    Case("dpmpp_sde", 2, {"eta": 0.0}),
    Case("dpmpp_2m_sde", 2, {"eta": 0.0}),
    Case("dpmpp_2m_sde_heun", 2, {"eta": 0.0}),
    Case("dpmpp_3m_sde", 2, {"eta": 0.0}),
    Case("dpmpp_3m_sde", 3, {"eta": 0.0, "curvature": "exact"}, graded=True),
    Case("restart", 2, {"restarts": ()}),
    Case("tcd", 1, {"eta": 0.0}),
    Case("euler_cfg_pp", 1),
    Case("euler_ancestral_cfg_pp", 1, {"eta": 0.0}),
    Case("ddim_cfg_pp", 1),
    Case("dpmpp_2m_cfg_pp", 2),
    Case("dpmpp_2s_ancestral_cfg_pp", 2, {"eta": 0.0}),
    Case("dpmpp_singlestep", 2),
    Case("dpmpp_singlestep", 3, {"order": 3}, counts=(30, 60, 120, 240)),
    Case("dpm_fast", 3, counts=(20, 41, 83, 167)),
    Case("heunpp2", 1),
    Case("pndm_prk", 2),
    Case("ipndm", 2),
    Case("ipndm_v", 2),
    Case("ipndm_v", 4, {"weights": "exact"}, graded=True),
    Case("sa_solver", 4, {"eta": 0.0}),
    Case("sa_solver", 2, {"eta": 0.0, "predictor_order": 2, "corrector_order": 2}),
    Case("sa_solver_pece", 4, {"eta": 0.0}),
    Case("sa_solver_2", 2, {"eta": 0.0}),
    Case("gradient_estimation", 1),
    Case("gradient_estimation_cfg_pp", 1),
    Case("res_multistep", 2),
    Case("res_multistep_cfg_pp", 2),
    Case("res_multistep_ancestral", 2, {"eta": 0.0}),
    Case("res_multistep_ancestral_cfg_pp", 2, {"eta": 0.0}),
    Case("seeds_2", 2, {"eta": 0.0}),
    Case("seeds_3", 3, {"eta": 0.0}),
    Case("exp_heun_2_x0", 2),
    Case("exp_heun_2_x0_sde", 2, {"eta": 0.0}),
)

STOCHASTIC = (
    Case("ddpm", 1),
    Case("ddpm", 1, {"variance": "fixed_large"}),
    Case("ddim", 1, {"eta": 1.0}),
    Case("euler_ancestral", 1),
    Case("dpm_2_ancestral", 2),
    Case("dpmpp_2s_ancestral", 2),
    Case("dpmpp_sde", 2),
    Case("dpmpp_sde", 1, {"one_path": False}),
    Case("dpmpp_2m_sde", 2),
    Case("dpmpp_2m_sde_heun", 2),
    Case("dpmpp_3m_sde", 2),
    Case("dpmpp_3m_sde", 2, {"curvature": "exact"}),
    Case("restart", 2),
    Case("euler", 1, {"s_churn": 4.0}),
    Case("heun", 2, {"s_churn": 4.0}),
    Case("heunpp2", 1, {"s_churn": 4.0}),
    Case("euler_ancestral_cfg_pp", 1),
    Case("ddim_cfg_pp", 1, {"eta": 1.0}),
    Case("dpmpp_2s_ancestral_cfg_pp", 2),
    Case("dpm_fast", 3, {"eta": 1.0}, counts=(20, 41, 83, 167)),
    Case("sa_solver", 2),
    Case("sa_solver_pece", 2),
    Case("sa_solver_2", 2),
    Case("res_multistep_ancestral", 2),
    Case("res_multistep_ancestral_cfg_pp", 2),
    Case("er_sde", 1),
    Case("seeds_2", 2),
    Case("seeds_2", 2, {"solver_type": "phi_2"}),
    Case("seeds_3", 2),
    Case("exp_heun_2_x0_sde", 2),
)


def mixture_denoise(x: Tensor, sigma: Tensor | float) -> Tensor:
    """E[x0 | x] for the mixture of three Gaussians in the plane. [B, 2]"""
    variances = STDS**2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2  # [3, 2]
    offsets = x[:, None] - MEANS  # [B, 3, 2]
    logs = WEIGHTS.log() - (offsets**2 / variances + variances.log()).sum(-1) / 2  # [B, 3]
    return (logs.softmax(1)[..., None] * (MEANS + STDS**2 / variances * offsets)).sum(1)


def gaussian_denoise(x: Tensor, sigma: Tensor | float) -> Tensor:
    """E[x0 | x] for N(0, DATA_VARIANCE): linear in x."""
    return x * (DATA_VARIANCE / (DATA_VARIANCE + sigma**2))


def levels(n: int, *, graded: bool = False) -> Tensor:
    """n steps between two levels above 0, equal in sigma^(1/3); optionally the first one cut by halving. [n + 1]"""
    sigmas = torch.linspace(SIGMA_MAX ** (1 / 3), SIGMA_MIN ** (1 / 3), n + 1, dtype=torch.float64) ** 3
    if not graded:
        return sigmas
    first, second = sigmas[0].log(), sigmas[1].log()
    cuts = [((second - first) / 2**k + first).exp()[None] for k in range(8, 0, -1)]
    return torch.cat([sigmas[:1], *cuts, sigmas[1:]])


def start() -> Tensor:
    """Sixty-four points of the plane at SIGMA_MAX. [64, 2]"""
    return SIGMA_MAX * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def reference(x: Tensor, sigmas: Tensor) -> Tensor:
    """The ODE carried along `sigmas` by the classical Runge-Kutta method of order four."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - mixture_denoise(x, sigma)) / sigma

    for now, then in pairwise(sigmas):
        h, middle = then - now, (now + then) / 2
        k1 = slope(x, now)
        k2 = slope(x + h / 2 * k1, middle)
        k3 = slope(x + h / 2 * k2, middle)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, then))
    return x


@cache
def ends() -> tuple[Tensor, Tensor]:
    """The starting points and where the ODE takes them, to about 1e-9."""
    return start(), reference(start(), levels(600))


def path_errors(case: Case, counts: Sequence[int] | None = None) -> list[float]:
    """Root mean square distance from the ODE's solution for each number of steps."""
    top, bottom = ends()
    upwards = case.sampler == "ddim_inversion"
    begin, end = (bottom, top) if upwards else (top, bottom)
    errors = []
    for n in counts or case.counts:
        *_, last = sample(case.sampler, mixture_denoise, begin, levels(n, graded=case.graded), options=case.options)
        errors.append(float((last.x - end).square().mean().sqrt()))
    return errors


def independent_axes(number: int) -> tuple[Tensor, NoiseSource]:
    """A state on an axis of its own [1, axes], of the variance at SIGMA_MAX, and a source of noise on further axes."""
    axes = torch.eye(number, dtype=torch.float64)
    unused = iter(axes[1:])
    return axes[:1] * math.sqrt(DATA_VARIANCE + SIGMA_MAX**2), lambda *_: next(unused)[None]


def variance_errors(case: Case, counts: Sequence[int] | None = None) -> list[float]:
    """Relative error of the result's variance for Gaussian data, without any chance.

    Every update is linear there. The state holds the weights of the independent noises drawn so far, each on an axis of
    its own, so that the sum of its squares is the exact variance.
    """
    errors = []
    for n in counts or case.counts:
        x, noise = independent_axes(3 * n + 1)
        *_, last = sample(case.sampler, gaussian_denoise, x, levels(n), options=case.options, noise=noise)
        errors.append(abs(float(last.x.square().sum()) / (DATA_VARIANCE + SIGMA_MIN**2) - 1))
    return errors


def orders(errors: Sequence[float]) -> list[float]:
    """log2 of how much each doubling of the steps gains."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def table(cases: Sequence[Case], errors: Sequence[Sequence[float]]) -> str:
    """A Markdown table of errors and measured orders."""
    counts = " | ".join(f"{n} steps" for n in COUNTS)
    lines = [f"| sampler | {counts} | measured order | expected |", "|---|" + "---:|" * (len(COUNTS) + 2)]
    for case, row in zip(cases, errors, strict=True):
        cells = " | ".join(f"{error:.2e}" for error in row)
        lines.append(f"| `{case.label}` | {cells} | {orders(row)[-1]:.2f} | {case.order} |")
    return "\n".join(lines)


PAGE = """# Measured order of convergence

Written by `python benchmarks/convergence.py`; `tests/diffusion/samplers/test_convergence.py` holds the samplers to it.

Between two levels above zero (sigma {top} to {bottom}), doubling the number of steps divides the error by 2 to the
power of the order. The measured order is that of the last doubling.

## On the ODE

Mixture of three Gaussians in the plane, closed-form denoiser, 64 starting points. Error: root mean square distance
from the exact path's end. Samplers with an eta run with eta = 0 here.

{paths}

- A multistep sampler starts with lower-order steps, and one first-order step leaves an error of second order. That is
  why some are listed after a graded start (the first step cut by halving): it shows the order of the method itself.
  From a cold start they all end at 2 for very many steps, with a small constant.
- `unipc_bh1` and `unipc_bh2` with `lower_order_final` take the last step by the first-order predictor alone: 2.
  Without it the corrector gains one order over the predictor.
- `plms` uses the weights of equal steps on unequal ones: 2, not 4 (its paper says so too).
- `dpmpp_3m_sde` as published (k-diffusion, diffusers and the authors' code agree) takes D's second divided difference
  for its second derivative, which is twice that. For this reason it is of second order; `curvature=exact` is of third.
- `ipndm_v` as published (its authors' program and others after it) weighs the third and fourth value wrongly where
  steps are unequal: second order. `weights=exact` is of fourth.
- `ipndm` and `pndm_prk` take the weights of equal steps, as `plms` does: second order whatever their start.
- `heunpp2` gives the slopes ahead the weight sigma / (3 sigma_0), which is not a quadrature rule: first order.
- `gradient_estimation` extrapolates twice as far as the second-order rule (gamma 3/2 on equal steps): first order.
- `dpm_fast` ends on a step of order 1 or 2 that is as long as the others: third order where n leaves 2 when divided by
  3, as here, second otherwise. `dpm_adaptive` has a tolerance in place of a number of steps, and a test of its own.
- The samplers of CFG++ are measured without guidance, where they are the ones that they are named after.

## On the variance

Data N(0, {data}). Every update is linear, so the variance of the result is computed exactly, without sampling: the
state holds the weight of each independent noise. Error: relative, of the variance at sigma {bottom}.

{variances}

- An ancestral step solves the ODE down to a lower level and adds noise up to the wanted one. Both parts keep the
  distribution, so the variance is as exact as the solver in between: 1 for `euler_ancestral`, 2 for the others.
- `dpmpp_sde` takes noise twice a step, for overlapping intervals. Made parts of one Brownian path (the default here,
  and k-diffusion's) its variance is of second order; drawn independently, as diffusers' single-step scheduler does, of
  first.
- `er_sde` integrates its noise scale by a sum of 200 parts, as published; that leaves an error of first order with a
  very small constant.
- `tcd` goes far below the next level and takes noise back, at every step: more steps don't make it converge. With eta
  0 it is Euler's method, with eta 1 `lcm`.
- Restarts go down the list's own levels again, so they are as exact as the list.
"""


def main() -> None:
    """Print both tables and write the page."""
    paths = table(DETERMINISTIC, [path_errors(case) for case in DETERMINISTIC])
    variances = table(STOCHASTIC, [variance_errors(case) for case in STOCHASTIC])
    page = PAGE.format(top=SIGMA_MAX, bottom=SIGMA_MIN, data=DATA_VARIANCE, paths=paths, variances=variances)
    sys.stdout.write(f"{paths}\n\n{variances}\n")
    (Path(__file__).parents[1] / "docs" / "convergence.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
