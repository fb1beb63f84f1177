"""Every sampler that diffusers has, step by step against its scheduler on the closed-form denoiser, in fp64.

The scheduler makes its own list of noise levels; ours walks the same list. States are compared as x / alpha.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule, make_noise_schedule
from gouache.diffusion.samplers.registry import Option, sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.diffusion.samplers.step import NoiseSource

if TYPE_CHECKING:
    from tests.diffusion.conftest import GaussianMixture

diffusers = pytest.importorskip("diffusers")
# numpy's complaints about how torch tensors become arrays, raised inside diffusers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__ must accept:DeprecationWarning"
)

LISTS: list[dict[str, bool]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
]
COUNTS = [4, 9, 20]
SCHEDULES = ["linear", "scaled_linear", "cosine"]
BOUND = 1e-9
SCHEDULER_MODULES = (
    "euler_discrete",
    "euler_ancestral_discrete",
    "heun_discrete",
    "k_dpm_2_discrete",
    "k_dpm_2_ancestral_discrete",
    "lms_discrete",
    "dpmsolver_multistep",
    "dpmsolver_singlestep",
    "unipc_multistep",
    "deis_multistep",
)

lists = pytest.mark.parametrize("spacing", LISTS, ids=lambda v: next(iter(v), "plain"))
counts = pytest.mark.parametrize("n", COUNTS)
schedules = pytest.mark.parametrize("schedule_name", SCHEDULES)


def seeded() -> NoiseSource:
    """The noise that a scheduler draws from a generator with seed 5."""
    generator = torch.Generator().manual_seed(5)

    def draw(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        del sigma, sigma_next
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return draw


@pytest.fixture(autouse=True)
def _diffusers_in_fp64(read_in_fp64: Callable[[str], types.ModuleType]) -> None:
    """diffusers makes its tables, and some of its steps, in fp32."""
    for name in SCHEDULER_MODULES:
        read_in_fp64(f"diffusers.schedulers.scheduling_{name}")


def start(levels: Tensor) -> Tensor:
    return torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64) * levels[0]


def alpha(sigma: Tensor | float) -> Tensor:
    return (1 + torch.as_tensor(sigma, dtype=torch.float64) ** 2).rsqrt()


def ours(
    name: str, mixture: GaussianMixture, x: Tensor, levels: Tensor, noise: NoiseSource | None, **options: Option
) -> list[Tensor]:
    return [step.x for step in sample(name, mixture.denoise, x, levels, options=options, noise=noise)]


def assert_same(mine: list[Tensor], theirs: list[Tensor], bound: float = BOUND) -> None:
    assert len(mine) == len(theirs)
    worst = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    assert worst <= bound, f"states differ by {worst:.2e}"


def ve_peer(scheduler: Any, mixture: GaussianMixture, x: Tensor, calls: int = 1, **arguments: Any) -> Iterator[Tensor]:
    """A scheduler whose state is x0 + sigma eps; every `calls`-th state ends a step."""
    scheduler.set_begin_index(0)
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        sigma = scheduler.sigmas[i]
        if calls == 2 and not scheduler.state_in_first_order and hasattr(scheduler, "sigmas_interpol"):
            ancestral = hasattr(scheduler, "sigmas_up")
            sigma = scheduler.sigmas_interpol[i - 1 if ancestral else i]
        eps = (x - mixture.denoise(x, sigma)) / sigma
        x = scheduler.step(eps, t, x, return_dict=False, **arguments)[0].double()
        if i % calls == 0 if calls == 1 else (i % 2 == 1 or i == len(scheduler.timesteps) - 1):
            yield x


def vp_peer(scheduler: Any, mixture: GaussianMixture, x: Tensor, **arguments: Any) -> Iterator[Tensor]:
    """A scheduler whose state is alpha (x0 + sigma eps); x comes and goes divided by alpha."""
    scheduler.set_begin_index(0)
    state = x * alpha(scheduler.sigmas[0])
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        x = state / alpha(sigma)
        eps = (x - mixture.denoise(x, sigma)) / sigma
        state = scheduler.step(eps, t, state, return_dict=False, **arguments)[0]
        yield state / alpha(scheduler.sigmas[i + 1])


def levels_of(scheduler: Any) -> Tensor:
    """The scheduler's levels, each once."""
    levels: Tensor = torch.unique_consecutive(scheduler.sigmas)
    return levels


