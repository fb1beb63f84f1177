"""Masks that are grey somewhere: hand-painted, feathered, antialiased, half transparent, or saved as JPEG.

The kind: a mask says how much, not only where. A place of grey g is painted as image to image with strength g times the
request's (Levin and Fried 2023, arXiv:2306.00950): white is plain inpainting, black stays, and lighter never changes
less. A threshold cuts instead, and then, as for a mask of black and white, nothing is different from before. A note
says that a mask is grey, on every route.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.diffusion.samplers.registry import sample
from gouache.errors import InvalidInput
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.inputs.kept import OutsideKept
from gouache.pipeline.inputs.start import StartState
from gouache.pipeline.output.metadata import OWN, read_texts
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Mask, Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

SIDE = 32
STEPS = 5


def png(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def scene() -> Image.Image:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    return Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8))


def grey(value: int) -> Image.Image:
    return Image.new("L", (SIDE, SIDE), value)


def bands(*values: int) -> Image.Image:
    pixels = np.repeat(np.array(values, np.uint8), SIDE // len(values))
    return Image.fromarray(np.broadcast_to(pixels, (SIDE, SIDE)).copy())


def paint(
    pipe: Pipeline, mask: Image.Image | bytes | None, options: dict[str, object] | None = None, **changes: object
) -> Painted:
    """One picture over the scene."""
    files = {"scene": png(scene())}
    values: dict[str, object] = {"prompt": "a cat", "seed": 4, "num_inference_steps": STEPS, "init_image": "scene"}
    if mask is not None:
        files["mask"] = mask if isinstance(mask, bytes) else png(mask)
        values["mask"] = {"image": "mask", "blur": 0, **(options or {})}
    sampler = {"sampler": "euler", "schedule": "karras", "strength": 1.0}
    (painted,) = pipe.paint(Request.from_dict({**values, **sampler, **changes}, where="request"), files)
    return painted


def pixels(painted: Painted) -> np.ndarray:
    return np.asarray(painted.image.convert("RGB")).astype(int)


def told(painted: Painted) -> bool:
    return any("grey" in note for note in painted.recipe.notes)


@pytest.mark.parametrize(
    ("sampler", "value"),
    [("euler", 60), ("euler", 128), ("euler", 204), ("euler", 254), ("ddim", 102), ("heun", 128), ("dpm_2", 180)],
)
def test_a_uniform_grey_is_image_to_image_of_that_strength(pipe: Pipeline, sampler: str, value: int) -> None:
    """For samplers of one step, which remember nothing of the steps in which the picture was held still."""
    share = 1.0 if value == 254 else value / 255  # a white that is off by one is white
    changes: dict[str, Any] = {"sampler": sampler, "strength": 1.0}
    masked = paint(pipe, grey(value), **changes)
    if share == 1.0:
        assert masked.recipe.pixels == paint(pipe, grey(255), **changes).recipe.pixels
        return
    plain = paint(pipe, None, **{**changes, "strength": share})
    assert np.abs(pixels(masked) - pixels(plain)).max() <= 1
    assert told(masked)


@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_the_strength_of_the_request_scales_the_grey(pipe: Pipeline, strength: float) -> None:
    masked = paint(pipe, grey(128), strength=strength, num_inference_steps=10)
    plain = paint(pipe, None, strength=int(10 * strength) / 10 * 128 / 255, num_inference_steps=10)
    assert np.abs(pixels(masked) - pixels(plain)).max() <= 1


SAMPLERS = ["euler", "heun", "ddim", "dpm_2", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "restart", "unipc_bh2", "lms"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lighter_never_changes_less(sampler: str) -> None:
    """Data of deviation 1 have D = x / (1 + sigma^2), and their ODE x(0) = x(sigma) / sqrt(1 + sigma^2): the more steps
    a place is free, the further the picture falls."""
    sigmas = torch.cat([torch.linspace(6.0, 0.2, 40, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    shares = torch.linspace(0, 1, 9, dtype=torch.float64).reshape(1, 1, 1, 9)
    picture = torch.ones(1, 1, 1, 9, dtype=torch.float64)
    start = StartState(latents=picture, mask=shares, skipped=1)
    kept = OutsideKept(lambda x, sigma: x / (1 + sigma**2), start, sigmas)
    x = start.start(torch.zeros_like(picture), 6.0)
    for step in sample(sampler, kept, x, sigmas, noise=lambda *_: torch.zeros_like(picture)):
        kept.reached(step.sigma_next)
        x = step.x
    left = x.flatten()
    assert left[0] == pytest.approx(1.0)
    assert (left.diff() <= 1e-9).all()
    assert left[-1] < left[4] < left[1]
    if sampler in ("heun", "dpm_2"):
        opens = sigmas[40 - (shares.flatten() * 40 + 1e-4).long()]
        assert torch.allclose(left, 1 / torch.sqrt(1 + opens**2), atol=0.02)


@pytest.mark.parametrize(
    ("fill", "only_masked"), [("original", True), ("fill", False), ("noise", True), ("nothing", False)]
)
def test_black_stays_bit_for_bit_beside_grey(pipe: Pipeline, fill: str, only_masked: bool) -> None:
    options = {"fill": fill, "only_masked": only_masked, "padding": 4}
    painted = pixels(paint(pipe, bands(0, 100, 255, 0), options))
    assert (painted[:, :8] == np.asarray(scene())[:, :8]).all()
    assert (painted[:, 24:] == np.asarray(scene())[:, 24:]).all()
    assert (painted[:, 16:24] != np.asarray(scene())[:, 16:24]).mean() > 0.5


def test_grey_too_dark_for_a_single_step_is_black(pipe: Pipeline) -> None:
    painted = pixels(paint(pipe, bands(40, 40, 255, 40)))  # 40 / 255 of five steps is less than one
    assert (painted[:, :16] == np.asarray(scene())[:, :16]).all()


CUTS: dict[str, Image.Image] = {
    "a ramp": bands(*range(0, 256, 8)),
    "feathered": bands(0, 40, 90, 127, 128, 200, 250, 255),
    "uniform": grey(128),
}


@pytest.mark.parametrize("name", list(CUTS))
@pytest.mark.parametrize("threshold", [1, 128, 255])
def test_a_threshold_cuts(pipe: Pipeline, name: str, threshold: int) -> None:
    hard = CUTS[name].point(lambda value: 255 if value >= threshold else 0)
    if hard.getbbox() is None:
        with pytest.raises(InvalidInput, match="empty mask"):
            paint(pipe, CUTS[name], {"threshold": threshold})
        return
    cut = paint(pipe, CUTS[name], {"threshold": threshold, "blur": 2})
    assert not told(cut)
    assert cut.recipe.pixels == paint(pipe, hard, {"blur": 2}).recipe.pixels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fill": "fill", "only_masked": True, "padding": 4},
        {"fill": "noise", "invert": True},
        {"fill": "nothing", "blur": 4},
    ],
)
def test_black_and_white_is_what_it_was(pipe: Pipeline, options: dict[str, object]) -> None:
    mask = bands(0, 255, 255, 0)
    found = paint(pipe, mask, options)
    assert found.recipe.pixels == paint(pipe, mask, {"threshold": 128, **options}).recipe.pixels
    assert not told(found)


def test_an_inverted_grey_is_the_rest_of_the_strength(pipe: Pipeline) -> None:
    inverted = paint(pipe, grey(55), {"invert": True})
    assert inverted.recipe.pixels == paint(pipe, grey(200)).recipe.pixels


def test_whites_and_blacks_of_a_jpeg_are_white_and_black(pipe: Pipeline) -> None:
    mask = Image.fromarray(np.where(np.arange(SIDE) < 16, 2, 252).astype(np.uint8)[None].repeat(SIDE, axis=0))
    assert paint(pipe, mask).recipe.pixels == paint(pipe, bands(0, 255)).recipe.pixels


def test_half_transparency_of_the_picture_is_grey_too(pipe: Pipeline) -> None:
    picture = scene().convert("RGBA")
    picture.putalpha(Image.fromarray(255 - np.asarray(bands(0, 128, 255, 0))))
    request = Request(prompt="a cat", seed=4, num_inference_steps=STEPS, init_image="x", mask=Mask(blur=0))
    (painted,) = pipe.paint(request, {"x": png(picture)})
    assert told(painted)


@pytest.mark.parametrize("kind", ["inpaint", "instruct", "pocket", "depth"])
def test_every_kind_of_model_takes_grey(make_tiny: MakeBundle, pocket: object, kind: str) -> None:
    channels = {"inpaint": 5, "instruct": 4, "depth": 1}.get(kind)
    bundle = pocket if channels is None else make_tiny(draft_channels=channels)
    pipe = Pipeline(bundle)  # type: ignore[arg-type]
    files = {"scene": png(scene()), "mask": png(bands(0, 80, 160, 255))}
    values = {"init_image": "scene", "depth_image": "scene" if kind == "depth" else None, "num_inference_steps": STEPS}
    base = {"prompt": "a cat", "seed": 1, "strength": 1.0, "mask": {"image": "mask", "blur": 0}}
    (painted,) = pipe.paint(Request.from_dict({**base, **values}, where="request"), files)
    assert told(painted)
    assert (pixels(painted)[:, :8] == np.asarray(scene())[:, :8]).all()
    assert (pixels(painted)[:, 24:] != np.asarray(scene())[:, 24:]).mean() > 0.5
    cut = Request.from_dict({**base, **values, "mask": {"image": "mask", "blur": 0, "threshold": 128}}, where="request")
    assert pipe.paint(cut, files)[0].recipe.pixels != painted.recipe.pixels


def test_a_second_pass_keeps_to_the_grey(pipe: Pipeline) -> None:
    hires = {"scale": 2.0, "num_inference_steps": STEPS}
    soft = paint(pipe, grey(128), {"preserve": False}, hires={**hires, "strength": 0.8})
    plain = paint(pipe, None, strength=128 / 255, hires={**hires, "strength": 0.8 * 128 / 255})
    assert (
        np.abs(
            pixels(soft) - np.asarray(plain.image.resize(soft.image.size, Image.Resampling.LANCZOS)).astype(int)
        ).max()
        <= 3
    )


@pytest.mark.parametrize("version", [1, 2])
def test_older_recipes_cut_their_masks(pipe: Pipeline, version: int) -> None:
    made = paint(pipe, bands(0, 100, 200, 255), {"threshold": 128})
    stored = made.recipe.model_dump(mode="json")
    del stored["request"]["mask"]["threshold"]
    old = Recipe.from_dict({**stored, "recipe": version}, where="recipe")
    assert old.request.mask is not None
    assert old.request.mask.threshold == 128
    assert Recipe.from_dict({**stored, "recipe": 3}, where="recipe").request.mask == Mask(image="mask", blur=0)
    assert Recipe.from_dict(made.recipe.model_dump(mode="json"), where="recipe") == made.recipe


def test_the_command_line_paints_grey_or_cuts_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(scene()))
    (tmp_path / "m.png").write_bytes(png(bands(0, 100, 200, 255)))
    quick = ("--model", "untrained", "--steps", "3", "--seed", "1", "--mask", str(tmp_path / "m.png"))
    for name, extra in (("soft", ()), ("cut", ("--mask-threshold", "128"))):
        target = str(tmp_path / f"{name}.png")
        done = CliRunner().invoke(app, ["edit", str(tmp_path / "a.png"), "a cat", *quick, *extra, "-o", target])
        assert done.exit_code == 0, done.output
    texts = (read_texts((tmp_path / f"{name}.png").read_bytes())[OWN] for name in ("soft", "cut"))
    soft, cut = (Recipe.from_json(text, where=OWN) for text in texts)
    assert any("grey" in note for note in soft.notes)
    assert not any("grey" in note for note in cut.notes)
    assert soft.pixels != cut.pixels
