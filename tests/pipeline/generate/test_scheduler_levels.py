"""Lists of levels against diffusers' own schedulers, and the table of their keys against their signatures.

The kind: a class, a key or a default that was copied wrong or is missing, for any number of steps.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.models.scheduler_config import SCHEDULER_CLASSES, SchedulerConfig, setting
from gouache.pipeline.generate.scheduler_levels import scheduler_levels

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LISTED = [
    name
    for name in SCHEDULER_CLASSES
    if name not in ("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler")  # counted in pairs; wants torchsde
]


@pytest.mark.parametrize("n", [1, 2, 7, 20, 30, 50])
@pytest.mark.parametrize("class_name", LISTED)
def test_every_class_s_list(class_name: str, n: int) -> None:
    """Levels, timesteps and the first state of each class in its own defaults."""
    values = {key: SD[key] for key in SD if SCHEDULER_CLASSES[class_name].kind not in ("edm", "flow")}
    more = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    theirs = getattr(diffusers, class_name)(**values, **more)
    theirs.set_timesteps(n)
    kind = SCHEDULER_CLASSES[class_name].kind
    schedule = make_noise_schedule({"edm": "edm", "flow": "flow"}.get(kind, "scaled_linear"))
    ours = scheduler_levels(SchedulerConfig(class_name=class_name), schedule, n)
    wanted = list(dict.fromkeys(float(t) for t in theirs.timesteps))
    if "KDPM2" in class_name:  # every second one is a middle
        wanted = [wanted[0], *wanted[2::2]] if n > 2 else wanted[:: max(n, 1)]
    if ours.timesteps and "KDPM2" not in class_name:
        assert list(ours.timesteps) == pytest.approx(wanted[: len(ours.timesteps)], abs=2e-3)
    if kind not in ("chain", "lcm") and n > 1:
        levels = torch.unique_consecutive(theirs.sigmas).double()
        if kind == "flow":
            levels = levels.clamp(max=1 - 1e-6) / (1 - levels.clamp(max=1 - 1e-6))
        elif kind == "edm":
            levels = levels / 0.5
        assert torch.allclose(ours.sigmas, levels, rtol=2e-4, atol=1e-6)


DYNAMIC: dict[str, object] = {"use_dynamic_shifting": True}
SHIFTED: dict[str, tuple[str, dict[str, object], tuple[int, int]]] = {
    "as Flux": ("FlowMatchEulerDiscreteScheduler", DYNAMIC, (1024, 1024)),
    "small": ("FlowMatchEulerDiscreteScheduler", DYNAMIC, (256, 512)),
    "wide": ("FlowMatchEulerDiscreteScheduler", DYNAMIC, (2048, 768)),
    "its own numbers": (
        "FlowMatchEulerDiscreteScheduler",
        {**DYNAMIC, "base_shift": 0.9, "max_shift": 2.0, "base_image_seq_len": 100, "max_image_seq_len": 8000},
        (768, 768),
    ),
    "linear": ("FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "time_shift_type": "linear"}, (1024, 768)),
    "with a terminal": ("FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "shift_terminal": 0.1}, (1024, 1024)),
    "Karras": ("FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "use_karras_sigmas": True}, (512, 512)),
    "a fixed shift beside": ("FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "shift": 3.0}, (512, 512)),
    "DPM-Solver": ("DPMSolverMultistepScheduler", {**DYNAMIC, "use_flow_sigmas": True}, (512, 768)),
    "UniPC": ("UniPCMultistepScheduler", {**DYNAMIC, "use_flow_sigmas": True}, (512, 768)),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_shift_follows_from_the_size(name: str) -> None:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    class_name, values, (width, height) = SHIFTED[name]
    flow = {"prediction_type": "flow_prediction"} if "use_flow_sigmas" in values else {}
    theirs = getattr(diffusers, class_name)(**values, **flow)
    keys = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
    keys |= {key: key for key in ("base_shift", "max_shift")}
    told = {ours: values[key] for ours, key in keys.items() if key in values}
    theirs.set_timesteps(7, mu=calculate_shift((width // 16) * (height // 16), **told))
    config = SchedulerConfig.from_dict({**values, "class_name": class_name}, where="here")
    ours = scheduler_levels(config, make_noise_schedule("flow"), 7, (width // 16, height // 16))
    levels = theirs.sigmas.double().clamp(max=1 - 1e-6)
    assert torch.allclose(ours.sigmas[1:], (levels / (1 - levels))[1:], rtol=2e-4, atol=1e-6)
    square = scheduler_levels(config, make_noise_schedule("flow"), 7)
    assert ((width, height) == (1024, 1024)) == torch.equal(ours.sigmas, square.sigmas)


def test_classes_take_the_keys_and_defaults_that_diffusers_gives_them() -> None:
    """The table is diffusers' own: defaults of its classes, key by key."""
    for name, known in SCHEDULER_CLASSES.items():
        if name == "DPMSolverSDEScheduler":
            continue
        theirs = {key: p.default for key, p in inspect.signature(getattr(diffusers, name).__init__).parameters.items()}
        assert {key: theirs[key] for key in known.takes} == dict(known.takes), name
        assert theirs.get("timestep_spacing") == known.spacing, name
        assert ("rescale_betas_zero_snr" in theirs) == known.zero_snr, name
        if "beta_start" in theirs:
            assert (theirs["beta_start"], theirs["beta_end"]) == known.betas, name
            assert theirs["beta_schedule"] == known.beta_schedule, name
        relevant = set(SchedulerConfig.model_fields) & set(theirs) - {"timestep_spacing", "steps_offset"}
        assert relevant - {"variance_type"} <= set(known.takes) | {"class_name"}, name
        assert setting(SchedulerConfig(class_name=name), "timestep_spacing") == theirs.get(
            "timestep_spacing", "linspace"
        )
