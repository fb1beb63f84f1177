"""A folder's scheduler is the model's default: the picture of a request that says nothing is diffusers' picture.

The kind of fault: a key of `scheduler_config.json` (or of the marks that single files carry in its place) that decides
levels, timesteps, steps or guidance and is read by nobody, so that a model is painted by a recipe that isn't its own,
without a word. Judge: diffusers' own pipelines over the same tiny random weights, with the scheduler that the file
describes, started from the same noise. Every class of diffusers that runs in them is here, with each key that it takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gouache.checkpoints.convert import convert
from gouache.checkpoints.identify import identify
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.noise_table import EDM_MEAN, EDM_STD
from gouache.diffusion.rng import ImageNoise, ImageSeed
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

diffusers = pytest.importorskip("diffusers")
# numpy's and diffusers' own complaints, among them those of old files that its pipelines correct.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, SIDE, SEED, PROMPT = 5, 32, 5, "a red fire engine on a hill"
Values = dict[str, Any]
SD: Values = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V: Values = {**SD, "prediction_type": "v_prediction"}
ZERO_SNR: Values = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LEADING: Values = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
FLOW: Values = {**SD, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
OWN_ENDS: Values = {"sigma_min": 0.1, "sigma_max": 10.0}
BETAS: Values = {"trained_betas": [0.001 * (1 + i / 20) for i in range(200)], "num_train_timesteps": 200}
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
EULER, EDM, EDM_DPM = "EulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"

CLIPPED: list[Values] = [{}, {"clip_sample_range": 0.5}, {"thresholding": True, "sample_max_value": 2.0}]
LIMIT: Values = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "lower_order_final": True}
CASES: list[tuple[str, str, Values]] = [
    ("sd1", "DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("sd1", "DDIMScheduler", SD),  # a file of 2022, two keys of which the pipeline corrects
    ("sdxl", "DDIMScheduler", {**SD, "clip_sample": False, "steps_offset": 3}),
    ("sdxl", "DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
    ("sd1", "DDIMScheduler", ZERO_SNR),
    ("sd1", "DDIMParallelScheduler", LEADING),
    ("sd1", "PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    ("sd1", "PNDMScheduler", {**SD, "skip_prk_steps": True, "set_alpha_to_one": True}),
    ("sd1", EULER, SD),
    ("sd1", EULER, {}),
    ("sd1", EULER, LEADING),
    ("sdxl", EULER, LEADING),
    ("sd1", EULER, {**SD, "timestep_spacing": "trailing", "use_karras_sigmas": True}),
    ("sd1", EULER, {**SD, "use_karras_sigmas": True, **OWN_ENDS}),
    ("sd1", EULER, {**SD, "use_exponential_sigmas": True}),
    ("sd1", EULER, {**SD, "use_beta_sigmas": True}),
    ("sd1", EULER, {**SD, "interpolation_type": "log_linear"}),
    ("sd1", EULER, {**LEADING, "final_sigmas_type": "sigma_min"}),
    ("sd1", EULER, ZERO_SNR),
    ("sd1", EULER, {**V, "timestep_type": "continuous", "use_karras_sigmas": True, **OWN_ENDS}),
    ("sd1", EULER, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
    ("sd1", EULER, {**SD, **BETAS}),
    ("sd1", EULER, {**SD, "prediction_type": "sample"}),
    ("sd1", "HeunDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
    ("sd1", "HeunDiscreteScheduler", {**LEADING, "use_karras_sigmas": True}),
    ("sd1", "KDPM2DiscreteScheduler", SD),
    ("sd1", "KDPM2DiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    ("sd1", "LMSDiscreteScheduler", SD),
    ("sd1", "LMSDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    ("sd1", DPM, SD),
    ("sd1", DPM, {**SD, "use_karras_sigmas": True}),
    ("sd1", DPM, {**SD, "use_exponential_sigmas": True}),
    ("sd1", DPM, {**SD, "use_beta_sigmas": True}),
    ("sd1", DPM, {**SD, "use_lu_lambdas": True}),
    ("sdxl", DPM, LEADING),
    ("sd1", DPM, {**SD, "timestep_spacing": "trailing"}),
    ("sd1", DPM, {**SD, "solver_order": 1}),
    ("sd1", DPM, {**SD, "solver_type": "heun"}),
    ("sd1", DPM, {**SD, "euler_at_final": True}),
    ("sd1", DPM, ZERO_SNR),
    ("sd1", DPM, {**FLOW, "flow_shift": 3.0}),
    ("sd1", UNIPC, SD),
    ("sd1", UNIPC, {**SD, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("sd1", UNIPC, {**SD, "solver_order": 3}),
    ("sd1", UNIPC, {**SD, "lower_order_final": False, "solver_order": 1}),
    ("sd1", UNIPC, {**SD, "use_karras_sigmas": True}),
    ("sd1", UNIPC, {**SD, "use_karras_sigmas": True, **OWN_ENDS}),
    ("sd1", UNIPC, {**SD, "final_sigmas_type": "sigma_min"}),
    ("sd1", UNIPC, ZERO_SNR),
    ("sd1", UNIPC, {**FLOW, "flow_shift": 3.0}),
    ("sd1", UNIPC, {**FLOW, "shift_terminal": 0.1}),
    ("sd1", "DPMSolverSinglestepScheduler", {**SD, "lower_order_final": True}),
    ("sd1", "DPMSolverSinglestepScheduler", {**SD, "lower_order_final": True, "use_karras_sigmas": True}),
    ("sd1", "PNDMScheduler", {**SD, "steps_offset": 1}),
    ("sd1", DEIS, SD),
    ("sd1", DEIS, {**SD, "solver_order": 3}),
    ("sd1", DEIS, {**SD, "use_karras_sigmas": True}),
    ("sd1", DEIS, LEADING),
    ("sdxl", EDM, {}),
    ("sdxl", EDM, {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 120.0}),
    ("sdxl", EDM, {"sigma_schedule": "exponential"}),
    ("sdxl", EDM_DPM, {}),
    ("sdxl", EDM_DPM, {"rho": 5.0, "sigma_data": 0.7, "final_sigmas_type": "sigma_min"}),
    ("sdxl", EDM_DPM, {"solver_order": 1, "sigma_min": 0.01}),
    *(("sdxl", "DDIMScheduler", {**SD, **more}) for more in CLIPPED),
    *(("sd1", name, {**SD, **LIMIT}) for name in (DPM, UNIPC, DEIS, "DPMSolverSinglestepScheduler")),
    ("sdxl", "HeunDiscreteScheduler", {**SD, "clip_sample": True, "clip_sample_range": 0.7}),
    ("sdxl", EDM_DPM, {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}),
]
"""Schedulers without noise of their own."""

ONE_STEP: list[tuple[str, str, Values]] = [
    ("sd1", "LCMScheduler", {}),
    ("sd1", "LCMScheduler", {**SD, "original_inference_steps": 100, "timestep_scaling": 5.0}),
    ("sd1", "EulerAncestralDiscreteScheduler", {**SD, "timestep_spacing": "trailing", "steps_offset": 1}),
    ("sd1", "EulerAncestralDiscreteScheduler", LEADING),
    ("sd1", "EulerAncestralDiscreteScheduler", SD),
    ("sd1", "DDPMScheduler", {**SD, "timestep_spacing": "trailing"}),
    ("sd1", "KDPM2AncestralDiscreteScheduler", {**SD, "timestep_spacing": "trailing"}),
    ("sdxl", "DDPMScheduler", {**SD, "timestep_spacing": "trailing"}),
    ("sd1", "LCMScheduler", {"clip_sample": True, "clip_sample_range": 0.6}),
    ("sd1", DPM, {**SD, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
]
"""Schedulers that draw noise; their only step draws none that is used."""

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def written(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that diffusers writes of a family's pipeline, once."""
    root, done = tmp_path_factory.mktemp("folders"), dict[str, Path]()

    def write(family: str) -> Path:
        if family not in done:
            done[family] = root / family
            twins.of(family).save(done[family])
        return done[family]

    return write


