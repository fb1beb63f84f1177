"""What must hold for every model: random weights of each family, and the shipped one where the package has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.decode import decode
from gouache.pipeline.inputs.start import encode
from gouache.pipeline.pipeline import Pipeline, shipped_model
from gouache.pipeline.request import Interpolation, Inversion, Mask, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"family": "sd2", "parameterization": "v"},
    "sdxl": {"family": "sdxl", "sdxl": True},
    "pocket": {},
    "shipped": {},
}
SHIPPED = "shipped"
FIRST, LAST = "a red fire engine, 3d style", "a green frog, flat style"


class Model:
    """One model, and a starting picture of its size.

    Args:
        pipe: paints.
        gentle: the same; with random weights one whose answer changes slowly, as a trained network's does.
        start: the picture's file.
        kind: its name here.
    """

    def __init__(self, pipe: Pipeline, gentle: Pipeline, start: Path, kind: str) -> None:
        self.pipe, self.gentle, self.start, self.kind = pipe, gentle, start, kind
        self.side = pipe.bundle.defaults.width
        self.request = Request(prompt=FIRST, seed=4, num_inference_steps=4, sampler="ddim", schedule="leading")

    def paint(self, **changes: object) -> Image.Image:
        (painted,) = self.pipe.paint(self.request.replace(changes))
        return painted.image

    def edit(self, **changes: object) -> Image.Image:
        return self.paint(init_image=str(self.start), **changes)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, make_tiny: MakeBundle, pocket: ModelBundle, tmp_path_factory: Any) -> Model:
    kind = request.param
    start = tmp_path_factory.mktemp("start") / "start.png"
    if kind == SHIPPED:
        folder = shipped_model()
        if folder is None:
            pytest.skip("this build of the package has no trained model")
        pipe = gentle = Pipeline.load(folder)
        painted = pipe.paint(Request(prompt=FIRST, seed=1, num_inference_steps=10))[0].image
        painted.save(start)
        return Model(pipe, gentle, start, kind)
    bundle = pocket if kind == "pocket" else make_tiny(**KINDS[kind])
    mild = copy.deepcopy(bundle)
    side = bundle.defaults.width
    y, x = np.mgrid[0:side, 0:side] / side
    Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8)).save(start)
    with torch.no_grad():
        mild.unet.get_parameter("conv_out.weight").mul_(0.1)
    return Model(Pipeline(bundle), Pipeline(mild), start, kind)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA"), float)


def psnr(first: Image.Image, second: Image.Image) -> float:
    error = float(np.mean((pixels(first) - pixels(second)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.every_time("sd1", "sd2", "sdxl", "pocket")
def test_strength_has_its_limits(model: Model, tmp_path: Path) -> None:
    with Image.open(model.start) as opened:
        opened.load()
    decoded, _ = decode(model.pipe.bundle, encode(model.pipe.bundle, opened))
    untouched = model.edit(strength=0.0, background="transparent" if decoded.mode == "RGBA" else None)
    assert untouched.tobytes() == decoded.tobytes()
    other = tmp_path / "other.png"
    Image.new("RGB", opened.size, "red").save(other)
    pictures = {model.edit(strength=1.0).tobytes(), model.paint(init_image=str(other), strength=1.0).tobytes()}
    assert pictures == {model.paint().tobytes()}


def test_pixels_outside_a_mask_are_the_same_bits(model: Model, tmp_path: Path) -> None:
    mask = Image.new("L", (model.side, model.side))
    mask.paste(255, (0, 0, model.side // 2, model.side // 2))
    mask.save(tmp_path / "mask.png")
    with Image.open(model.start) as opened:
        before = pixels(opened)
    for only_masked in (False, True):
        options = Mask(image=str(tmp_path / "mask.png"), blur=0, only_masked=only_masked, padding=8)
        after = pixels(model.edit(mask=options, prompt=LAST))
        outside = np.asarray(mask) == 0
        assert (after[outside] == before[outside]).all()
        assert (after[~outside] != before[~outside]).any(-1).mean() > 0.05


@pytest.mark.every_time("sd1", "sd2", "sdxl", "pocket")
def test_tiles_leave_no_seam(model: Model) -> None:
    """Across the tiles' edges the picture changes no more than elsewhere."""
    picture = pixels(model.paint(width=3 * model.side, height=model.side, tiled=Tiled(tile=model.side)))
    assert picture.shape[:2] == (model.side, 3 * model.side)
    steps = np.abs(np.diff(picture, axis=1)).mean((0, 2))
    edges = [k * model.side // 2 - 1 for k in range(1, 6)]
    assert steps[edges].max() < steps.mean() + 4 * steps.std()


@pytest.mark.every_time("sd1", "sd2", "sdxl", "pocket")
def test_a_way_begins_and_ends_at_the_originals(model: Model) -> None:
    way = Interpolation(prompt=LAST, seed=9, frames=3)
    painted = model.pipe.paint(model.request.replace({"interpolation": way}))
    assert painted[0].image.tobytes() == model.paint().tobytes()
    assert painted[2].image.tobytes() == model.paint(prompt=LAST, seed=9).tobytes()
    assert len({one.image.tobytes() for one in painted}) == 3


@pytest.mark.every_time("sd1", "sd2", "sdxl", "pocket")
def test_inversion_and_the_same_prompt_return_the_picture(model: Model) -> None:
    steps = 20 if model.kind == SHIPPED else 12
    edit = model.request.replace({"init_image": str(model.start), "num_inference_steps": steps, "guidance_scale": 1.0})
    inversion = Inversion(source_prompt=FIRST)
    plain = model.gentle.paint(edit.replace({"strength": 0.0}))[0].image
    painted = model.gentle.paint(edit.replace({"inversion": inversion}))[0]
    assert psnr(painted.image, plain) >= 30


def test_seamless_pictures_wrap(model: Model) -> None:
    """The step across the seam is like the steps between other columns that lie as it does on the latents' grid."""
    factor = model.pipe.bundle.vae.config.downscale
    jumps: list[float] = []
    for seed in range(2 if model.kind == SHIPPED else 6):
        picture = pixels(model.paint(seamless="both", seed=seed, num_inference_steps=3))
        for axis in (0, 1):
            steps = np.abs(picture - np.roll(picture, 1, axis=axis)).mean((1 - axis, 2))[::factor]
            jumps.append(float(steps[0] / (steps[1:].mean() + 1.0)))
    assert np.mean(jumps) < 1.15


@pytest.mark.every_time("sd1", "sd2", "sdxl", "pocket")
def test_any_batch_is_the_pictures_made_alone(model: Model) -> None:
    quick = {"num_inference_steps": 2}
    alone = [model.paint(seed=20 + k, **quick).tobytes() for k in range(3)]
    batch = model.pipe.paint(model.request.replace({"seed": 20, "count": 3, **quick}))
    assert [one.image.tobytes() for one in batch] == alone