VE_PEERS: list[tuple[str, str, int, dict[str, Option], str]] = [
    ("euler", "EulerDiscreteScheduler", 1, {}, "none"),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", 1, {}, "generator"),
    ("heun", "HeunDiscreteScheduler", 2, {}, "none"),
    ("dpm_2", "KDPM2DiscreteScheduler", 2, {}, "none"),
    ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", 2, {}, "generator"),
    ("lms", "LMSDiscreteScheduler", 1, {}, "none"),
]


@pytest.mark.every_time("*-9")
@counts
@lists
@pytest.mark.parametrize(("name", "peer", "calls", "options", "random"), VE_PEERS, ids=[c[0] for c in VE_PEERS])
def test_variance_exploding_schedulers(
    name: str,
    peer: str,
    calls: int,
    options: dict[str, Option],
    random: str,
    spacing: dict[str, bool],
    n: int,
    picture_mixture: GaussianMixture,
) -> None:
    config: dict[str, Any] = dict(spacing)
    if peer == "EulerAncestralDiscreteScheduler":  # it has no lists but these
        config = {
            "timestep_spacing": {"": "linspace", "use_karras_sigmas": "leading"}.get("".join(spacing), "trailing")
        }
    scheduler = getattr(diffusers, peer)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **config)
    scheduler.set_timesteps(n)
    levels = levels_of(scheduler)
    assert len(levels) == n + 1
    x = start(levels)
    arguments = {"generator": torch.Generator().manual_seed(5)} if random == "generator" else {}
    mine = ours(name, picture_mixture, x, levels, seeded() if random != "none" else None, **options)
    assert_same(mine, list(ve_peer(scheduler, picture_mixture, x, calls, **arguments)))


DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SDE, HEUN = {"algorithm_type": "sde-dpmsolver++"}, {"solver_type": "heun"}
VP_PEERS: list[tuple[str, str, dict[str, Any], dict[str, Option]]] = [
    ("dpmpp_2m", DPM, {"solver_order": 2}, {}),
    ("dpmpp_3m_sde", DPM, {"solver_order": 3, "lower_order_final": False} | HEUN, {"eta": 0.0}),
    ("dpmpp_2m_sde", DPM, SDE, {}),
    ("dpmpp_2m_sde_heun", DPM, SDE | HEUN, {}),
    ("unipc_bh2", UNIPC, {"solver_order": 2}, {}),
    ("unipc_bh2", UNIPC, {"solver_order": 3}, {"order": 3}),
    ("unipc_bh2", UNIPC, {"solver_order": 1}, {"order": 1}),
    ("unipc_bh1", UNIPC, {"solver_order": 2, "solver_type": "bh1"}, {}),
    ("unipc_bh1", UNIPC, {"solver_order": 3, "solver_type": "bh1"}, {"order": 3}),
]


@counts
@lists
@pytest.mark.parametrize(("name", "peer", "config", "options"), VP_PEERS)
def test_multistep_schedulers(
    name: str,
    peer: str,
    config: dict[str, Any],
    options: dict[str, Option],
    spacing: dict[str, bool],
    n: int,
    picture_mixture: GaussianMixture,
) -> None:
    scheduler = getattr(diffusers, peer)(beta_schedule="scaled_linear", **config, **spacing)
    scheduler.set_timesteps(n)
    levels = levels_of(scheduler)
    assert len(levels) == n + 1
    x = start(levels)
    random = "sde" in config.get("algorithm_type", "")
    arguments = {"generator": torch.Generator().manual_seed(5)} if random else {}
    mine = ours(name, picture_mixture, x, levels, seeded() if random else None, **options)
    assert_same(mine, list(vp_peer(scheduler, picture_mixture, x, **arguments)))


