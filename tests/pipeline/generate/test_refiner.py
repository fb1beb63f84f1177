"""A refiner that goes on from the base's latents, with diffusers' ensemble of experts as the judge.

The kind of fault: a step that the wrong model paints, or that the refiner paints from other inputs than its own:
levels, prompt, negative prompt, aesthetic scores, size, the sampler's memory of earlier steps, mask, second pass.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from gouache.errors import GouacheError, InvalidInput, ModelNotFound
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.generate.refiner import refiner_notes
from gouache.pipeline.output.a1111_text import infotext_of, left_out, request_of
from gouache.pipeline.output.infotext import parse_infotext
from gouache.pipeline.output.metadata import PARAMETERS
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
PROMPT, NEGATIVE = "a red fire engine", "blurry"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc_bh2": (diffusers.UniPCMultistepScheduler, {}),
}


def psnr(first: Image.Image, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; the second picture holds numbers in [0, 1]."""
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second.astype(np.float64) * 255) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


@pytest.fixture(scope="module")
def folders(own_twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base and refiner as diffusers writes them, of this file's own twins: `theirs` gives one the other's VAE."""
    found = {name: tmp_path_factory.mktemp(name) / name for name in ("sdxl", "sdxl-refiner", "sd1")}
    for name, folder in found.items():
        own_twins.of(name).save(folder)
    return found


@pytest.fixture(scope="module")
def base(folders: dict[str, Path]) -> Pipeline:
    return Pipeline.load(folders["sdxl"], device="cpu")


def request_for(folders: dict[str, Path], **changes: Any) -> Request:
    plain = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 5,
        "width": 32,
        "height": 32,
        "num_inference_steps": 10,
        "guidance_scale": 6.0,
        "sampler": "euler",
        "schedule": "diffusers",
        "determinism": "cpu",
        "refiner": str(folders["sdxl-refiner"]),
        "refiner_switch_at": 0.6,
    }
    return Request.from_dict({**plain, **changes}, where="request")


def paint(pipeline: Pipeline, request: Request) -> Painted:
    (painted,) = pipeline.paint(request)
    return painted


def theirs(twins: Twins, request: Request, **more: Any) -> np.ndarray:
    """diffusers' two pipelines: latents at `denoising_end`, handed on at `denoising_start`."""
    first, second = twins.of("sdxl").theirs, twins.of("sdxl-refiner").theirs
    second.vae = first.vae  # as its card recommends; ours decodes by the base's too
    kind, options = SCHEDULERS[request.sampler or ""]
    common = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
    }
    for pipeline in (first, second):
        pipeline.scheduler = kind(**BETAS, **options)
    generator = torch.Generator().manual_seed(request.seed or 0)
    latents = first(
        **common,
        height=32,
        width=32,
        denoising_end=request.refiner_switch_at,
        generator=generator,
        output_type="latent",
    ).images
    refined: np.ndarray = second(
        **common,
        image=latents,
        denoising_start=request.refiner_switch_at,
        generator=generator,
        output_type="np",
        **more,
    ).images[0]
    return refined


