"""Every sampler and list that k-diffusion 0.1.1 has, step by step against its own functions, in fp64.

Its package asks for torchvision, torchsde and torchdiffeq at import, which its samplers do not use when noise is given:
`sampling.py` alone is loaded, by its path, with empty stand-ins for them.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.samplers.registry import Option, sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.diffusion.samplers.step import NoiseSource

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture

PACKAGE = importlib.util.find_spec("k_diffusion")
pytestmark = [
    pytest.mark.skipif(PACKAGE is None, reason="k-diffusion is not installed (pip install --no-deps k-diffusion)"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
BOUND = 1e-10


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    """k_diffusion/sampling.py."""
    assert PACKAGE is not None, "skipped otherwise"
    assert PACKAGE.origin is not None, "k_diffusion has no file"
    path = Path(PACKAGE.origin).with_name("sampling.py")
    utils = types.ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *(1 for _ in range(ndim - x.ndim)))  # type: ignore[attr-defined]
    parent = types.ModuleType("k_diffusion_alone")
    parent.utils = utils  # type: ignore[attr-defined]
    parent.__path__ = []
    torchdiffeq = types.ModuleType("torchdiffeq")
    torchdiffeq.odeint = None  # type: ignore[attr-defined]
    stand_ins = {
        "k_diffusion_alone": parent,
        "k_diffusion_alone.utils": utils,
        "torchdiffeq": torchdiffeq,
        "torchsde": types.ModuleType("torchsde"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
        assert spec is not None, "no such file"
        assert spec.loader is not None, "no loader"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def drawer() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(8)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def source() -> NoiseSource:
    draw = drawer()
    return lambda x, *_: draw(x)


CHURN: dict[str, Option] = {"s_churn": 7.0, "s_tmin": 0.3, "s_tmax": 8.0, "s_noise": 1.003}
PLAIN: list[tuple[str, dict[str, Option]]] = [
    ("euler", {}),
    ("heun", {}),
    ("dpm_2", {}),
    ("lms", {}),
    ("lms", {"order": 2}),
    ("dpmpp_2m", {}),
]
RANDOM: list[tuple[str, dict[str, Option]]] = [
    ("euler_ancestral", {"eta": 1.0}),
    ("euler_ancestral", {"eta": 0.4, "s_noise": 0.9}),
    ("dpm_2_ancestral", {"eta": 1.0}),
    ("dpm_2_ancestral", {"eta": 0.5, "s_noise": 1.1}),
    ("dpmpp_2s_ancestral", {"eta": 1.0}),
    ("dpmpp_2s_ancestral", {"eta": 0.0}),
    ("dpmpp_sde", {}),
    ("dpmpp_sde", {"eta": 0.5, "r": 0.3, "s_noise": 0.9}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.7, "s_noise": 1.1}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_3m_sde", {"eta": 0.3, "s_noise": 0.9}),
]
lists = pytest.mark.parametrize("list_name", ["karras", "uniform", "exponential"])
counts = pytest.mark.parametrize("n", [3, 8, 21])


def compare(
    peer: Any,
    mixture: GaussianMixture,
    name: str,
    options: dict[str, Option],
    list_name: str,
    n: int,
    noise: NoiseSource | None,
    arguments: dict[str, Any],
) -> None:
    """The denoised estimate of every step, and the last state."""
    levels = make_sigmas(list_name, make_noise_schedule("scaled_linear"), n)
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * levels[0]
    theirs: list[Tensor] = []
    result = getattr(peer, f"sample_{name}")(
        lambda x, sigma: mixture.denoise(x, sigma[0]),
        x,
        levels,
        disable=True,
        callback=lambda info: theirs.append(info["denoised"]),
        **arguments,
        **options,
    )
    if name == "dpmpp_sde":
        options = {**options, "one_path": False}  # both sides take the noise as it comes
    steps = list(sample(name, mixture.denoise, x, levels, options=options, noise=noise))
    assert len(steps) == len(theirs) == n
    worst = max(float((step.denoised - other).abs().max()) for step, other in zip(steps, theirs, strict=True))
    worst = max(worst, float((steps[-1].x - result).abs().max()))
    assert worst <= BOUND, f"states differ by {worst:.2e}"


@counts
@lists
@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_deterministic(
    peer: Any, name: str, options: dict[str, Option], list_name: str, n: int, picture_mixture: GaussianMixture
) -> None:
    compare(peer, picture_mixture, name, options, list_name, n, None, {})


@counts
@lists
@pytest.mark.parametrize(("name", "options"), RANDOM)
def test_random(
    peer: Any, name: str, options: dict[str, Option], list_name: str, n: int, picture_mixture: GaussianMixture
) -> None:
    draw = drawer()
    arguments = {"noise_sampler": lambda *_: draw(torch.empty(2, 4, 2, 2, dtype=torch.float64))}
    compare(peer, picture_mixture, name, options, list_name, n, source(), arguments)


@counts
@lists
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn(
    peer: Any, name: str, list_name: str, n: int, picture_mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k-diffusion draws noise on every step, used or not; ours only where it is used."""
    levels = make_sigmas(list_name, make_noise_schedule("scaled_linear"), n)[:-1].tolist()
    used = [0.3 <= level <= 8.0 for level in levels]
    draw = drawer()
    pool = [draw(torch.empty(2, 4, 2, 2, dtype=torch.float64)) for _ in range(n)]
    theirs, mine = iter(pool), iter(itertools.compress(pool, used))
    monkeypatch.setattr(torch, "randn_like", lambda *_: next(theirs))
    compare(peer, picture_mixture, name, CHURN, list_name, n, lambda *_: next(mine), {})