@counts
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("list_name", ["karras", "exponential", "uniform"])
def test_deis(list_name: str, order: int, n: int, picture_mixture: GaussianMixture) -> None:
    """diffusers' DEIS ends on sigma_min (with Karras' list even twice): we give it the list, without its end at 0."""
    levels = make_sigmas(list_name, make_noise_schedule("scaled_linear"), n + 1)[:-1]
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, beta_schedule="scaled_linear")
    scheduler.set_timesteps(n)
    scheduler.sigmas = levels
    x = start(levels)
    mine = ours("deis", picture_mixture, x, levels, None, order=order)
    assert_same(mine, list(vp_peer(scheduler, picture_mixture, x)))


def halved(levels: Tensor) -> Tensor:
    """A geometric middle in every interval but the last, which ends at 0."""
    middles = (levels[:-2] * levels[1:-1]).sqrt()
    return torch.cat([torch.stack([levels[:-2], middles], 1).flatten(), levels[-2:]])


@counts
@pytest.mark.parametrize("list_name", ["karras", "exponential", "uniform"])
@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_singlestep(kind: str, list_name: str, n: int, picture_mixture: GaussianMixture) -> None:
    """diffusers counts a 2S step as two; its list must hold our middles."""
    levels = make_sigmas(list_name, make_noise_schedule("scaled_linear"), n)
    fine = halved(levels)
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        solver_order=2, algorithm_type=kind, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(len(fine) - 1)
    scheduler.sigmas = fine
    x = start(levels)
    random = kind.startswith("sde")
    arguments = {"generator": torch.Generator().manual_seed(5)} if random else {}
    theirs = list(vp_peer(scheduler, picture_mixture, x, **arguments))
    if random:
        mine = ours("dpmpp_sde", picture_mixture, x, levels, seeded(), one_path=False)
    else:
        mine = ours("dpmpp_2s", picture_mixture, x, levels, None)
    assert_same(mine, [*theirs[1:-1:2], theirs[-1]])


@pytest.fixture
def dpm_sde_scheduler(
    monkeypatch: pytest.MonkeyPatch, read_in_fp64: Callable[[str], types.ModuleType]
) -> Callable[[], Any]:
    """diffusers' DPMSolverSDEScheduler. Its module wants torchsde for noise of its own, which is not used here."""
    if importlib.util.find_spec("torchsde") is None:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = read_in_fp64("diffusers.schedulers.scheduling_dpmsolver_sde")
    scheduler: Callable[[], Any] = module.DPMSolverSDEScheduler
    return scheduler


@counts
@lists
def test_dpm_sde(
    dpm_sde_scheduler: Callable[..., Any], spacing: dict[str, bool], n: int, picture_mixture: GaussianMixture
) -> None:
    scheduler = dpm_sde_scheduler(beta_schedule="scaled_linear", **spacing)
    scheduler.set_timesteps(n)
    levels = levels_of(scheduler)
    x, draw = start(levels), seeded()
    scheduler.noise_sampler = lambda sigma, sigma_next: draw(x, float(sigma), float(sigma_next))
    scheduler.set_begin_index(0)
    state, theirs = x, []
    for i, t in enumerate(scheduler.timesteps):
        first = scheduler.state_in_first_order
        sigma = scheduler.sigmas[i] if first else scheduler.mid_point_sigma
        eps = (state - picture_mixture.denoise(state, sigma)) / sigma
        state = scheduler.step(eps, t, state, return_dict=False)[0]
        if not first or i == len(scheduler.timesteps) - 1:
            theirs.append(state)
    assert_same(ours("dpmpp_sde", picture_mixture, x, levels, seeded(), one_path=False), theirs)


def chain(scheduler_class: Any, schedule: NoiseSchedule, n: int, **config: Any) -> Any:
    """A scheduler of the discrete chain, on our table."""
    scheduler = scheduler_class(**config)
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.set_timesteps(n)
    return scheduler


def chain_peer(
    scheduler: Any, schedule: NoiseSchedule, mixture: GaussianMixture, x: Tensor, levels: Tensor, **arguments: Any
) -> Iterator[Tensor]:
    """A scheduler that looks its levels up by timestep."""
    state = x * alpha(levels[0])
    for i, t in enumerate(scheduler.timesteps.tolist()):
        sigma = schedule.sigmas[t]
        assert float(sigma) == pytest.approx(float(levels[i]), rel=1e-12)
        x = state / alpha(sigma)
        eps = (x - mixture.denoise(x, sigma)) / sigma
        state = scheduler.step(eps, t, state, return_dict=False, **arguments)[0]
        yield state / alpha(levels[i + 1])


