"""The registry: every sampler under its name, with its input checked before the first step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gouache.diffusion.samplers import adams, cfg_pp, dpm_solver, exponential
from gouache.diffusion.samplers import ancestral as stochastic
from gouache.diffusion.samplers import multistep as samplers_multistep
from gouache.diffusion.samplers import ode as samplers_ode
from gouache.diffusion.samplers import sde as stochastic_dpm
from gouache.diffusion.samplers.ancestral import Restart
from gouache.diffusion.samplers.names import resolve
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Steps
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

Option = (
    bool
    | int
    | float
    | str
    | Callable[[float], float]
    | Callable[[float, float], float]
    | Callable[[float, float], bool]
    | Callable[[Tensor], Tensor]
    | Denoise
    | Sequence[Restart]
)
"""What a sampler's own keyword may be."""

SAMPLERS: dict[str, Callable[..., Steps]] = {
    "ddpm": stochastic.ddpm,
    "ddim": stochastic.ddim,
    "ddim_inversion": samplers_ode.ddim_inversion,
    "plms": samplers_multistep.plms,
    "euler": samplers_ode.euler,
    "euler_ancestral": stochastic.euler_ancestral,
    "heun": samplers_ode.heun,
    "dpm_2": samplers_ode.dpm_2,
    "dpm_2_ancestral": stochastic.dpm_2_ancestral,
    "lms": samplers_multistep.lms,
    "dpmpp_2s": stochastic.dpmpp_2s,
    "dpmpp_2s_ancestral": stochastic.dpmpp_2s_ancestral,
    "dpmpp_2m": samplers_multistep.dpmpp_2m,
    "dpmpp_sde": stochastic_dpm.dpmpp_sde,
    "dpmpp_2m_sde": stochastic_dpm.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": stochastic_dpm.dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": stochastic_dpm.dpmpp_3m_sde,
    "unipc_bh1": samplers_multistep.unipc_bh1,
    "unipc_bh2": samplers_multistep.unipc_bh2,
    "deis": samplers_multistep.deis,
    "restart": stochastic.restart,
    "lcm": stochastic.lcm,
    "tcd": stochastic.tcd,
    "euler_cfg_pp": cfg_pp.euler_cfg_pp,
    "euler_ancestral_cfg_pp": cfg_pp.euler_ancestral_cfg_pp,
    "ddim_cfg_pp": cfg_pp.ddim_cfg_pp,
    "dpmpp_2m_cfg_pp": cfg_pp.dpmpp_2m_cfg_pp,
    "dpmpp_2s_ancestral_cfg_pp": cfg_pp.dpmpp_2s_ancestral_cfg_pp,
    "dpmpp_singlestep": dpm_solver.dpmpp_singlestep,
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "heunpp2": samplers_ode.heunpp2,
    "pndm_prk": adams.pndm_prk,
    "ipndm": adams.ipndm,
    "ipndm_v": adams.ipndm_v,
    "sa_solver": adams.sa_solver,
    "sa_solver_pece": adams.sa_solver_pece,
    "sa_solver_2": adams.sa_solver_2,
    "gradient_estimation": adams.gradient_estimation,
    "gradient_estimation_cfg_pp": cfg_pp.gradient_estimation_cfg_pp,
    "res_multistep": exponential.res_multistep,
    "res_multistep_cfg_pp": cfg_pp.res_multistep_cfg_pp,
    "res_multistep_ancestral": exponential.res_multistep_ancestral,
    "res_multistep_ancestral_cfg_pp": cfg_pp.res_multistep_ancestral_cfg_pp,
    "er_sde": exponential.er_sde,
    "seeds_2": exponential.seeds_2,
    "seeds_3": exponential.seeds_3,
    "exp_heun_2_x0": exponential.exp_heun_2_x0,
    "exp_heun_2_x0_sde": exponential.exp_heun_2_x0_sde,
}
"""Name -> generator. `sampler_table` holds the same names with their aliases, and needs no torch."""


def sampler_options(name: str) -> tuple[str, ...]:
    """The own keywords of a sampler (its docstring says what they are; for example s_churn of Algorithm 2, Karras et
    al. 2022), without `noise`.

    Args:
        name: any name or alias.
    """
    parameters = inspect.signature(SAMPLERS[resolve(name)[0]]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "noise")