@pytest.fixture
def _numbers_are_fp64() -> Iterator[None]:
    """Its DPM solvers make tensors of plain numbers, in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_numbers_are_fp64")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 10, 21])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpm_fast(peer: Any, eta: float, n: int, picture_mixture: GaussianMixture) -> None:
    """Every number of calls modulo 3; it ends at the lowest level, as theirs does."""
    levels = make_sigmas("uniform", make_noise_schedule("scaled_linear"), max(n, 2))
    levels = torch.cat([levels[:1], levels[-2:]]) if n < 3 else levels
    levels = torch.cat([levels[:1], levels[-2:-1]]) if n == 1 else levels
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * levels[0]
    low = float(levels[levels > 0][-1])
    draw = drawer()
    theirs = peer.sample_dpm_fast(
        lambda x, sigma: picture_mixture.denoise(x, sigma[0]),
        x,
        low,
        float(levels[0]),
        len(levels) - 1,
        disable=True,
        eta=eta,
        noise_sampler=lambda *_: draw(x),
    )
    *_, last = sample("dpm_fast", picture_mixture.denoise, x, levels, options={"eta": eta}, noise=source())
    assert last.sigma_next == pytest.approx(low)
    assert float((last.x - theirs).abs().max()) <= BOUND


@pytest.mark.usefixtures("_numbers_are_fp64")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("rtol", "atol"), [(0.05, 0.0078), (0.001, 0.001)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_adaptive(
    peer: Any, eta: float, rtol: float, atol: float, order: int, picture_mixture: GaussianMixture
) -> None:
    """One picture: of several, theirs measures the error over all, so that a picture depends on its batch."""
    levels = make_sigmas("uniform", make_noise_schedule("scaled_linear"), 3)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * levels[0]
    draw = drawer()
    theirs, info = peer.sample_dpm_adaptive(
        lambda x, sigma: picture_mixture.denoise(x, sigma[0]),
        x,
        float(levels[-2]),
        float(levels[0]),
        disable=True,
        order=order,
        rtol=rtol,
        atol=atol,
        eta=eta,
        noise_sampler=lambda *_: draw(x),
        return_info=True,
    )
    options: dict[str, Option] = {"order": order, "rtol": rtol, "atol": atol, "eta": eta}
    steps = list(sample("dpm_adaptive", picture_mixture.denoise, x, levels, options=options, noise=source()))
    assert len(steps) == info["n_accept"]
    assert float((steps[-1].x - theirs).abs().max()) <= BOUND


@pytest.mark.parametrize("n", [1, 2, 10, 30])
def test_lists(peer: Any, n: int) -> None:
    """k-diffusion's lists are fp32."""
    schedule = make_noise_schedule("scaled_linear")
    ends = schedule.sigma_min, schedule.sigma_max
    for name, options, theirs in (
        ("karras", {}, peer.get_sigmas_karras(n, *ends)),
        ("karras", {"rho": 3.0}, peer.get_sigmas_karras(n, *ends, rho=3.0)),
        ("exponential", {}, peer.get_sigmas_exponential(n, *ends)),
        ("polyexponential", {"rho": 1.7}, peer.get_sigmas_polyexponential(n, *ends, rho=1.7)),
    ):
        mine = make_sigmas(name, schedule, n, options=options)
        torch.testing.assert_close(mine, theirs.double(), rtol=3e-6, atol=0)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_where_k_diffusion_fails_on_one_step(peer: Any, name: str, picture_mixture: GaussianMixture) -> None:
    """A single step, straight to 0, reads a variable that k-diffusion has not set; the answer is D(x)."""
    levels = torch.tensor([5.0, 0.0], dtype=torch.float64)
    x = torch.ones(2, 4, 2, 2, dtype=torch.float64)
    with pytest.raises(UnboundLocalError):
        getattr(peer, f"sample_{name}")(
            lambda x, sigma: picture_mixture.denoise(x, sigma[0]), x, levels, disable=True, noise_sampler=lambda *_: x
        )
    (step,) = sample(name, picture_mixture.denoise, x, levels, noise=source())
    torch.testing.assert_close(step.x, picture_mixture.denoise(x, 5.0), rtol=0, atol=0)
