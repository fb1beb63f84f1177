"""Every sampler converges at its order: towards the ODE's path, and towards the data's variance."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gouache.diffusion.samplers.names import SAMPLER_INFOS
from gouache.diffusion.samplers.registry import sample

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture, OneGaussian

ROOT = Path(__file__).parents[3]


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("convergence_benchmark", path)
    assert spec is not None, f"no file {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK = _load(ROOT / "benchmarks" / "convergence.py")


@pytest.mark.parametrize("case", BENCHMARK.DETERMINISTIC, ids=lambda case: case.label)
def test_order_on_the_path(case: Any) -> None:
    errors = BENCHMARK.path_errors(case)
    assert errors[-1] < errors[0] < 0.5
    assert abs(BENCHMARK.orders(errors)[-1] - case.order) < 0.3


@pytest.mark.parametrize("case", BENCHMARK.STOCHASTIC, ids=lambda case: case.label)
def test_order_of_the_variance(case: Any) -> None:
    errors = BENCHMARK.variance_errors(case)
    assert errors[-1] < errors[0] < 0.2
    assert BENCHMARK.orders(errors)[-1] > case.order - 0.3
    assert errors[-1] < (0.03 if case.order == 1 else 0.001)


def test_every_sampler_is_measured() -> None:
    measured = {case.sampler for case in (*BENCHMARK.DETERMINISTIC, *BENCHMARK.STOCHASTIC)}
    assert measured == set(SAMPLER_INFOS) - {"lcm", "dpm_adaptive"}, "lcm follows no ODE; both have tests of their own"


def test_the_table_of_samplers_states_the_measured_order() -> None:
    """With its defaults and from a cold start; `lms`, whose order is an option, starts with one step of first order."""
    plain = [case for case in (*BENCHMARK.DETERMINISTIC, *BENCHMARK.STOCHASTIC) if not case.options]
    for case in plain:
        assert SAMPLER_INFOS[case.sampler].order == case.order, case.sampler
    errors = BENCHMARK.path_errors(BENCHMARK.Case("lms", 2), (320, 640))
    assert abs(BENCHMARK.orders(errors)[0] - SAMPLER_INFOS["lms"].order) < 0.3


def test_the_stored_table_is_the_measured_one() -> None:
    """The page's figures for two cheap samplers, digit for digit."""
    page = (ROOT / "docs" / "convergence.md").read_text(encoding="utf-8")
    for case in (BENCHMARK.Case("euler", 1), BENCHMARK.Case("dpmpp_2m", 2)):
        row = BENCHMARK.table([case], [BENCHMARK.path_errors(case)]).splitlines()[-1]
        assert row in page, f"run `python benchmarks/convergence.py`: {row}"


def test_the_benchmark_has_the_same_mixture(mixture: GaussianMixture) -> None:
    x = BENCHMARK.start()
    torch.testing.assert_close(BENCHMARK.mixture_denoise(x, 0.7), mixture.denoise(x, 0.7))


def test_dpm_adaptive_converges_with_its_tolerance(mixture: GaussianMixture) -> None:
    """A hundredth of the tolerance: at least ten times the accuracy, with at most 100^(1/3) = 4.6 times the calls."""
    top, bottom = BENCHMARK.ends()
    errors, calls = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        seen = 0

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += 1
            return mixture.denoise(x, sigma)

        options = {"rtol": tolerance, "atol": tolerance}
        *_, last = sample("dpm_adaptive", denoise, top[:4], BENCHMARK.levels(2), options=options)
        errors.append(float((last.x - bottom[:4]).square().mean().sqrt()))
        calls.append(seen)
    assert errors[0] < 0.05
    assert all(coarse / fine > 10 for coarse, fine in pairwise(errors)), errors
    assert all(fine / coarse < 6 for coarse, fine in pairwise(calls)), calls
    order = math.log(errors[0] / errors[-1]) / math.log(calls[-1] / calls[0])
    assert order > SAMPLER_INFOS["dpm_adaptive"].order - 0.3


@pytest.mark.parametrize("name", sorted(set(SAMPLER_INFOS) - {"lcm", "ddim_inversion"}))
def test_a_gaussian_reaches_its_mean_at_zero(name: str, gaussian: OneGaussian) -> None:
    """With the last step to 0 the result is finite, and D of the state before it (a known fault of last steps)."""
    levels = torch.tensor([8.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    x = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    steps = list(
        sample(
            name,
            gaussian.denoise,
            x,
            levels,
            noise=lambda x, *_: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        )
    )
    # Those with levels of their own end at the last one above 0, as their authors' code does.
    assert [step.sigma_next for step in steps][-1] == (0.5 if SAMPLER_INFOS[name].own_levels else 0)
    if name in ("lms", "plms", "pndm_prk") or SAMPLER_INFOS[name].own_levels:  # they extrapolate eps over the last step
        assert bool(steps[-1].x.isfinite().all())
    else:
        torch.testing.assert_close(steps[-1].x, steps[-1].denoised)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_lcm_on_an_exact_consistency_function(n: int, gaussian: OneGaussian) -> None:
    """With f(x, sigma) = the ODE's end, any number of steps gives the data's mean and variance."""
    levels = torch.tensor([10.0, 3.0, 1.0, 0.3], dtype=torch.float64)[:n]
    mean, variance = gaussian.means[0], gaussian.stds[0] ** 2
    axes = torch.eye(n, dtype=torch.float64)
    weights = iter(axes[1:])
    # Two pictures a noise: the first row carries the mean, the others the weights of the independent noises.
    start = torch.cat([mean[None], axes[0][:, None] * (variance + levels[0] ** 2).sqrt()])  # [1 + n, 2]

    def consistent(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        shrink = (variance / (variance + sigma**2)).sqrt()
        return torch.cat([mean + (x[:1] - mean) * shrink, x[1:] * shrink])

    def noise(x: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
        del sigma, sigma_next
        return torch.cat([torch.zeros_like(x[:1]), next(weights)[:, None].expand(-1, 2)])

    *_, last = sample("lcm", consistent, start, [*levels.tolist(), 0.0], noise=noise)
    torch.testing.assert_close(last.x[0], mean)
    torch.testing.assert_close((last.x[1:] ** 2).sum(0), variance)


@pytest.mark.parametrize("iterations", [0, 60])
def test_inversion_and_back(iterations: int, mixture: GaussianMixture) -> None:
    """Iterated to its fixed point, inversion is undone by ddim exactly; without, up to the step's error."""
    levels = torch.linspace(4.0 ** (1 / 3), 0.0, 41, dtype=torch.float64) ** 3
    x = mixture.sample(50, torch.Generator().manual_seed(4))
    *_, top = sample("ddim_inversion", mixture.denoise, x, levels, options={"iterations": iterations})
    *_, back = sample("ddim", mixture.denoise, top.x, levels)
    worst = float((back.x - x).abs().max())
    assert worst < (1e-9 if iterations else 0.5), worst
