"""Pictures of extreme shapes: a line of pixels, a single one, as wide as a picture may be.

The kind: arithmetic on sizes that ends at 0. Every way of bringing a picture to a size, every edit that cuts, grows or
enlarges it, gives a picture of the size that was asked for, or a typed error.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.pipeline.generate.enlarge import enlarge_picture
from gouache.pipeline.generate.outpaint import grown
from gouache.pipeline.inputs.images import fit, nearest_size
from gouache.pipeline.inputs.masks import crop_box
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request, ResizeMode

if TYPE_CHECKING:
    from gouache.models.bundle import ModelBundle

THIN = [(2000, 1), (1, 2000), (1, 1), (16384, 1), (1, 16384), (3, 700), (900, 2), (5, 4000), (300, 1), (2, 3)]
MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("mode", MODES)
def test_every_shape_is_brought_to_every_size(size: tuple[int, int], mode: ResizeMode) -> None:
    for wanted in ((8, 8), (128, 128), (8, 2048), (2048, 8), (64, 72)):
        for kind in ("L", "RGB", "RGBA"):
            assert fit(Image.new(kind, size, 200), *wanted, mode).size == wanted


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (64, 64), (100, 7), (31, 17)])
def test_ordinary_shapes_are_padded_as_pillow_fits_them(size: tuple[int, int]) -> None:
    picture = Image.linear_gradient("L").resize(size)
    for wanted in ((64, 64), (40, 24), (24, 40)):
        inner = ImageOps.contain(picture, wanted, Image.Resampling.LANCZOS)
        left, top = (wanted[0] - inner.width) // 2, (wanted[1] - inner.height) // 2
        found = fit(picture, *wanted, "pad").crop((left, top, left + inner.width, top + inner.height))
        assert found.tobytes() == inner.tobytes()


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("factor", [0.01, 0.3, 1.0, 1.3, 2.0])
def test_no_side_of_an_enlarged_picture_is_lost(size: tuple[int, int], factor: float) -> None:
    wanted = tuple(max(1, round(side * factor)) for side in size)
    assert enlarge_picture(Image.new("RGB", size), factor).size == wanted


@pytest.mark.parametrize("size", THIN)
def test_boxes_and_sizes_of_thin_pictures_hold_something(size: tuple[int, int]) -> None:
    for aspect in (0.01, 1.0, 100.0):
        left, top, right, bottom = crop_box((0, 0, 1, 1), size, 0, aspect)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    for multiple in (1, 4, 8, 64):
        assert all(side >= 8 and side % multiple == 0 for side in nearest_size(*size, multiple))
    assert grown(Image.new("RGB", size), (3, 0, 0, 0), 500).mask.getbbox() is not None


EDITS: dict[str, dict[str, object]] = {
    "plain": {},
    "pad": {"resize_mode": "pad", "width": 32, "height": 32},
    "crop": {"resize_mode": "crop", "width": 64, "height": 8},
    "mask": {"mask": {"image": "m", "only_masked": True}, "width": 32, "height": 32},
    "whole mask": {"mask": {"image": "m", "fill": "fill"}, "width": 32, "height": 32},
    "hires": {"resize_mode": "pad", "width": 32, "height": 8, "hires": {"scale": 1.5}},
    "tiled": {"resize_mode": "pad", "width": 64, "height": 8, "tiled": {"tile": 16}},
    "outpaint": {"outpaint": {"left": 8, "overlap": 400}},
    "inversion": {"resize_mode": "pad", "width": 32, "height": 8, "inversion": {"source_prompt": "y"}},
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1)])
def test_every_edit_takes_a_thin_picture(tiny: ModelBundle, edit: str, size: tuple[int, int]) -> None:
    files = {}
    for name, picture in (("s", Image.new("RGB", size, "red")), ("m", Image.new("L", size, 255))):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        files[name] = stream.getvalue()
    values = {"prompt": "x", "seed": 1, "num_inference_steps": 1, "init_image": "s", **EDITS[edit]}
    (painted,) = Pipeline(tiny).paint(Request.from_dict(values, where="request"), files)
    assert min(painted.image.size) >= 1


@pytest.mark.parametrize("mode", MODES)
def test_the_command_takes_a_thin_picture(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (2000, 1), "red").save(tmp_path / "thin.png")
    options = ("--resize-mode", mode, "--size", "32", "--steps", "1", "--model", "untrained")
    target = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["edit", str(tmp_path / "thin.png"), "x", *options, "-o", str(target)])
    assert done.exit_code == 0, done.output
    with Image.open(target) as picture:
        assert picture.size == (32, 32)