@pytest.fixture
def folder(written: Callable[[str], Path], tmp_path: Path) -> Folder:
    """A family's folder with another scheduler's file; `_class_name` None leaves the name to the index."""

    def make(family: str, class_name: str | None, values: Values, name: str = "model") -> Path:
        target = tmp_path / name
        target.mkdir()
        for entry in written(family).iterdir():
            if entry.is_dir() and entry.name != "scheduler":
                (target / entry.name).symlink_to(entry)
        index = json.loads((written(family) / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", class_name]
        (target / "model_index.json").write_text(json.dumps(index))
        (target / "scheduler").mkdir()
        file = {"_class_name": class_name, "_diffusers_version": "0.30.0", **values}
        (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(file))
        return target

    return make


def noise() -> torch.Tensor:
    return ImageNoise([ImageSeed(SEED)]).initial((4, SIDE // 4, SIDE // 4))


def their_picture(twins: Twins, family: str, class_name: str, values: Values, **call: Any) -> np.ndarray:
    """What diffusers paints from the same noise; its pipeline is made anew, as it corrects old schedulers then."""
    parts = {**twins.of(family).theirs.components, "scheduler": getattr(diffusers, class_name)(**values)}
    more: Values = {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}
    pipeline = type(twins.of(family).theirs)(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE, "output_type": "np"}
    picture: np.ndarray = pipeline(prompt=PROMPT, latents=noise(), **size, **call).images[0]
    return picture


def psnr(first: Any, second: np.ndarray) -> float:
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second.astype(np.float64) * 255) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def request(**more: Any) -> Request:
    return Request(prompt=PROMPT, seed=SEED, width=SIDE, height=SIDE, **more)


def named(case: object) -> str | None:
    """A readable name for a case's keys."""
    if not isinstance(case, dict):
        return None
    return ",".join(f"{k}={v}" for k, v in case.items() if k not in SD and k != "trained_betas") or "plain"


def compare(twins: Twins, path: Path, family: str, class_name: str, values: Values, steps: int) -> None:
    (painted,) = Pipeline.load(path).paint(request(num_inference_steps=steps, guidance_scale=5.0))
    theirs = their_picture(twins, family, class_name, values, num_inference_steps=steps, guidance_scale=5.0)
    assert theirs.std() > 0.05, "the reference is nearly constant, agreement would say nothing"
    assert psnr(painted.image, theirs) >= 60
    assert any(class_name in note for note in painted.recipe.notes)


FAST = {0, 2, 6, 8, 13, 30, 40, 41, 51, 58}
"""Cases of every run; the others have the mark slow, as each loads a model and paints in two programs."""


@pytest.mark.parametrize(
    ("family", "class_name", "values"),
    [pytest.param(*case, marks=() if k in FAST else (pytest.mark.slow,)) for k, case in enumerate(CASES)],
    ids=named,
)
def test_the_folder_s_scheduler_is_the_default(
    folder: Folder, twins: Twins, family: str, class_name: str, values: Values
) -> None:
    compare(twins, folder(family, class_name, values), family, class_name, values, STEPS)


@pytest.mark.parametrize(
    ("family", "class_name", "values"),
    [pytest.param(*case, marks=() if k < 3 else (pytest.mark.slow,)) for k, case in enumerate(ONE_STEP)],
    ids=named,
)
def test_schedulers_with_noise(folder: Folder, twins: Twins, family: str, class_name: str, values: Values) -> None:
    compare(twins, folder(family, class_name, values), family, class_name, values, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "class_name", "values"),
    [("sd1", "PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}), ("sdxl", EULER, LEADING)],
)
def test_nothing_said_at_all_in_both_programs(
    folder: Folder, twins: Twins, family: str, class_name: str, values: Values
) -> None:
    """The published folders of SD 1.5 and SDXL: 50 steps, guidance 7.5 and 5."""
    (painted,) = Pipeline.load(folder(family, class_name, values)).paint(request())
    assert psnr(painted.image, their_picture(twins, family, class_name, values)) >= 60


TRAILING: Values = {**SD, "timestep_spacing": "trailing"}
FEW: list[tuple[str, str, Values, str, tuple[str, str, int]]] = [
    ("sd1", "LCMScheduler", {}, "model", ("lcm", "model", 4)),
    ("sdxl", "LCMScheduler", SD, "anything-8step", ("lcm", "model", 8)),
    ("sdxl", "EulerAncestralDiscreteScheduler", TRAILING, "sdxl-turbo", ("euler_ancestral", "trailing", 1)),
    ("sd2", EULER, TRAILING, "sd-turbo", ("euler", "trailing", 1)),
    ("sdxl", EULER, TRAILING, "sdxl-lightning", ("euler", "trailing", 4)),
    ("sdxl", EULER, TRAILING, "sdxl_lightning_2step", ("euler", "trailing", 2)),
    ("sd1", EULER, TRAILING, "model", ("euler", "trailing", 4)),
]


@pytest.mark.parametrize(("family", "class_name", "values", "name", "expected"), FEW)
def test_few_step_models_get_their_recipe(
    folder: Folder,
    twins: Twins,
    family: str,
    class_name: str,
    values: Values,
    name: str,
    expected: tuple[str, str, int],
) -> None:
    """Turbo, Lightning and LCM are painted without guidance in few steps, as their cards say (2023, 2024)."""
    pipeline = Pipeline.load(folder(family, class_name, values, name))
    plan = pipeline.plan(request())
    resolved = plan.request
    assert (resolved.sampler, resolved.schedule, resolved.num_inference_steps) == expected
    assert resolved.guidance_scale == 1.0
    assert f"{expected[2]} step" in plan.notes[0]
    assert "guidance 1" in plan.notes[0]
    if class_name == EULER or expected[2] == 1:  # the others draw noise of their own between the steps
        (painted,) = pipeline.paint(request())
        theirs = their_picture(twins, family, class_name, values, num_inference_steps=expected[2], guidance_scale=0.0)
        assert psnr(painted.image, theirs) >= 60


@pytest.mark.parametrize("values", [ZERO_SNR, LEADING, SD, {**TRAILING, "use_karras_sigmas": True}], ids=named)
def test_other_models_keep_their_guidance(folder: Folder, values: Values) -> None:
    resolved = Pipeline.load(folder("sdxl", EULER, values)).resolve(request())
    assert (resolved.num_inference_steps, resolved.guidance_scale) == (50, 5.0)


def test_what_the_request_says_wins(folder: Folder) -> None:
    pipeline = Pipeline.load(folder("sdxl", "LCMScheduler", {}))
    asked = request(sampler="euler", schedule="karras", num_inference_steps=9, guidance_scale=3.0)
    plan = pipeline.plan(asked)
    assert (plan.request.sampler, plan.request.schedule) == ("euler", "karras")
    assert (plan.request.num_inference_steps, plan.request.guidance_scale) == (9, 3.0)
    assert plan.notes == ()
    assert pipeline.resolve(request(sampler="Euler a")).schedule == "uniform"
    assert (
        pipeline.plan(request(schedule="model", sampler="euler")).notes[0].startswith("from the model's LCMScheduler")
    )


def test_a_recipe_replays_bit_for_bit(folder: Folder) -> None:
    pipeline = Pipeline.load(folder("sd1", UNIPC, {**SD, "use_karras_sigmas": True}))
    (first,) = pipeline.paint(request(num_inference_steps=3))
    (again,) = pipeline.paint(first.recipe.request)
    assert again.recipe.pixels == first.recipe.pixels
    assert again.recipe.steps == first.recipe.steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ({"_class_name": "CosineDPMSolverMultistepScheduler"}, "CosineDPMSolver"),
        ({"_class_name": "MyScheduler"}, "MyScheduler"),
        ({"_class_name": EULER, "beta_schedule": "sigmoid"}, "sigmoid"),
        ({"_class_name": EULER, "prediction_type": "flow"}, "prediction_type = 'flow'"),
        ({"_class_name": EULER, "prediction_type": ["epsilon"]}, "prediction_type"),
        ({"_class_name": EULER, "timestep_spacing": "trailed"}, "timestep_spacing"),
        ({"_class_name": EULER, "final_sigmas_type": "one"}, "final_sigmas_type"),
        ({"_class_name": EULER, "use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas and"),
        ({"_class_name": EULER, **V, "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": UNIPC, "use_flow_sigmas": True}, "prediction_type = 'epsilon'"),
        ({"_class_name": UNIPC, "prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"_class_name": EDM, "prediction_type": "sample"}, "sample"),
        ({"_class_name": EDM, "sigma_data": -1.0}, "sigma_data"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "stochastic_sampling"),
    ],
)
def test_what_is_not_known_is_refused_by_name(folder: Folder, values: Values, message: str) -> None:
    path = folder("sd1", EULER, values)
    for read in (identify, load_bundle):
        with pytest.raises(IncompatibleCheckpoint, match=message) as caught:
            read(path)
        assert "scheduler_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("class_name", "values", "note"),
    [
        (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, "algorithm_type"),
        (DPM, {"solver_order": 3}, "solver_order"),
        (DPM, {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        (UNIPC, {"predict_x0": False}, "predict_x0"),
        (UNIPC, {"disable_corrector": [0, 1]}, "disable_corrector"),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "geometric"),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}, "variance_type"),
    ],
)
def test_what_is_done_otherwise_is_noted(folder: Folder, class_name: str, values: Values, note: str) -> None:
    path = folder("sdxl", class_name, {**SD, **values})
    assert any(note in text for text in identify(path).notes)
    pipeline = Pipeline.load(path)
    assert any(note in text for text in pipeline.plan(request()).notes)
    assert pipeline.plan(request(sampler="euler", schedule="karras")).notes == ()


@pytest.mark.parametrize(
    ("class_name", "values"),
    [
        ("LCMScheduler", {"original_inference_steps": 100}),
        pytest.param(EULER, {**LEADING, "use_karras_sigmas": True}, marks=pytest.mark.slow),
        pytest.param(UNIPC, {**FLOW, "flow_shift": 3.0}, marks=pytest.mark.slow),
        pytest.param(EDM, {"prediction_type": "v_prediction", "sigma_data": 1.0}, marks=pytest.mark.slow),
        (EDM_DPM, {}),
        pytest.param(DPM, ZERO_SNR, marks=pytest.mark.slow),
        pytest.param("DDIMScheduler", {"clip_sample": False, "steps_offset": 2}, marks=pytest.mark.slow),
        pytest.param("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, marks=pytest.mark.slow),
    ],
)
def test_writing_a_folder_keeps_its_scheduler(folder: Folder, tmp_path: Path, class_name: str, values: Values) -> None:
    """Through the own format too; diffusers reads the same scheduler back."""
    source = folder("sdxl", class_name, values)
    convert(source, tmp_path / "own", "gouache")
    convert(tmp_path / "own", tmp_path / "again", "diffusers")
    first, again = load_bundle(source), load_bundle(tmp_path / "again")
    assert again.defaults == first.defaults
    if class_name == "LCMScheduler":  # a few-step model's settings travel in a single file too
        convert(source, tmp_path / "one.safetensors", "single-file")
        assert load_bundle(tmp_path / "one.safetensors").defaults == first.defaults
        assert "gouache.defaults" in identify(tmp_path / "one.safetensors").sampling
    assert again.denoiser_config.parameterization == first.denoiser_config.parameterization
    assert torch.equal(again.schedule.sigmas, first.schedule.sigmas)
    assert again.vae.config.scale == pytest.approx(first.vae.config.scale)
    theirs = getattr(diffusers, class_name).from_pretrained(tmp_path / "again", subfolder="scheduler")
    wanted = getattr(diffusers, class_name)(**values)
    for one in (theirs, wanted):
        one.set_timesteps(5)
    assert torch.allclose(theirs.timesteps.double(), wanted.timesteps.double())
    assert json.loads((tmp_path / "again/model_index.json").read_text())["scheduler"] == ["diffusers", class_name]


@pytest.mark.slow
def test_latents_with_mean_and_deviation_are_playground_s(folder: Folder, twins: Twins, tmp_path: Path) -> None:
    """Playground 2.5: EDM with sigma_data 0.5, latents with a mean and deviation for each channel; as a single file
    too, which tells both by tensors."""
    statistics = {"latents_mean": [-1.6, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2], "scaling_factor": 0.5}
    source = folder("sdxl", EDM_DPM, {})
    config = json.loads((source / "vae/config.json").read_text())
    weights = source / "vae" / "diffusion_pytorch_model.safetensors"
    resolved = weights.resolve()
    (source / "vae").unlink()
    (source / "vae").mkdir()
    weights.symlink_to(resolved)
    (source / "vae/config.json").write_text(json.dumps({**config, **statistics}))
    vae = twins.of("sdxl").theirs.vae
    before = {key: vae.config.get(key) for key in statistics}
    vae.register_to_config(**statistics)
    try:
        theirs = their_picture(twins, "sdxl", EDM_DPM, {}, num_inference_steps=STEPS, guidance_scale=3.0)
    finally:
        vae.register_to_config(**before)
    for layout, target in (("diffusers", "folder"), ("gouache", "own"), ("single-file", "one.safetensors")):
        convert(source, tmp_path / target, layout)  # type: ignore[arg-type]
        bundle = load_bundle(tmp_path / target)
        (painted,) = Pipeline(bundle).paint(request(num_inference_steps=STEPS, guidance_scale=3.0))
        assert psnr(painted.image, theirs) >= 60, layout
    from safetensors import safe_open

    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert file.get_tensor(EDM_MEAN).tolist() == pytest.approx(statistics["latents_mean"])
        assert file.get_tensor(EDM_STD).tolist() == pytest.approx(statistics["latents_std"])


def test_cosxl_s_marks_in_a_single_file(folder: Folder, twins: Twins, tmp_path: Path) -> None:
    values = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 120.0}
    convert(folder("sdxl", EDM, values), tmp_path / "cosxl.safetensors", "single-file")
    found = identify(tmp_path / "cosxl.safetensors")
    assert (found.prediction, found.sampling) == ("v", "EDMEulerScheduler: euler, schedule model")
    (painted,) = Pipeline.load(tmp_path / "cosxl.safetensors").paint(
        request(num_inference_steps=STEPS, guidance_scale=3.0)
    )
    theirs = their_picture(twins, "sdxl", EDM, values, num_inference_steps=STEPS, guidance_scale=3.0)
    assert psnr(painted.image, theirs) >= 60


@pytest.mark.parametrize(
    ("shift", "more"),
    [
        (3.0, {}),
        pytest.param(1.0, {}, marks=pytest.mark.slow),
        pytest.param(6.0, {"use_karras_sigmas": True}, marks=pytest.mark.slow),
        pytest.param(3.0, {"use_exponential_sigmas": True}, marks=pytest.mark.slow),
        pytest.param(3.0, {"use_beta_sigmas": True}, marks=pytest.mark.slow),
        pytest.param(3.0, {"shift_terminal": 0.02}, marks=pytest.mark.slow),
    ],
)
def test_flow_matching_folders(folder: Folder, shift: float, more: Values) -> None:
    """No pipeline of diffusers runs a U-Net of these families with its flow scheduler: its loop is written out here."""
    values = {"shift": shift, **more}
    pipeline = Pipeline.load(folder("sd1", "FlowMatchEulerDiscreteScheduler", values))
    bundle = pipeline.bundle
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**values)
    scheduler.set_timesteps(STEPS)
    context = bundle.text.encode([bundle.text.tokenize(PROMPT)]).context
    x = noise()
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = bundle.unet(x, t[None].float(), context)
            x = scheduler.step(out, t, x, return_dict=False)[0]
        theirs = ((bundle.vae.decode(x)[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    (painted,) = pipeline.paint(request(num_inference_steps=STEPS, guidance_scale=1.0, emphasis="none"))
    assert psnr(painted.image, theirs) >= 60


def test_more_steps_than_a_list_has_are_refused(folder: Folder) -> None:
    pipeline = Pipeline.load(folder("sd1", "LCMScheduler", {}))
    with pytest.raises(InvalidInput, match="distilled"):
        pipeline.paint(request(num_inference_steps=51))


MORE = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LMSDiscrete", "DDIM", "PNDM", "DDPM", "LCM")
CLASS_NAMES = [DPM, UNIPC, EULER, DEIS, "EulerAncestralDiscreteScheduler", *(f"{name}Scheduler" for name in MORE)]


@pytest.mark.parametrize(
    "class_name",
    [pytest.param(name, marks=() if k < 2 else (pytest.mark.slow,)) for k, name in enumerate(CLASS_NAMES)],
)
def test_a_class_s_name_gives_its_list(folder: Folder, twins: Twins, class_name: str) -> None:
    """`--sampler UniPCMultistepScheduler` walks that class's own levels, from its own start, as
    `UniPCMultistepScheduler.from_config(pipe.scheduler.config)` does; not A1111's Karras list."""
    path = folder("sdxl", EULER, LEADING)
    pipeline = Pipeline.load(path)
    random = class_name in ("DDPMScheduler", "LCMScheduler") or "Ancestral" in class_name
    steps = 1 if random else STEPS
    asked = request(sampler=class_name, num_inference_steps=steps, guidance_scale=4.0)
    (painted,) = pipeline.paint(asked)
    given = diffusers.EulerDiscreteScheduler.from_pretrained(path, subfolder="scheduler")
    made = getattr(diffusers, class_name).from_config(given.config)
    more = {"clip_sample": False, "skip_prk_steps": True}
    values = {key: more.get(key, value) for key, value in made.config.items() if not key.startswith("_")}
    theirs = their_picture(twins, "sdxl", class_name, values, num_inference_steps=steps, guidance_scale=4.0)
    assert psnr(painted.image, theirs) >= 60
    assert painted.recipe.request.schedule == "diffusers"
