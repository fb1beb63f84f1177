"""Names: everything that A1111, k-diffusion and diffusers call a sampler or a list is known; the rest is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gouache.diffusion.samplers.names import (
    NOT_OFFERED,
    SAMPLER_INFOS,
    SCHEDULE_INFOS,
    _fold,
    resolve,
    resolve_invokeai,
    resolve_schedule,
    sampler_info,
)
from gouache.errors import UnknownName

# A1111 1.10: modules/sd_samplers_kdiffusion.py, sd_samplers_timesteps.py, sd_samplers_lcm.py, sd_schedulers.py.
A1111 = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "Restart": "restart",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "unipc_bh1",
    "LCM": "lcm",
}
A1111_ALIASES = {
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_sde": "dpmpp_sde",
    "k_dpmpp_2m_sde": "dpmpp_2m_sde",
    "k_dpmpp_2m_sde_heun": "dpmpp_2m_sde_heun",
    "k_dpmpp_2s_a": "dpmpp_2s_ancestral",
    "k_dpmpp_3m_sde": "dpmpp_3m_sde",
    "k_euler_a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "k_euler": "euler",
    "k_lms": "lms",
    "k_heun": "heun",
    "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_ancestral",
    "k_lcm": "lcm",
}
A1111_SCHEDULES = {
    "Uniform": "uniform",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Simple": "simple",
    "Normal": "uniform",
    "DDIM": "leading",
    "Beta": "beta",
}
A1111_DEFAULTS = {
    "DPM++ 2M": "karras",
    "DPM++ SDE": "karras",
    "DPM++ 2M SDE": "exponential",
    "DPM++ 2M SDE Heun": "exponential",
    "DPM++ 2S a": "karras",
    "DPM++ 3M SDE": "exponential",
    "DPM2": "karras",
    "DPM2 a": "karras",
    "Restart": "karras",
    "Euler a": "uniform",
    "Euler": "uniform",
    "LMS": "uniform",
    "Heun": "uniform",
}


@pytest.mark.parametrize(("name", "expected"), [*A1111.items(), *A1111_ALIASES.items()])
def test_names_of_a1111(name: str, expected: str) -> None:
    for spelling in (name, name.upper(), name.replace(" ", "_"), f" {name} "):
        assert resolve(spelling) == (expected, None)


# ComfyUI's list of 2026 (comfy/samplers.py: KSAMPLER_NAMES and SAMPLER_NAMES; the one for video models left out).
COMFYUI = {
    "euler": "euler",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_ancestral": "euler_ancestral",
    "euler_ancestral_cfg_pp": "euler_ancestral_cfg_pp",
    "heun": "heun",
    "heunpp2": "heunpp2",
    "exp_heun_2_x0": "exp_heun_2_x0",
    "exp_heun_2_x0_sde": "exp_heun_2_x0_sde",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_ancestral",
    "lms": "lms",
    "dpm_fast": "dpm_fast",
    "dpm_adaptive": "dpm_adaptive",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_cfg_pp": "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "deis": "deis",
    "res_multistep": "res_multistep",
    "res_multistep_cfg_pp": "res_multistep_cfg_pp",
    "res_multistep_ancestral": "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp": "res_multistep_ancestral_cfg_pp",
    "gradient_estimation": "gradient_estimation",
    "gradient_estimation_cfg_pp": "gradient_estimation_cfg_pp",
    "er_sde": "er_sde",
    "seeds_2": "seeds_2",
    "seeds_3": "seeds_3",
    "sa_solver": "sa_solver",
    "sa_solver_pece": "sa_solver_pece",
    "ddim": "ddim",
    "uni_pc": "unipc_bh1",
    "uni_pc_bh2": "unipc_bh2",
}
COMFYUI_SCHEDULES = {
    "simple": "simple",
    "sgm_uniform": "sgm_uniform",
    "karras": "karras",
    "exponential": "exponential",
    "ddim_uniform": "leading",
    "beta": "beta",
    "normal": "uniform",
    "linear_quadratic": "linear_quadratic",
    "kl_optimal": "kl_optimal",
}
# Samplers and lists that Forge has beside A1111's (modules/sd_samplers_kdiffusion.py, sd_schedulers.py), its spellings;
# names of A1111's older versions; diffusers' classes.
FURTHER = {
    "DPM fast": "dpm_fast",
    "DPM adaptive": "dpm_adaptive",
    "k_dpm_fast": "dpm_fast",
    "k_dpm_ad": "dpm_adaptive",
    "DDIM CFG++": "ddim_cfg_pp",
    "ddim_cfgpp": "ddim_cfg_pp",
    "HeunPP2": "heunpp2",
    "IPNDM": "ipndm",
    "IPNDM_V": "ipndm_v",
    "DEIS": "deis",
    "Euler CFG++": "euler_cfg_pp",
    "Euler a CFG++": "euler_ancestral_cfg_pp",
    "DPM++ 2M CFG++": "dpmpp_2m_cfg_pp",
    "DPM++ 2S a CFG++": "dpmpp_2s_ancestral_cfg_pp",
    "TCD": "tcd",
    "TCDScheduler": "tcd",
    "SASolverScheduler": "sa_solver_2",
    "SA-Solver": "sa_solver",
    "IPNDMScheduler": "ipndm",
    "DPMSolverSinglestepScheduler": "dpmpp_singlestep",
    "sample_res_multistep": "res_multistep",
    "ER SDE": "er_sde",
    "SEEDS 2": "seeds_2",
    "Gradient estimation": "gradient_estimation",
}
FURTHER_LISTS = {
    "Turbo": "turbo",
    "turbo": "turbo",
    "SDTurboScheduler": "sd_turbo",
    "Align Your Steps GITS": "align_your_steps_gits",
    "align_your_steps_GITS": "align_your_steps_gits",
    "Align Your Steps 11": "align_your_steps_11",
    "align_your_steps_11": "align_your_steps_11",
    "Align Your Steps 32": "align_your_steps_32",
    "AYS 32": "align_your_steps_32",
    "Linear Quadratic": "linear_quadratic",
    "linear quadratic": "linear_quadratic",
}


@pytest.mark.parametrize(("name", "expected"), [*COMFYUI.items(), *FURTHER.items()])
def test_names_that_other_programs_have(name: str, expected: str) -> None:
    # A class of diffusers brings its own list.
    assert resolve(name) == (expected, "diffusers" if name.endswith("Scheduler") else None)
    assert resolve(f"{name} Karras") == (expected, "karras")


@pytest.mark.parametrize(("name", "expected"), [*COMFYUI_SCHEDULES.items(), *FURTHER_LISTS.items()])
def test_lists_that_other_programs_have(name: str, expected: str) -> None:
    assert resolve_schedule(name) == expected
    assert resolve(f"Euler {name}") == ("euler", expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("UniPC", "unipc_bh1"),  # A1111's label; its option "UniPC variant" is bh1 unless one changes it
        ("unipc", "unipc_bh1"),
        ("uni_pc", "unipc_bh1"),  # ComfyUI
        ("uni_pc_bh2", "unipc_bh2"),  # ComfyUI
        ("UniPCMultistepScheduler", "unipc_bh2"),  # diffusers, whose solver_type is bh2 unless one changes it
    ],
)
def test_unipc_means_the_variant_that_its_tool_means(name: str, expected: str) -> None:
    assert resolve(name)[0] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EulerDiscreteScheduler", "euler"),
        ("HeunDiscreteScheduler", "heun"),
        ("KDPM2DiscreteScheduler", "dpm_2"),
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral"),
        ("LMSDiscreteScheduler", "lms"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverSinglestepScheduler", "dpmpp_singlestep"),
        ("UniPCMultistepScheduler", "unipc_bh2"),
        ("DEISMultistepScheduler", "deis"),
        ("DDIMScheduler", "ddim"),
        ("DDPMScheduler", "ddpm"),
        ("PNDMScheduler", "plms"),
        ("LCMScheduler", "lcm"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("DPMSolverSDEScheduler", "dpmpp_sde"),
    ],
)
def test_a_class_of_diffusers_means_its_own_list(name: str, expected: str) -> None:
    """The kind: a name that one tool alone has means that tool's list, not A1111's; unless a list is named too."""
    assert resolve(name) == (expected, "diffusers")
    assert resolve(f"{name} Karras") == (expected, "karras")
    assert resolve(SAMPLER_INFOS[expected].label) == (expected, None)


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("dpmpp_2m_k", "dpmpp_2m", "karras"),
        ("dpmpp_2m", "dpmpp_2m", "diffusers"),
        ("euler", "euler", "diffusers"),
        ("euler_k", "euler", "karras"),
        ("euler_a", "euler_ancestral", "diffusers"),
        ("kdpm_2", "dpm_2", "diffusers"),
        ("kdpm_2_k", "dpm_2", "karras"),
        ("kdpm_2_a_k", "dpm_2_ancestral", "karras"),
        ("lms_k", "lms", "karras"),
        ("heun_k", "heun", "karras"),
        ("deis", "deis", "diffusers"),
        ("deis_k", "deis", "karras"),
        ("unipc", "unipc_bh2", "diffusers"),
        ("unipc_k", "unipc_bh2", "karras"),
        ("pndm", "plms", "diffusers"),
        ("dpmpp_2m_sde_k", "dpmpp_2m_sde", "karras"),
        ("dpmpp_2m_sde", "dpmpp_2m_sde", None),
        ("dpmpp_3m_k", "dpmpp_3m_sde", "karras"),
        ("lcm", "lcm", "diffusers"),
    ],
)
def test_names_of_invokeai(name: str, sampler: str, schedule: str | None) -> None:
    """InvokeAI 5's list of schedulers: classes of diffusers, `_k` with Karras' list."""
    assert resolve_invokeai(name) == (sampler, schedule)
    if name.endswith("_k") and name[:-2] not in ("unipc", "dpmpp_3m"):
        assert resolve(name) == (sampler, schedule)


def test_diffusers_unipc_is_bh2_indeed() -> None:
    scheduler = pytest.importorskip("diffusers.schedulers.scheduling_unipc_multistep").UniPCMultistepScheduler()
    assert scheduler.config.solver_type == "bh2"


@pytest.mark.parametrize(("schedule", "expected"), A1111_SCHEDULES.items())
def test_sampler_and_schedule_in_one_name(schedule: str, expected: str) -> None:
    assert resolve_schedule(schedule) == expected
    for name, sampler in A1111.items():
        assert resolve(f"{name} {schedule}") == (sampler, expected)


def test_defaults_of_a1111() -> None:
    assert {name: sampler_info(name).default_schedule for name in A1111_DEFAULTS} == A1111_DEFAULTS
    discarding = {info.label for info in SAMPLER_INFOS.values() if info.discard_penultimate}
    assert discarding == {"DPM2", "DPM2 a", "DPM++ 3M SDE"}


def known(name: str) -> bool:
    """Resolves, or is refused with the nearest offered one."""
    try:
        return resolve(name)[0] in SAMPLER_INFOS
    except UnknownName as error:
        return "known but not offered" in str(error)


def test_every_interchangeable_scheduler_of_diffusers() -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_utils")
    names = [member.name for member in module.KarrasDiffusionSchedulers]
    assert len(names) > 10
    assert [name for name in names if not known(name)] == []


@pytest.mark.skipif(importlib.util.find_spec("k_diffusion") is None, reason="k-diffusion is not installed")
def test_every_sampler_of_k_diffusion() -> None:
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None, "skipped otherwise"
    assert spec.origin is not None, "k_diffusion has no file"
    tree = ast.parse(Path(spec.origin).with_name("sampling.py").read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("sample_")]
    assert len(names) > 10
    assert [name for name in names if not known(name)] == []


def test_no_two_entries_share_a_name() -> None:
    for infos in (SAMPLER_INFOS, SCHEDULE_INFOS):
        keys = [{_fold(key) for key in (info.name, info.label, *info.aliases)} for info in infos.values()]
        assert sum(len(names) for names in keys) == len(set().union(*keys))


def test_own_names_are_fixed_points() -> None:
    assert all(resolve(name) == (name, None) for name in SAMPLER_INFOS)
    assert all(resolve_schedule(name) == name for name in SCHEDULE_INFOS)
    assert all(info.default_schedule in SCHEDULE_INFOS for info in SAMPLER_INFOS.values())


@pytest.mark.parametrize(("name", "nearest"), sorted(NOT_OFFERED.items()))
def test_known_but_not_offered(name: str, nearest: str) -> None:
    assert nearest in SAMPLER_INFOS
    for spelling in (name, f"{name} Karras"):
        with pytest.raises(UnknownName, match=f"known but not offered.*'{nearest}'"):
            resolve(spelling)


@pytest.mark.parametrize("name", ["", "   ", "karras", "xyzzy", "++", "DPM++ 2M Kerros!"])
def test_unknown(name: str) -> None:
    with pytest.raises(UnknownName, match="gouache samplers"):
        resolve(name)


def test_the_nearest_is_offered() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'euler_ancestral'"):
        resolve("euler_ancestrl")
    with pytest.raises(UnknownName, match="Did you mean 'sgm_uniform'"):
        resolve_schedule("sgm unifrm")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gouache.cli.main import main; sys.argv[0] = 'gouache'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


def test_the_command_lists_everything() -> None:
    listing = json.loads(run("samplers", "--json").stdout)
    assert [entry["name"] for entry in listing["samplers"]] == list(SAMPLER_INFOS)
    assert [entry["name"] for entry in listing["schedules"]] == list(SCHEDULE_INFOS)
    assert "k_euler_a" in {alias for entry in listing["samplers"] for alias in entry["aliases"]}
    assert set(listing["not_offered"]) == set(NOT_OFFERED)
    table = run("samplers").stdout
    assert all(name in table for name in (*SAMPLER_INFOS, *SCHEDULE_INFOS))


def test_the_table_needs_no_torch() -> None:
    code = "import sys, gouache.cli.info; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
