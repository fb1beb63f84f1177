"""Every name that other tools use for a sampler or a sigma schedule, and ours. Names only: no torch here."""

from __future__ import annotations

import difflib
import re

from gouache.diffusion.samplers.infos import (
    FURTHER_SAMPLERS,
    FURTHER_SCHEDULES,
    LAMBDA,
    PLAIN_PER_LAMBDA,
    SamplerInfo,
    ScheduleInfo,
)
from gouache.errors import UnknownName

_EDM, _DDIM = "Karras et al. 2022, arXiv:2206.00364", "Song et al. 2021, arXiv:2010.02502"
_DPM, _DPMPP = "Lu et al. 2022, arXiv:2206.00927", "Lu et al. 2022, arXiv:2211.01095"
_UNIPC = "Zhao et al. 2023, arXiv:2302.04867"

_SAMPLERS = (
    SamplerInfo(
        "ddpm",
        "DDPM",
        ("DDPMScheduler", "DDPMParallelScheduler"),
        "leading",
        "yes",
        1,
        1,
        "Ho et al. 2020, arXiv:2006.11239",
    ),
    SamplerInfo(
        "ddim", "DDIM", ("DDIMScheduler", "DDIMParallelScheduler", "k_ddim"), "leading", "optional", 1, 1, _DDIM
    ),
    SamplerInfo(
        "ddim_inversion", "DDIM inversion", ("DDIMInverseScheduler", "ddim_inverse"), "leading", "no", 1, 1, _DDIM
    ),
    SamplerInfo("plms", "PLMS", ("PNDMScheduler", "pndm"), "leading", "no", 2, 1, "Liu et al. 2022, arXiv:2202.09778"),
    SamplerInfo(
        "euler",
        "Euler",
        ("k_euler", "EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"),
        "uniform",
        "optional",
        1,
        1,
        _EDM,
    ),
    SamplerInfo(
        "euler_ancestral",
        "Euler a",
        ("k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        "uniform",
        "yes",
        1,
        1,
        _DDIM,
    ),
    SamplerInfo("heun", "Heun", ("k_heun", "HeunDiscreteScheduler"), "uniform", "optional", 2, 2, _EDM),
    SamplerInfo(
        "dpm_2", "DPM2", ("k_dpm_2", "kdpm_2", "KDPM2DiscreteScheduler"), "karras", "optional", 2, 2, _DPM, True
    ),
    SamplerInfo(
        "dpm_2_ancestral",
        "DPM2 a",
        ("k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler"),
        "karras",
        "yes",
        2,
        2,
        _DPM,
        True,
    ),
    SamplerInfo("lms", "LMS", ("k_lms", "LMSDiscreteScheduler"), "uniform", "no", 2, 1, "Hairer et al. 1993, III.5"),
    SamplerInfo("dpmpp_2s", "DPM++ 2S", ("k_dpmpp_2s",), "karras", "no", 2, 2, _DPMPP),
    SamplerInfo(
        "dpmpp_2s_ancestral", "DPM++ 2S a", ("k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"), "karras", "yes", 2, 2, _DPMPP
    ),
    SamplerInfo(
        "dpmpp_2m",
        "DPM++ 2M",
        (
            "k_dpmpp_2m",
            "DPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "dpm_solver_multistep",
            "dpmsolver++",
        ),
        "karras",
        "no",
        2,
        1,
        _DPMPP,
    ),
    SamplerInfo(
        "dpmpp_sde",
        "DPM++ SDE",
        ("k_dpmpp_sde", "DPMSolverSDEScheduler", "dpmpp_sde_gpu"),
        "karras",
        "yes",
        2,
        2,
        _DPMPP,
    ),
    SamplerInfo(
        "dpmpp_2m_sde",
        "DPM++ 2M SDE",
        ("k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "sde-dpmsolver++"),
        "exponential",
        "yes",
        2,
        1,
        _DPMPP,
    ),
    SamplerInfo(
        "dpmpp_2m_sde_heun",
        "DPM++ 2M SDE Heun",
        ("k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
        "exponential",
        "yes",
        2,
        1,
        _DPMPP,
    ),
    SamplerInfo(
        "dpmpp_3m_sde", "DPM++ 3M SDE", ("k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"), "exponential", "yes", 2, 1, _DPMPP, True
    ),
    SamplerInfo("unipc_bh1", "UniPC", ("unipc", "uni_pc", "UniPC bh1"), "leading", "no", 2, 1, _UNIPC),
    SamplerInfo("unipc_bh2", "UniPC bh2", ("uni_pc_bh2", "UniPCMultistepScheduler"), "leading", "no", 2, 1, _UNIPC),
    SamplerInfo(
        "deis", "DEIS", ("DEISMultistepScheduler",), "uniform", "no", 2, 1, "Zhang & Chen 2022, arXiv:2204.13902"
    ),
    SamplerInfo(
        "restart",
        "Restart",
        ("restart_sampler", "k_restart"),
        "karras",
        "yes",
        2,
        2,
        "Xu et al. 2023, arXiv:2306.14878",
    ),
    SamplerInfo(
        "lcm",
        "LCM",
        ("k_lcm", "LCMScheduler", "FlowMatchLCMScheduler"),
        "lcm",
        "yes",
        1,
        1,
        "Luo et al. 2023, arXiv:2310.04378",
    ),
    *FURTHER_SAMPLERS,
)

_COMMON = "Lin et al. 2023, arXiv:2305.08891, table 2"
_SCHEDULES = (
    ScheduleInfo("karras", "Karras", ("use_karras_sigmas",), _EDM),
    ScheduleInfo("exponential", "Exponential", ("use_exponential_sigmas",), "k-diffusion 2022"),
    ScheduleInfo("polyexponential", "Polyexponential", ("poly_exponential",), "k-diffusion 2022"),
    ScheduleInfo("uniform", "Uniform", ("normal",), "k-diffusion 2022"),
    ScheduleInfo("simple", "Simple", (), "ComfyUI 2023"),
    ScheduleInfo("sgm_uniform", "SGM Uniform", (), "generative-models 2023"),
    ScheduleInfo("leading", "DDIM", ("ddim", "ddim_uniform"), _COMMON),
    ScheduleInfo("trailing", "Trailing", (), _COMMON),
    ScheduleInfo("linspace", "Linspace", (), _COMMON),
    ScheduleInfo("beta", "Beta", ("use_beta_sigmas",), "Lee et al. 2024, arXiv:2407.12173"),
    ScheduleInfo("beta_time", "Beta (time)", ("beta_over_time",), "ComfyUI 2024; Lee et al. 2024, arXiv:2407.12173"),
    ScheduleInfo("kl_optimal", "KL Optimal", (), "Sabour et al. 2024, arXiv:2404.14507"),
    ScheduleInfo("align_your_steps", "Align Your Steps", ("ays",), "Sabour et al. 2024, arXiv:2404.14507"),
    ScheduleInfo("lcm", "LCM", (), "Luo et al. 2023, arXiv:2310.04378"),
    *FURTHER_SCHEDULES,
    ScheduleInfo("custom", "Custom list", (), "any list of noise levels"),
    ScheduleInfo("model", "Model's own", (), "the scheduler file of the model's folder"),
    ScheduleInfo("diffusers", "diffusers", (), "the sampler's class in diffusers 0.42, 2026"),
)

SAMPLER_INFOS: dict[str, SamplerInfo] = {info.name: info for info in _SAMPLERS}
"""Our sampler names, in the order in which they are listed."""

SCHEDULE_INFOS: dict[str, ScheduleInfo] = {info.name: info for info in _SCHEDULES}
"""Our sigma schedules, in the order in which they are listed."""

NOT_OFFERED: dict[str, str] = {
    "FlowMatchHeunDiscreteScheduler": "heun",
    "CosineDPMSolverMultistepScheduler": "dpmpp_2m_sde",
}
"""Samplers that are known and not offered, with the nearest that is."""


COMFYUI_SCHEDULES: dict[str, str] = {"beta": "beta_time"}
"""Schedules that ComfyUI calls by a name that A1111 gives another list."""

INVOKEAI_SAMPLERS: dict[str, str] = {"unipc": "UniPCMultistepScheduler", "dpmpp_3m": "dpmpp_3m_sde"}
"""Samplers that InvokeAI calls by a name that other tools give another one."""


def _fold(name: str) -> str:
    """Case, spaces and punctuation do not count; ``++`` reads ``pp``; k-diffusion's ``sample_`` is dropped."""
    folded = re.sub(r"[^a-z0-9]", "", name.casefold().replace("++", "pp"))
    return folded.removeprefix("sample")


_SAMPLER_KEYS = {_fold(key): i.name for i in _SAMPLERS for key in (i.name, i.label, *i.aliases)}
_CLASS_KEYS = {_fold(alias) for i in _SAMPLERS for alias in i.aliases if alias.endswith("Scheduler")}
_SCHEDULE_KEYS = {_fold(key): i.name for i in _SCHEDULES for key in (i.name, i.label, *i.aliases)}
_NOT_OFFERED_KEYS = {_fold(key): nearest for key, nearest in NOT_OFFERED.items()}


def resolve(name: str) -> tuple[str, str | None]:
    """Our sampler for any known name, and the sigma schedule where the name says one.

    ``"DPM++ 2M Karras"`` -> ``("dpmpp_2m", "karras")``; ``"Euler a"`` -> ``("euler_ancestral", None)``, where the
    caller takes its own default or `SamplerInfo.default_schedule`. A class of diffusers means its own list too:
    ``"UniPCMultistepScheduler"`` -> ``("unipc_bh2", "diffusers")``. InvokeAI's ``_k`` means Karras. The
    table holds the names of A1111 1.10 (2024), k-diffusion 0.1.1 (2023) and diffusers 0.42 (2026).

    Raises:
        UnknownName: with the nearest known name; for a sampler that is known and not offered, the nearest offered one.
    """
    folded = _fold(name)
    if name.strip().casefold().endswith("_k") and _fold(name.strip()[:-2]) in _SAMPLER_KEYS:
        return _SAMPLER_KEYS[_fold(name.strip()[:-2])], "karras"
    if folded in _SAMPLER_KEYS:
        return _SAMPLER_KEYS[folded], "diffusers" if folded in _CLASS_KEYS else None
    for suffix in sorted(_SCHEDULE_KEYS, key=len, reverse=True):
        stem = folded.removesuffix(suffix)
        if stem != folded and stem in _SAMPLER_KEYS:
            return _SAMPLER_KEYS[stem], _SCHEDULE_KEYS[suffix]
        if stem != folded and stem in _NOT_OFFERED_KEYS:
            folded = stem
            break
    if folded in _NOT_OFFERED_KEYS:
        nearest = _NOT_OFFERED_KEYS[folded]
        raise UnknownName(
            "sampler",
            given=f"{name!r}, which is known but not offered",
            expected=_list(SAMPLER_INFOS),
            cure=f"The nearest offered one is {nearest!r}.",
        )
    raise _unknown("sampler", name, _SAMPLER_KEYS, SAMPLER_INFOS)


def resolve_invokeai(name: str) -> tuple[str, str | None]:
    """As `resolve` (same table of 2024), for InvokeAI 5's names: classes of diffusers with those classes' lists, and
    with Karras' behind ``_k``. No list for samplers that are no class's own default there.
    """
    stem = name.strip().casefold().removesuffix("_k")
    sampler, schedule = resolve(INVOKEAI_SAMPLERS.get(stem, stem))
    if stem != name.strip().casefold():
        return sampler, "karras"
    has_class = any(alias.endswith("Scheduler") for alias in SAMPLER_INFOS[sampler].aliases)
    return sampler, schedule or ("diffusers" if has_class else None)


def resolve_schedule(name: str) -> str:
    """Our sigma schedule for any known name: ``"SGM Uniform"`` -> ``"sgm_uniform"``; same table of 2024 as `resolve`.

    Raises:
        UnknownName: with the nearest known name.
    """
    folded = _fold(name)
    if folded not in _SCHEDULE_KEYS:
        raise _unknown("sigma schedule", name, _SCHEDULE_KEYS, SCHEDULE_INFOS)
    return _SCHEDULE_KEYS[folded]


_A1111_LISTS = {"align_your_steps": "align_your_steps_11", "kl_optimal": "kl_optimal_to_min"}


def a1111_schedule(sampler: str, schedule: str) -> str:
    """Our sigma schedule for what A1111 1.10 (2024) walks where a sampler and a schedule are named as there.

    DDIM and PLMS make one call less than asked and UniPC ends at sigma_min, as does KL Optimal; Align Your Steps
    spreads its table otherwise.

    Args:
        sampler, schedule: our names; the schedule may be the sampler's default.
    """
    if schedule == "leading" and sampler in ("ddim", "plms", "ddim_cfg_pp"):
        return "leading_to_first"
    if schedule == "leading" and sampler == "unipc_bh1":
        return "uniform_to_min"
    return _A1111_LISTS.get(schedule, schedule)


def sampler_info(name: str) -> SamplerInfo:
    """The row of the table (names of 2023 to 2026) for a sampler by any name or alias; errors as `resolve`."""
    return SAMPLER_INFOS[resolve(name)[0]]


def default_guidance(name: str, scale: float) -> float:
    """What a model's usual guidance scale becomes where nothing else is asked: itself, but for CFG++ (section 4 of
    Chung et al. 2024, arXiv:2406.08070) lambda = 0.6, more where the model's scale is above 7.5, and 1 for a model that
    is used without guidance.

    Args:
        name: any name or alias.
        scale: of plain guidance.

    Returns:
        the scale in the sampler's own terms: lambda times `SamplerInfo.guidance_divisor`.
    """
    info = sampler_info(name)
    if not info.cfg_pp:
        return scale
    return info.guidance_divisor * (1.0 if scale <= 1 else max(scale / PLAIN_PER_LAMBDA, LAMBDA))


def _list(infos: dict[str, SamplerInfo] | dict[str, ScheduleInfo]) -> str:
    return f"one of {', '.join(infos)} or an alias (`gouache samplers` lists them)"


def _unknown(
    where: str, name: str, keys: dict[str, str], infos: dict[str, SamplerInfo] | dict[str, ScheduleInfo]
) -> UnknownName:
    near = difflib.get_close_matches(_fold(name), keys, n=1, cutoff=0.5)
    cure = f"Did you mean {keys[near[0]]!r}?" if near else "Choose one of them."
    return UnknownName(where, given=repr(name), expected=_list(infos), cure=cure)
