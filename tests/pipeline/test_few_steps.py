"""Single files and LoRA files that were distilled to few steps: what tells it, and what a request gets.

The kind of fault: such a model painted with 50 steps and guidance, which gives a burnt picture without a word; and a
name that changes settings behind the user's back. Judge of pictures: diffusers' schedulers over the same weights.
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.convert import convert
from gouache.checkpoints.identify import identify
from gouache.cli.main import app
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = {"width": 32, "height": 32, "determinism": "cpu", "seed": 5, "prompt": "a red cup"}
PLAIN: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def request(**more: Any) -> Request:
    return Request.from_dict({**SIZE, **more}, where="request")


Writer = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def written(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Writes an SDXL model as a single file with a title; configs tell its tiny networks."""
    root = tmp_path_factory.mktemp("few")
    twins.of("sdxl").save(root / "plain")
    convert(root / "plain", root / "one.safetensors", "single-file")
    tensors = load_file(root / "one.safetensors")
    with safe_open(root / "one.safetensors", "pt") as file:
        kept = {key: value for key, value in file.metadata().items() if key.startswith("gouache.")}

    def write(path: Path, title: str) -> Path:
        save_file(tensors, path, {**kept, "modelspec.title": title})
        return path

    return write


def psnr(first: Any, second: np.ndarray) -> float:
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second * 255.0) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def theirs(twins: Twins, class_name: str, steps: int, *, eta: float = 0.0, **values: Any) -> np.ndarray:
    """diffusers' picture without guidance."""
    parts = {**twins.of("sdxl").theirs.components, "scheduler": getattr(diffusers, class_name)(**PLAIN, **values)}
    pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture: np.ndarray = pipeline(
        "a red cup",
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=0.0,
        eta=eta,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    return picture


TRAILING = {"timestep_spacing": "trailing"}
CASES: list[tuple[str, tuple[str, str, int], str, dict[str, Any]]] = [
    ("SDXL-Lightning 2-step", ("euler", "trailing", 2), "EulerDiscreteScheduler", TRAILING),
    ("SDXL Turbo", ("euler_ancestral", "trailing", 1), "EulerAncestralDiscreteScheduler", TRAILING),
    ("lcm-dreamshaper-xl", ("lcm", "lcm", 4), "LCMScheduler", {}),
    ("TCD-SDXL 4 step", ("tcd", "lcm", 4), "TCDScheduler", {}),
    ("Hyper-SDXL-2steps", ("ddim", "trailing", 2), "DDIMScheduler", {**TRAILING, "clip_sample": False}),
]


@pytest.mark.parametrize(
    ("title", "expected", "class_name", "values"),
    [pytest.param(*case, marks=() if k in (1, 3) else (pytest.mark.slow,)) for k, case in enumerate(CASES)],
)
def test_a_title_in_the_metadata_sets_the_defaults(
    written: Writer,
    twins: Twins,
    tmp_path: Path,
    title: str,
    expected: tuple[str, str, int],
    class_name: str,
    values: dict[str, Any],
) -> None:
    path = written(tmp_path / "one.safetensors", title)
    pipeline = Pipeline.load(path, device="cpu")
    (painted,) = pipeline.paint(request())
    resolved = painted.recipe.request
    assert (resolved.sampler, resolved.schedule, resolved.num_inference_steps) == expected
    assert resolved.guidance_scale == 1.0
    assert any("modelspec.title" in note and expected[0] in note for note in painted.recipe.notes)
    assert identify(path).sampling.endswith(f"guidance 1{', eta 0.3' * (expected[0] == 'tcd')}")
    # diffusers' pipelines give TCD's step their own 0 where nothing is said; the paper has 0.3.
    judge = theirs(twins, class_name, expected[2], eta=0.3 * (expected[0] == "tcd"), **values)
    assert judge.std() > 0.05, "the reference is nearly constant, agreement would say nothing"
    assert psnr(painted.image, judge) >= 60
    asked = pipeline.plan(request(sampler="dpmpp_2m", schedule="karras", num_inference_steps=9, guidance_scale=4.0))
    assert (asked.request.sampler, asked.request.num_inference_steps, asked.notes) == ("dpmpp_2m", 9, ())


def test_a_name_alone_changes_nothing_and_says_so(written: Writer, tmp_path: Path) -> None:
    path = written(tmp_path / "sdxl_lightning_4step.safetensors", "merge")
    pipeline = Pipeline.load(path, device="cpu")
    plan = pipeline.plan(request())
    assert (plan.request.num_inference_steps, plan.request.guidance_scale) == (50, 5.0)
    (note,) = [note for note in plan.notes if "SDXL-Lightning" in note]
    assert "euler, schedule trailing, 4 steps, guidance 1" in note
    assert pipeline.plan(request(sampler="euler", num_inference_steps=4, guidance_scale=1.0)).notes == ()
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    found = json.loads(shown.stdout)
    assert found["sampling"] == ""
    assert any("SDXL-Lightning" in text for text in found["notes"])


def test_a_lora_s_name_is_worth_a_note(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is painted as diffusers paints it with the settings of the note."""
    pair, generator = twins.of("sdxl"), torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in pair.theirs.unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, inside = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(3, inside, generator=generator) * 0.2
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(out, 3, generator=generator) * 0.2
    folder = tmp_path / "adapters" / "lcm-lora-sdxl"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    (found,) = AdapterFolder(tmp_path).files()
    assert (found.name, found.few_steps is not None) == ("lcm-lora-sdxl", True)
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    assert "LCM by its name" in CliRunner().invoke(app, ["models"]).stdout
    ours = Pipeline(pair.ours.bundle)
    asked = {"prompt": "a red cup <lora:lcm-lora-sdxl:1>", "schedule": "lcm", "sampler": "lcm", "guidance_scale": 1.0}
    (painted,) = ours.paint(request(**asked, num_inference_steps=4))
    assert not any("LCM" in note for note in painted.recipe.notes)
    (other,) = ours.paint(request(prompt=asked["prompt"], num_inference_steps=9, sampler="euler", guidance_scale=1.0))
    (note,) = [note for note in other.recipe.notes if "LCM" in note]
    assert "lcm, schedule lcm, 4 steps, guidance 1; this was euler, 9 steps, guidance 1" in note
    pair.theirs.load_lora_weights(folder)
    try:
        judge = theirs(twins, "LCMScheduler", 4)
    finally:
        pair.theirs.unload_lora_weights()
    assert psnr(painted.image, judge) >= 60