def check_sigmas(sigmas: Tensor | Sequence[float]) -> Tensor:
    """A noise-level list in the order of Algorithm 1 of Karras et al. 2022 (t_0 > t_1 > ... >= 0), or an error.

    Args:
        sigmas: n + 1 levels, strictly descending, the last may be 0.

    Returns:
        the same levels. [n + 1] fp64 on the CPU

    Raises:
        InvalidInput: fewer than two, NaN, infinite, negative, or not strictly descending.
        ShapeMismatch: more than one axis.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if levels.ndim != 1:
        raise ShapeMismatch("sigmas", given=f"shape {tuple(levels.shape)}", expected="one axis of n + 1 noise levels")
    if len(levels) < 2:
        raise InvalidInput("sigmas", given=f"{len(levels)} levels", expected="at least 2, that is one step")
    values: list[float] = levels.tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(f"sigmas[{i}]", given=value, expected="a finite number >= 0")
        if i and value >= values[i - 1]:
            raise InvalidInput(
                f"sigmas[{i}]",
                given=f"{value} after {values[i - 1]}",
                expected="strictly descending levels",
                cure="Sort them from most to least noise and drop repeated ones.",
            )
    return levels


def sample(
    name: str,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    options: Mapping[str, Option] | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """Run a sampler by name over Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364), its input checked first.

    Args:
        name: any name or alias that `sampler_table.resolve` knows. A schedule in it is not used here.
        denoise: D(x, sigma); sigma comes as a tensor without axes, fp64 on the CPU.
        x: the state at sigmas[0] (for ``ddim_inversion`` at sigmas[-1]). [B, ...] floating
        sigmas: descending noise levels. [n + 1]
        options: the sampler's own keywords; see `sampler_options`.
        noise: source of noise, for a stochastic one.

    Returns:
        a generator of steps. Close it to stop.

    Raises:
        UnknownName: no such sampler, or no such option of it.
        InvalidInput: sigmas or an option out of range, or noise missing where it is sure to be needed.
        ShapeMismatch: `sigmas` has more than one axis, or (at a step) the denoiser answers in another shape.
    """
    canonical = resolve(name)[0]
    sampler = SAMPLERS[canonical]
    levels = check_sigmas(sigmas)
    if not torch.is_floating_point(x) or x.ndim < 1:
        raise InvalidInput("x", given=f"{x.dtype} {tuple(x.shape)}", expected="a floating tensor [B, ...]")
    chosen = dict(options or {})
    known = sampler_options(canonical)
    for key, value in chosen.items():
        if key not in known:
            raise unknown_name(f"option of {canonical}", key, known)
        _check_option(key, value)
    keywords = inspect.signature(sampler).parameters
    if "noise" not in keywords:
        return sampler(_checked(denoise), x, levels, **chosen)
    if noise is None and canonical != "lcm" and _needs_noise(keywords, chosen):
        raise InvalidInput("noise", given=None, expected=f"a NoiseSource, which {canonical} needs with these options")
    return sampler(_checked(denoise), x, levels, noise=noise, **chosen)


def _needs_noise(keywords: Mapping[str, inspect.Parameter], chosen: Mapping[str, Option]) -> bool:
    """Whether `eta`, `s_churn` or `restarts` ask for noise; a sampler with none of them always does."""
    asked = [chosen.get(key, keywords[key].default) for key in ("eta", "s_churn", "restarts") if key in keywords]
    return any(bool(value) for value in asked) if asked else True


def _check_option(key: str, value: Option) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if math.isnan(value) or value < 0 or (math.isinf(value) and key != "s_tmax"):
        raise InvalidInput(key, given=value, expected="a finite number >= 0")


def _checked(denoise: Denoise) -> Denoise:
    def checked(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoise(x, sigma)
        if denoised.shape != x.shape:
            raise ShapeMismatch(
                "denoiser's answer", given=tuple(denoised.shape), expected=f"the state's shape {tuple(x.shape)}"
            )
        return denoised

    return checked
