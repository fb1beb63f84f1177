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