@schedules
@pytest.mark.parametrize("n", [4, 10, 25])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(eta: float, spacing: str, n: int, schedule_name: str, picture_mixture: GaussianMixture) -> None:
    schedule = make_noise_schedule(schedule_name)
    scheduler = chain(diffusers.DDIMScheduler, schedule, n, clip_sample=False, timestep_spacing=spacing, steps_offset=1)
    levels = make_sigmas(spacing, schedule, n)
    x = start(levels)
    arguments = {"eta": eta, "generator": torch.Generator().manual_seed(5)}
    theirs = chain_peer(scheduler, schedule, picture_mixture, x, levels, **arguments)
    assert_same(ours("ddim", picture_mixture, x, levels, seeded(), eta=eta), list(theirs))


@schedules
@pytest.mark.parametrize("n", [4, 10, 25])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(variance: str, n: int, schedule_name: str, picture_mixture: GaussianMixture) -> None:
    schedule = make_noise_schedule(schedule_name)
    scheduler = chain(diffusers.DDPMScheduler, schedule, n, clip_sample=False, variance_type=variance)
    levels = make_sigmas("leading", schedule, n, options={"steps_offset": 0})
    x = start(levels)
    arguments = {"generator": torch.Generator().manual_seed(5)}
    theirs = chain_peer(scheduler, schedule, picture_mixture, x, levels, **arguments)
    assert_same(ours("ddpm", picture_mixture, x, levels, seeded(), variance=variance), list(theirs))


@schedules
@pytest.mark.parametrize("n", [1, 2, 10, 25])
def test_plms(n: int, schedule_name: str, picture_mixture: GaussianMixture) -> None:
    schedule = make_noise_schedule(schedule_name)
    scheduler = chain(diffusers.PNDMScheduler, schedule, n, skip_prk_steps=True, set_alpha_to_one=True, steps_offset=1)
    levels = make_sigmas("leading", schedule, n)
    x = start(levels)
    # The second level is visited twice: from its first visit the scheduler takes the first step again.
    visited = levels if n == 1 else torch.cat([levels[:2], levels[1:2], levels[2:]])
    theirs = list(chain_peer(scheduler, schedule, picture_mixture, x, visited))
    assert_same(ours("plms", picture_mixture, x, levels, None), theirs[1:] if n > 1 else theirs)


@schedules
@pytest.mark.parametrize("n", [4, 10, 25])
def test_ddim_inversion(n: int, schedule_name: str, picture_mixture: GaussianMixture) -> None:
    schedule = make_noise_schedule(schedule_name)
    scheduler = chain(diffusers.DDIMInverseScheduler, schedule, n, clip_sample=False, steps_offset=1)
    levels = make_sigmas("leading", schedule, n)
    x = picture_mixture.sample(3, torch.Generator().manual_seed(1))
    mine = ours("ddim_inversion", picture_mixture, x, levels, None)
    state, theirs, upwards = x, [], levels.flip(0)
    for i, t in enumerate(scheduler.timesteps.tolist()):
        sigma = schedule.sigmas[t]
        seen = state / alpha(sigma)
        eps = (seen - picture_mixture.denoise(seen, sigma)) / sigma
        state = scheduler.step(eps, t, state, return_dict=False)[0]
        theirs.append(state / alpha(upwards[i + 1]))
    assert_same(mine, theirs)


@schedules
@pytest.mark.parametrize("n", [1, 4, 8])
def test_lcm(n: int, schedule_name: str, picture_mixture: GaussianMixture) -> None:
    schedule = make_noise_schedule(schedule_name)
    scheduler = chain(diffusers.LCMScheduler, schedule, n)
    levels = make_sigmas("lcm", schedule, n)
    x = start(levels)
    arguments = {"generator": torch.Generator().manual_seed(5)}
    theirs = chain_peer(scheduler, schedule, picture_mixture, x, levels, **arguments)
    mine = ours(
        "lcm", picture_mixture, x, levels, seeded(), timestep_of=lambda sigma: float(schedule.sigma_to_t(sigma))
    )
    assert_same(mine, list(theirs))
