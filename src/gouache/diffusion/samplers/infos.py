"""What is known of a sampler or a sigma schedule beside its name, and the rows for further ones. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """One sampler and what it is called elsewhere.

    Attributes:
        name: ours.
        label: its name in A1111's list, or a readable one.
        aliases: k-diffusion's, A1111's, ComfyUI's and diffusers' other names.
        default_schedule: the sigma schedule that A1111 pairs with it.
        stochastic: ``"no"``, ``"optional"`` (off by default) or ``"yes"``.
        order: order of convergence with its defaults and from a cold start, measured (docs/convergence.md).
        calls: network calls a step.
        discard_penultimate: A1111 makes one level more and leaves out the last but one.
        cfg_pp: it takes the unconditional prediction too (CFG++); the guidance scale is lambda, mostly in [0, 1].
        guidance_divisor: what a guidance scale is divided by to give lambda.
        own_levels: it chooses its levels itself; of the list only the ends count, and the number of steps.
        flow: whether it can sample flow-matching models.
        source: the paper.
    """

    name: str
    label: str
    aliases: tuple[str, ...]
    default_schedule: str
    stochastic: str
    order: int
    calls: int
    source: str
    discard_penultimate: bool = False
    cfg_pp: bool = False
    guidance_divisor: float = 1.0
    own_levels: bool = False
    flow: bool = True


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """One sigma schedule for inference and what it is called elsewhere."""

    name: str
    label: str
    aliases: tuple[str, ...]
    source: str


PLAIN_PER_LAMBDA, LAMBDA = 12.5, 0.6
"""A plain guidance scale of 7.5 does about what CFG++ does at lambda = 0.6 (Chung et al. 2024, arXiv:2406.08070)."""

_CFG_PP = "Chung et al. 2024, arXiv:2406.08070"
_DPM, _DPMPP = "Lu et al. 2022, arXiv:2206.00927", "Lu et al. 2022, arXiv:2211.01095"
_IPNDM, _SA = "Zhang & Chen 2022, arXiv:2204.13902", "Xue et al. 2023, arXiv:2309.05019"
_RES, _SEEDS = "Zhang et al. 2023, arXiv:2308.02157", "Gonzalez et al. 2023, arXiv:2305.14267"
_GRADIENT, _PNDM = "Permenter & Yuan 2024, arXiv:2306.04848", "Liu et al. 2022, arXiv:2202.09778"

FURTHER_SAMPLERS = (
    SamplerInfo(
        "tcd",
        "TCD",
        ("TCDScheduler", "k_tcd"),
        "lcm",
        "yes",
        1,
        1,
        "Zheng et al. 2024, arXiv:2402.19159",
        flow=False,
    ),
    SamplerInfo("euler_cfg_pp", "Euler CFG++", ("k_euler_cfg_pp",), "uniform", "no", 1, 1, _CFG_PP, cfg_pp=True),
    SamplerInfo(
        "euler_ancestral_cfg_pp",
        "Euler a CFG++",
        ("k_euler_a_cfg_pp", "Euler ancestral CFG++"),
        "uniform",
        "yes",
        1,
        1,
        _CFG_PP,
        cfg_pp=True,
    ),
    SamplerInfo(
        "ddim_cfg_pp",
        "DDIM CFG++",
        ("ddim_cfgpp",),
        "leading",
        "optional",
        1,
        1,
        _CFG_PP,
        cfg_pp=True,
        guidance_divisor=PLAIN_PER_LAMBDA,
    ),
    SamplerInfo(
        "dpmpp_2m_cfg_pp", "DPM++ 2M CFG++", ("k_dpmpp_2m_cfg_pp",), "karras", "no", 2, 1, _CFG_PP, cfg_pp=True
    ),
    SamplerInfo(
        "dpmpp_2s_ancestral_cfg_pp",
        "DPM++ 2S a CFG++",
        ("k_dpmpp_2s_a_cfg_pp", "DPM++ 2S ancestral CFG++"),
        "karras",
        "yes",
        2,
        2,
        _CFG_PP,
        cfg_pp=True,
    ),
    SamplerInfo(
        "dpmpp_singlestep",
        "DPM++ singlestep",
        ("DPMSolverSinglestepScheduler", "dpmsolver_singlestep", "dpm_solver_singlestep"),
        "sgm_uniform",
        "no",
        2,
        1,
        _DPMPP,
    ),
    SamplerInfo("dpm_fast", "DPM fast", ("k_dpm_fast",), "uniform", "optional", 3, 1, _DPM, own_levels=True),
    SamplerInfo(
        "dpm_adaptive",
        "DPM adaptive",
        ("k_dpm_ad", "k_dpm_adaptive"),
        "uniform",
        "optional",
        3,
        3,
        _DPM,
        own_levels=True,
    ),
    SamplerInfo(
        "heunpp2", "HeunPP2", ("Heun++ 2", "Heun PP2", "k_heunpp2"), "uniform", "optional", 1, 3, "Carzit 2024"
    ),
    SamplerInfo(
        "pndm_prk", "PNDM with Runge-Kutta start", ("pndm_runge_kutta", "F-PNDM"), "leading", "no", 2, 1, _PNDM
    ),
    SamplerInfo("ipndm", "IPNDM", ("IPNDMScheduler", "k_ipndm"), "uniform", "no", 2, 1, _IPNDM),
    SamplerInfo("ipndm_v", "IPNDM_V", ("k_ipndm_v",), "uniform", "no", 2, 1, _IPNDM),
    SamplerInfo("sa_solver", "SA-Solver", ("k_sa_solver", "SASolver"), "uniform", "yes", 2, 1, _SA),
    SamplerInfo("sa_solver_pece", "SA-Solver PECE", ("k_sa_solver_pece",), "uniform", "yes", 2, 2, _SA),
    SamplerInfo("sa_solver_2", "SA-Solver 2", ("SASolverScheduler",), "sgm_uniform", "yes", 2, 1, _SA),
    SamplerInfo(
        "gradient_estimation", "Gradient estimation", ("k_gradient_estimation",), "uniform", "no", 1, 1, _GRADIENT
    ),
    SamplerInfo(
        "gradient_estimation_cfg_pp",
        "Gradient estimation CFG++",
        (),
        "uniform",
        "no",
        1,
        1,
        _GRADIENT,
        cfg_pp=True,
    ),
    SamplerInfo("res_multistep", "RES multistep", ("k_res_multistep", "res_2m"), "uniform", "no", 2, 1, _RES),
    SamplerInfo("res_multistep_cfg_pp", "RES multistep CFG++", (), "uniform", "no", 2, 1, _RES, cfg_pp=True),
    SamplerInfo(
        "res_multistep_ancestral", "RES multistep a", ("RES multistep ancestral",), "uniform", "yes", 2, 1, _RES
    ),
    SamplerInfo(
        "res_multistep_ancestral_cfg_pp",
        "RES multistep a CFG++",
        ("RES multistep ancestral CFG++",),
        "uniform",
        "yes",
        2,
        1,
        _RES,
        cfg_pp=True,
    ),
    SamplerInfo(
        "er_sde", "ER SDE", ("k_er_sde", "ER-SDE-Solver-3"), "uniform", "yes", 1, 1, "Cui et al. 2023, arXiv:2309.06169"
    ),
    SamplerInfo("seeds_2", "SEEDS 2", ("k_seeds_2",), "uniform", "yes", 2, 2, _SEEDS),
    SamplerInfo("seeds_3", "SEEDS 3", ("k_seeds_3",), "uniform", "yes", 2, 3, _SEEDS),
    SamplerInfo("exp_heun_2_x0", "Exponential Heun 2 x0", (), "uniform", "no", 2, 2, _RES),
    SamplerInfo("exp_heun_2_x0_sde", "Exponential Heun 2 x0 SDE", (), "uniform", "yes", 2, 2, _SEEDS),
)
"""Samplers beside those that `names` lists first."""

_AYS, _TURBO = "Sabour et al. 2024, arXiv:2404.14507", "Sauer et al. 2023, arXiv:2311.17042"

FURTHER_SCHEDULES = (
    ScheduleInfo("linear_quadratic", "Linear Quadratic", (), "Genmo 2024"),
    ScheduleInfo("turbo", "Turbo", (), _TURBO),
    ScheduleInfo("sd_turbo", "SD Turbo", ("SDTurboScheduler",), _TURBO),
    ScheduleInfo("align_your_steps_gits", "Align Your Steps GITS", ("ays_gits",), "Chen et al. 2024, arXiv:2405.11326"),
    ScheduleInfo("align_your_steps_11", "Align Your Steps 11", ("ays_11",), _AYS),
    ScheduleInfo("align_your_steps_32", "Align Your Steps 32", ("ays_32",), _AYS),
    ScheduleInfo("leading_to_first", "DDIM to the first level", (), "Lin et al. 2023, arXiv:2305.08891, table 2"),
    ScheduleInfo("uniform_to_min", "Uniform to sigma_min", (), "Zhao et al. 2023, arXiv:2302.04867"),
    ScheduleInfo("kl_optimal_to_min", "KL Optimal to sigma_min", (), _AYS),
)
"""Sigma schedules beside those that `names` lists first."""