@pytest.mark.parametrize(
    ("sampler", "share"),
    [
        ("euler", 0.8),
        pytest.param("euler", 0.35, marks=pytest.mark.slow),
        pytest.param("euler_ancestral", 0.6, marks=pytest.mark.slow),
        ("dpmpp_2m", 0.6),
        pytest.param("unipc_bh2", 0.5, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_picture_of_diffusers_ensemble_of_experts(
    own_twins: Twins, base: Pipeline, folders: dict[str, Path], sampler: str, share: float
) -> None:
    request = request_for(folders, sampler=sampler, refiner_switch_at=share)
    painted = paint(base, request)
    assert psnr(painted.image, theirs(own_twins, request)) >= 60
    alone = paint(base, request.replace({"refiner": None}))
    assert psnr(painted.image, np.asarray(alone.image, np.float64) / 255) < 50, "the refiner changes nothing"


@pytest.mark.parametrize("score", [2.0, 9.0])
def test_the_refiner_is_told_the_aesthetic_scores(
    own_twins: Twins, base: Pipeline, folders: dict[str, Path], score: float
) -> None:
    told = {"aesthetic_score": score, "negative_aesthetic_score": 10 - score}
    request = request_for(folders, size_condition=told)
    assert psnr(paint(base, request).image, theirs(own_twins, request, **told)) >= 60


def test_no_negative_prompt_is_zeros_to_the_base_and_words_to_the_refiner(
    own_twins: Twins, base: Pipeline, folders: dict[str, Path]
) -> None:
    request = request_for(folders, negative_prompt=None)
    assert psnr(paint(base, request).image, theirs(own_twins, request)) >= 60


def test_a_starting_picture_is_refined_too(base: Pipeline, folders: dict[str, Path]) -> None:
    """With a strength that leaves nothing to the base, the refiner paints alone, as its own pipeline does."""
    start = Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8))
    data = {"sha256:" + "0" * 64: png(start)}
    request = request_for(folders, init_image=next(iter(data)), strength=0.4, determinism="exact")
    (both,) = base.paint(request, data)
    alone = Pipeline.load(folders["sdxl-refiner"], device="cpu")
    alone = Pipeline(replace(alone.bundle, vae=base.bundle.vae))
    (expected,) = alone.paint(request.replace({"refiner": None}), data)
    assert both.recipe.pixels == expected.recipe.pixels


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def walk_of(base: Pipeline, request: Request) -> list[tuple[float, str]]:
    """Which model is called at which timestep."""
    from gouache.models.unet import UNet

    calls: list[tuple[float, str]] = []
    hooks = []
    base.plan(request)
    refiner = base.plan(request) and base._refiner
    for name, unet in (("base", base.bundle.unet), ("refiner", refiner[1].unet if refiner else None)):
        if isinstance(unet, UNet):
            note = lambda _, args, name=name: calls.append((float(args[1].flatten()[0]), name))  # noqa: E731
            hooks.append(unet.register_forward_pre_hook(note))
    try:
        paint(base, request)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


SAMPLERS = ("heun", "dpm_2_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpm_fast", "restart", "plms", "lcm")
MANY_CALLS = pytest.param("dpm_adaptive", marks=pytest.mark.slow)


@pytest.mark.parametrize("procedure", ["gouache", "a1111"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "euler_ancestral_cfg_pp", MANY_CALLS])
def test_every_sampler_hands_over_once(base: Pipeline, folders: dict[str, Path], sampler: str, procedure: str) -> None:
    """The base is never called again, and no call below the share of timesteps is the base's."""
    noise = "a1111" if procedure == "a1111" else "exact"
    request = request_for(
        folders, sampler=sampler, schedule=None, determinism=noise, procedure=procedure, num_inference_steps=6
    )
    calls = walk_of(base, request)
    names = [name for _, name in calls]
    assert {"base", "refiner"} == set(names)
    assert names == sorted(names), names
    times = [time for time, name in calls if name == "refiner"]
    assert times[0] < 400.5
    # These go up again; A1111's walk is one, so that a step rejected at the hand-over is tried again from above it.
    if sampler not in ("restart", "dpm_fast") and (sampler, procedure) != ("dpm_adaptive", "a1111"):
        assert all(time < 400.5 for time in times)


@pytest.mark.parametrize("by", ["noise", "steps"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_share_counts_timesteps_or_steps(base: Pipeline, folders: dict[str, Path], by: str, share: float) -> None:
    """Karras' levels lie closer to no noise, so that the same share comes earlier among the steps."""
    request = request_for(folders, schedule="karras", refiner_switch_at=share, refiner_switch_by=by)
    calls = walk_of(base, request)
    assert len(calls) == 10
    own = [name == "refiner" for _, name in calls]
    if by == "steps":
        assert own == [k >= share * 10 for k in range(10)]
    else:
        assert own == [time < 1000 * (1 - share) for time, _ in calls]


def test_portable_batches_and_single_pictures_agree(base: Pipeline, folders: dict[str, Path]) -> None:
    request = request_for(folders, count=2, determinism="exact", num_inference_steps=4)
    together = base.paint(request)
    alone = paint(base, request.replace({"count": 1, "seed": 6}))
    assert together[1].recipe.pixels == alone.recipe.pixels
    assert len(together[1].recipe.steps) == 4


def test_with_a_second_pass_the_refiner_paints_in_that_one_alone(base: Pipeline, folders: dict[str, Path]) -> None:
    request = request_for(folders, hires={"scale": 2.0, "strength": 0.8}, num_inference_steps=5, determinism="exact")
    names = [name for _, name in walk_of(base, request)]
    assert names == ["base"] * 7 + ["refiner"] * 2


@pytest.mark.parametrize(
    "more",
    [
        {"tiled": {"tile": 32, "overlap": 0.5}, "width": 48},
        {"seamless": "both"},
        {"guidance_scale": 1.0},
        {"prompt": "a [cat:dog:0.7] AND a (house:1.2)"},
        {"prompt_2": "another"},
        {"apg": {}},
        {"guidance_interval": (0.1, 5.0)},
        {"emphasis": "comfy", "prompt": "(a:1.3) b"},
        {"clip_skip": 2},
        {"interpolation": {"prompt": "a blue house", "frames": 3, "frame": 1}},
    ],
)
def test_the_refiner_reads_the_request_as_the_base_does(
    base: Pipeline, folders: dict[str, Path], more: dict[str, Any]
) -> None:
    request = request_for(folders, num_inference_steps=4, determinism="exact", **more)
    painted = paint(base, request)
    assert paint(base, painted.recipe.request).recipe.pixels == painted.recipe.pixels
    assert paint(base, painted.recipe.request.replace({"refiner": None})).recipe.pixels != painted.recipe.pixels


def test_a_picture_replays_bit_for_bit_and_names_both_models(
    base: Pipeline, folders: dict[str, Path], tmp_path: Path
) -> None:
    painted = paint(base, request_for(folders, num_inference_steps=4, determinism="exact"))
    assert painted.recipe.refiner is not None
    assert painted.recipe.refiner.sha256 != painted.recipe.model.sha256
    assert painted.recipe.refiner.family == "sdxl-refiner"
    file = tmp_path / "picture.png"
    file.write_bytes(painted.encode())
    assert replay(file).same
    data = json.loads(painted.recipe.to_json())
    data["refiner"]["sha256"] = "0" * 64
    other = painted.recipe.from_dict(data, where="recipe")
    file.write_bytes(replace(painted, recipe=other).encode())
    with pytest.raises(ModelNotFound, match="refiner"):
        replay(file)


def test_the_text_names_it_as_a1111_does(base: Pipeline, folders: dict[str, Path]) -> None:
    painted = paint(base, request_for(folders, num_inference_steps=2, refiner_switch_at=0.5, refiner_switch_by="steps"))
    info = parse_infotext(painted.texts()[PARAMETERS])
    assert painted.recipe.refiner is not None
    assert info.values["Refiner"] == f"sdxl-refiner [{(painted.recipe.refiner.sha256 or '')[:10]}]"
    assert info.values["Refiner switch at"] == "0.5"
    read = request_of(info, "text")
    assert (read.refiner, read.refiner_switch_at, read.refiner_switch_by) == ("sdxl-refiner", 0.5, "steps")
    assert not any("Refiner" in note for note in left_out(info))
    assert infotext_of(painted.recipe) == info


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"refiner": "sd1"}, "refiner"),
        ({"refiner": "nowhere"}, "refiner"),
        ({"inversion": {"source_prompt": "x"}, "init_image": "sha256:" + "0" * 64}, "refiner"),
        ({"refiner_switch_at": 1.5}, "refiner_switch_at"),
    ],
)
def test_what_can_not_be_refined_is_refused_by_name(
    base: Pipeline, folders: dict[str, Path], more: dict[str, Any], where: str
) -> None:
    if more.get("refiner") == "sd1":
        config = json.loads((folders["sd1"] / "vae/config.json").read_text())
        (folders["sd1"] / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.9}))
        more = {"refiner": str(folders["sd1"])}
    data = {"sha256:" + "0" * 64: png(Image.new("RGB", (32, 32)))}
    with pytest.raises(GouacheError) as caught:
        base.paint(request_for(folders, **more), data)
    assert where in str(caught.value)


def test_scores_need_a_model_that_takes_them(base: Pipeline, folders: dict[str, Path]) -> None:
    request = request_for(folders, refiner=None, size_condition={"aesthetic_score": 5.0})
    with pytest.raises(InvalidInput, match="aesthetic_score"):
        base.paint(request)


def test_a_request_without_a_refiner_hears_nothing_of_one() -> None:
    of_prompt = Request(prompt="a square <lora:mine:1>")
    assert refiner_notes(of_prompt) == []
    assert refiner_notes(of_prompt.replace({"refiner": "other", "refiner_switch_at": 1})) == [
        "refiner was not used: refiner_switch_at is 1"
    ]
    (note,) = refiner_notes(of_prompt.replace({"refiner": "other", "refiner_switch_at": 0.8}))
    assert note.startswith("LoRA files")
