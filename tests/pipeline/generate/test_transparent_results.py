"""Where a model paints transparency: opaque pictures stay opaque, and films show no haze."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gouache.pipeline.inputs.masks import cut, surroundings
from gouache.pipeline.output.sheets import encode_film
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Mask, Outpaint, Request


def holed(size: int = 32) -> Image.Image:
    """What a model painted: red with a hole, and a faint haze in it."""
    picture = Image.new("RGBA", (size, size), (255, 0, 0, 255))
    ImageDraw.Draw(picture).rectangle((8, 8, 23, 23), fill=(0, 255, 0, 3))
    return picture


def square_mask(size: int = 32) -> Image.Image:
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).rectangle((6, 6, 25, 25), fill=255)
    return mask


@pytest.mark.parametrize("box", [(0, 0, 32, 32), (4, 4, 28, 28)], ids=["whole", "a part"])
def test_what_shows_through_is_filled_with_the_colours_around(box: tuple[int, int, int, int]) -> None:
    original = Image.new("RGB", (32, 32), (10, 20, 200))
    options = Mask(blur=0, only_masked=box != (0, 0, 32, 32), padding=2)
    masked = cut(original, square_mask(), options, 32, 32, steps=8, opaque=True)
    made = masked.finish(holed())
    assert made.mode == "RGB"
    pixels = np.asarray(made).astype(int)
    assert np.abs(pixels[16, 16] - (10, 20, 200)).max() <= 3, "the hole has the colour around"
    assert tuple(pixels[0, 0]) == (10, 20, 200)
    clear = cut(original, square_mask(), options, 32, 32, steps=8, opaque=False).finish(holed())
    assert clear.mode == "RGBA"
    assert clear.getpixel((16, 16))[3] == 3  # type: ignore[index]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 33)])
def test_surroundings_keep_what_is_known_and_are_smooth(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (90, 120, 30))
    assert surroundings(picture, Image.new("L", size, 0)).tobytes() == picture.tobytes()
    mask = Image.new("L", size, 255)
    mask.putpixel((0, 0), 0)
    assert surroundings(picture, mask).tobytes() == picture.tobytes(), "one colour is known, and is everywhere"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@pytest.mark.parametrize("kind", ["mask", "only_masked", "outpaint", "hires"])
def test_an_opaque_picture_stays_opaque(pipeline: Pipeline, tmp_path: Path, kind: str) -> None:
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 64), (40, 180, 90)).save(start)
    square_mask(64).save(mask)
    part = Mask(image=str(mask), only_masked=kind == "only_masked")
    values: dict[str, object] = {"mask": part, "num_inference_steps": 2, "seed": 1, "prompt": "a red hat"}
    if kind == "outpaint":
        values |= {"mask": None, "outpaint": Outpaint(left=32)}
    if kind == "hires":
        values["hires"] = {"scale": 2.0, "num_inference_steps": 2}
    request = Request.from_dict({"init_image": str(start), "width": 64, "height": 64, **values})
    (painted,) = pipeline.paint(request, progress=False)
    assert painted.image.mode == "RGB"
    again = pipeline.paint(painted.recipe.request, progress=False)[0]
    assert again.recipe.pixels == painted.recipe.pixels
    (clear,) = pipeline.paint(request.replace({"background": "transparent"}), progress=False)
    assert clear.image.mode == "RGBA", "as recipes of before say"


def test_a_picture_with_transparency_keeps_it(pipeline: Pipeline, tmp_path: Path) -> None:
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    picture = Image.new("RGBA", (64, 64), (40, 180, 90, 255))
    picture.putpixel((63, 63), (0, 0, 0, 0))
    picture.save(start)
    square_mask(64).save(mask)
    request = Request(prompt="a red hat", init_image=str(start), mask=Mask(image=str(mask)), num_inference_steps=2)
    (painted,) = pipeline.paint(request.replace({"width": 64, "height": 64, "seed": 1}), progress=False)
    assert painted.image.mode == "RGBA"
    assert painted.image.getpixel((63, 63)) == (0, 0, 0, 0)


def test_a_gif_shows_no_haze_and_keeps_what_is_clear() -> None:
    haze = np.zeros((32, 32, 4), np.uint8)
    haze[..., :3] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    haze[..., 3] = 3
    haze[8:24, 8:24] = (255, 0, 0, 255)
    frames = [Image.fromarray(haze), Image.fromarray(np.roll(haze, 4, axis=0)), Image.new("RGB", (32, 32), "blue")]
    film = Image.open(io.BytesIO(encode_film(frames, ".gif")))
    assert film.n_frames == 3  # type: ignore[attr-defined]
    for number, frame in enumerate(frames[:2]):
        film.seek(number)
        seen = np.asarray(film.convert("RGBA"))
        wanted = np.asarray(frame)[..., 3] == 255
        assert np.array_equal(seen[..., 3] == 255, wanted)
        assert (seen[wanted] == (255, 0, 0, 255)).all()
