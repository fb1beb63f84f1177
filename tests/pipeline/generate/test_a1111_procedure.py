"""AUTOMATIC1111's procedure: its counts, sizes, clocks and masks, and the table of whole pictures.

The fault's kind: settings that A1111 and gouache both have and that meant something else here, without a word: how many
steps a strength walks, what noise a second pass gets and how large it is, when a prompt changes, where a mask ends,
what a starting picture is at full strength, how a colour becomes a byte. benchmarks/same_picture.py measures whole
pictures; the rest is held to that program's documented results, OpenCV and counts written out by hand.
"""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gouache.errors import InvalidInput
from gouache.pipeline.generate.a1111_procedure import (
    SECOND_ORDER,
    entry_scale,
    middle_of,
    second_size,
    second_walk,
    skipped_steps,
)
from gouache.pipeline.inputs.a1111_masks import blurred, cut_like_a1111, mask_of, resized
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.chunks import fill_chunks
from gouache.pipeline.prompts.syntax import schedule, sections
from gouache.pipeline.request import Hires, Mask, Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle
    from tests.pipeline.twins import Twins

# diffusers' own, and numpy's about it; k-diffusion's and torchsde's.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")]
ROOT = Path(__file__).parents[3]
QUICK = (
    "EulerAncestralDiscreteScheduler, trailing, sd1",
    "DPM++ 2M SDE, RNG: CPU",
    "prompt edit",
    "img2img, denoising strength 1",
    "inpaint, masked content fill",
    "inpaint, only masked",
    "hires fix, both sides cut",
)
"""Cases of every run; the others are slow only by their number."""


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """benchmarks/same_picture.py."""
    path = ROOT / "benchmarks" / "same_picture.py"
    spec = importlib.util.spec_from_file_location("same_picture_under_test", path)
    assert spec is not None, "the script is there"
    assert spec.loader is not None, "it is Python"
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def reaches(script: Any, twins: Twins, wanted: Any) -> None:
    cases = [case for case in script.all_cases() if wanted(case.name)]
    assert cases, "some case has this name"
    for case in cases:
        found = script.measure(case, twins)
        assert found.spread >= script.SPREAD, f"{case.name}: the judge's picture is nearly one colour"
        assert found.decibels >= script.REACH, f"{case.name}: {found.decibels:.1f} dB"


@pytest.mark.parametrize("name", QUICK)
def test_a_case_of_the_table_reaches_60_db(script: Any, own_twins: Twins, name: str) -> None:
    reaches(script, own_twins, lambda case: case.startswith(name))


@pytest.mark.slow
def test_every_case_of_the_table_reaches_60_db(script: Any, own_twins: Twins) -> None:
    reaches(script, own_twins, lambda _: True)


def test_the_page_is_the_scripts_table(script: Any) -> None:
    page = (ROOT / "docs" / "same_picture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert [(judge, name) for judge, name, _ in rows] == [(case.judge, case.name) for case in script.all_cases()]
    assert len(rows) >= 40
    assert all(value == "equal" or float(value) >= script.REACH for _, _, value in rows)
    assert all(line in page for line in script.NOT_JUDGED)


# (steps, strength) -> steps that A1111 walks, from int(min(strength, 0.999) * steps) + 1.
WALKED = {
    (20, 0.75): 16,
    (20, 0.5): 11,
    (20, 1.0): 20,
    (20, 0.0): 1,
    (30, 0.3): 10,
    (28, 0.7): 20,
    (50, 0.55): 28,
    (1, 0.75): 1,
    (1, 1.0): 1,
    (7, 0.999): 7,
    (150, 0.01): 2,
    (999, 1.0): 999,
    (1000, 1.0): 1000,
}


@pytest.mark.parametrize(("asked", "walked"), WALKED.items())
def test_image_to_image_walks_one_step_more_than_the_share(asked: tuple[int, float], walked: int) -> None:
    assert asked[0] - skipped_steps(*asked, "euler") == walked
    assert asked[0] - skipped_steps(*asked, "ddim") == walked - 1


@pytest.mark.parametrize(
    ("steps", "strength", "total"),
    [
        (20, 0.7, 28),
        (20, 0.5, 40),
        (10, 0.35, 28),
        (30, 0.6, 50),
        (15, 0.4, 37),
        (20, 1.0, 20),
        (8, 0.9, 8),
        (5, 0.1, 50),
        (50, 0.55, 90),
        (1, 0.7, 1),
        (20, 0.999, 20),
        (25, 0.75, 33),
    ],
)
def test_a_second_pass_walks_all_its_steps_at_the_end_of_a_longer_list(steps: int, strength: float, total: int) -> None:
    assert second_walk(steps, strength, "euler") == (total, total - steps)
    assert second_walk(steps, 0.0, "euler")[1] == steps, "no strength, no steps"


# (width, height, hires) -> what the first picture is enlarged to, and what is painted; 8 pixels a latent.
SIZES = [
    (512, 512, {}, (1024, 1024), (1024, 1024)),
    (512, 512, {"scale": 1.5}, (768, 768), (768, 768)),
    (512, 768, {"scale": 1.3}, (665, 998), (664, 992)),
    (512, 512, {"width": 768}, (768, 768), (768, 768)),
    (512, 512, {"height": 768}, (768, 768), (768, 768)),
    (512, 768, {"width": 768}, (768, 1152), (768, 1152)),
    (768, 512, {"width": 1024}, (1024, 682), (1024, 680)),
    (768, 512, {"height": 1024}, (1536, 1024), (1536, 1024)),
    (512, 512, {"width": 1024, "height": 768}, (1024, 1024), (1024, 768)),
    (512, 512, {"width": 768, "height": 1024}, (1024, 1024), (768, 1024)),
    (512, 768, {"width": 1024, "height": 1024}, (1024, 1536), (1024, 1024)),
    (768, 512, {"width": 1000, "height": 1000}, (1500, 1000), (1000 - 1000 % 8, 1000)),
    (640, 360, {"width": 1280, "height": 720}, (1280, 720), (1280, 720)),
]


@pytest.mark.parametrize(("width", "height", "asked", "enlarged", "painted"), SIZES)
def test_one_side_keeps_the_proportions_and_two_sides_cut(
    width: int, height: int, asked: dict[str, Any], enlarged: tuple[int, int], painted: tuple[int, int]
) -> None:
    found = second_size(Hires(**asked), width, height, 8)
    assert (found.enlarged, found.painted) == (enlarged, painted)


def test_the_middle_leaves_the_larger_half_behind() -> None:
    latents = torch.arange(7.0).expand(1, 1, 4, 7)
    assert middle_of(latents, (4, 4))[0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert middle_of(latents, (3, 7)).shape == (1, 1, 3, 7)


# Written out for a first pass of 10 steps and a second one of 10, as prompt_parser.py documents it.
SECOND_PASS = {
    "a [b:.5] c": ((10, "a b c"),),
    "a [b:1.5] c": ((5, "a  c"), (10, "a b c")),
    "a [b:c:3] d": ((10, "a c d"),),
    "a [b:c:12] d": ((2, "a b d"), (10, "a c d")),
    "a [b:c:1.0] d": ((10, "a c d"),),
    "a [b:c:10] d": ((10, "a c d"),),
    "[b::1.5] d": ((5, "b d"), (10, " d")),
    "[b:[c:d:1.6]:1.3]": ((3, "b"), (6, "c"), (10, "d")),
    "plain": ((10, "plain"),),
    "[a:b:99]": ((10, "a"),),
    "[a:b:2.0]": ((10, "a"),),
}


@pytest.mark.parametrize(("text", "expected"), SECOND_PASS.items())
def test_edits_of_the_first_pass_are_over_in_the_second(text: str, expected: tuple[tuple[int, str], ...]) -> None:
    assert schedule(text, 10, earlier=10) == expected


def test_alternation_begins_anew_in_the_second_pass() -> None:
    assert schedule("[a|b]", 3, earlier=7) == schedule("[a|b]", 3)


BREAKS = {
    "a cat BREAK": ["a cat"],
    "a cat BREAK ": ["a cat"],
    "a cat BREAK\n": ["a cat"],
    "BREAK a cat": ["", "a cat"],
    "a BREAK b": ["a", "b"],
    "a BREAK b BREAK": ["a", "b"],
    "a BREAK BREAK b": ["a", "", "b"],
    "a BREAK BREAK": ["a", ""],
    "BREAK": [""],
    "BREAK BREAK": ["", ""],
    "(a cat BREAK)": ["a cat"],
    "(a:1.2) BREAK": ["a"],
    "a cat, BREAK": ["a cat,"],
    "": [""],
}


@pytest.mark.parametrize(("prompt", "chunks"), BREAKS.items())
def test_a_break_starts_a_chunk_only_if_something_follows(
    make_tiny: MakeBundle, prompt: str, chunks: list[str]
) -> None:
    """Chunks by sd_hijack_clip.py: BREAK ends one, and what is left at the end is one if it has tokens."""
    stack = make_tiny().text
    found = fill_chunks(stack, sections(prompt))
    assert [list(chunk.ids) for chunk in found] == [list(stack.tokenize(text)) for text in chunks]


@pytest.mark.parametrize("sigma", [1, 2, 3, 4, 5, 8, 12, 16, 33, 64])
@pytest.mark.parametrize("size", [(40, 48), (7, 90), (120, 33)])
def test_the_blur_is_opencvs(sigma: int, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(sigma)
    hard = (generator.random(size) > 0.6).astype(np.uint8) * 255
    soft = generator.integers(0, 256, size).astype(np.uint8)
    kernel = 2 * int(2.5 * sigma + 0.5) + 1
    for pixels in (hard, soft):
        expected = cv2.GaussianBlur(cv2.GaussianBlur(pixels, (kernel, 1), sigma), (1, kernel), sigma)
        assert (np.asarray(blurred(Image.fromarray(pixels), sigma)) == expected).all()


def drawn(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


@pytest.mark.parametrize(
    ("box", "padding", "working", "expected"),
    [
        ((30, 24, 53, 47), 8, (40, 40), (22, 16, 62, 56)),
        ((0, 0, 9, 9), 4, (32, 32), (0, 0, 14, 14)),
        ((90, 70, 95, 79), 0, (32, 32), (86, 70, 96, 80)),
        ((10, 10, 49, 19), 0, (32, 32), (10, 0, 50, 40)),
        ((10, 60, 49, 69), 0, (32, 32), (10, 40, 50, 80)),
        ((0, 30, 95, 39), 0, (32, 32), (0, 0, 96, 80)),
        ((40, 0, 44, 79), 0, (64, 32), (0, 0, 96, 80)),
        ((40, 40, 47, 47), 0, (64, 32), (36, 40, 52, 48)),
        ((40, 40, 47, 47), 2, (32, 64), (38, 32, 50, 56)),
        ((1, 1, 94, 78), 32, (48, 40), (0, 0, 96, 80)),
        ((50, 50, 50, 50), 0, (32, 32), (50, 50, 51, 51)),
    ],
)
def test_only_masked_cuts_the_box_that_a1111_cuts(
    box: tuple[int, int, int, int], padding: int, working: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """Written out by hand from masking.py: pad, grow to the shape, push back inside, cut."""
    options = Mask(blur=0, only_masked=True, padding=padding)
    found = cut_like_a1111(Image.new("RGB", (96, 80)), drawn((96, 80), box), options, *working, "stretch")
    assert found.box == expected
    assert found.part.size == working


def test_what_is_outside_the_mask_comes_back_and_what_is_inside_is_new() -> None:
    generator = np.random.default_rng(2)
    picture = Image.fromarray(generator.integers(0, 256, (40, 48, 3)).astype(np.uint8))
    painted = Image.new("RGB", (48, 40), (1, 2, 3))
    mask = mask_of(Mask(blur=0), picture, drawn((48, 40), (20, 12, 39, 31)))
    found = cut_like_a1111(picture, mask, Mask(blur=0), 48, 40, "stretch")
    result = np.asarray(found.finish(painted))
    inside = np.asarray(mask) == 255
    assert (result[inside] == (1, 2, 3)).all()
    assert (result[~inside] == np.asarray(picture)[~inside]).all()
    assert found.latent_mask((10, 12)).sum() == 25


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(32, 32), (64, 16), (16, 64), (33, 47)])
def test_every_shape_comes_to_the_working_size(mode: Any, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (48, 40), (200, 100, 50))
    found = np.asarray(resized(picture, *size, mode))
    assert found.shape == (size[1], size[0], 3)
    assert (np.abs(found.astype(int) - (200, 100, 50)) <= 1).all(), "no black border is left"


def paint(pipe: Pipeline, attachments: dict[str, bytes] | None = None, **fields: Any) -> Any:
    asked = {"prompt": "a cat", "seed": 3, "num_inference_steps": 4, "sampler": "euler", "procedure": "a1111", **fields}
    return pipe.paint(Request.from_dict(asked), attachments)[0]


def test_the_procedure_follows_the_noise_and_stands_in_the_recipe(pipe: Pipeline) -> None:
    for level, expected in (("exact", None), ("portable", None), ("cpu", None), ("a1111", "a1111")):
        painted = paint(pipe, determinism=level, procedure=None)
        assert (painted.recipe.request.determinism, painted.recipe.request.procedure) == (level, expected)
        (again,) = pipe.paint(painted.recipe.request)
        assert again.recipe == painted.recipe
    assert paint(pipe, determinism="a1111", procedure="gouache").recipe.request.procedure == "gouache"


def test_sizes_are_cut_to_whole_latents(pipe: Pipeline) -> None:
    assert paint(pipe, width=35, height=34).image.size == (32, 32)
    assert paint(pipe, width=35, height=34, procedure="gouache").image.size == (36, 36)


@pytest.mark.parametrize("sampler", sorted(SECOND_ORDER - {"restart"}))
def test_samplers_of_second_order_count_calls(pipe: Pipeline, sampler: str) -> None:
    """[cat:dog:5] of 4 steps: the third step's first call is the fifth; with one count a step it would never come."""
    edited = paint(pipe, prompt="a [cat:dog:5]", sampler=sampler, determinism="cpu").recipe.steps
    plain = paint(pipe, prompt="a cat", sampler=sampler, determinism="cpu").recipe.steps
    assert edited[:2] == plain[:2]
    assert edited[3] != plain[3]


def test_the_level_of_the_noise_is_taken_for_the_next_one() -> None:
    assert entry_scale(1.0, 1.0) == 1.0
    assert entry_scale(3.0, 0.0) == pytest.approx(10**-0.5)


def test_strength_one_keeps_a_trace_of_the_picture_and_the_other_procedure_does_not(pipe: Pipeline) -> None:
    def start(colour: tuple[int, int, int]) -> dict[str, bytes]:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
        return {"start": buffer.getvalue()}

    found = {}
    for procedure in ("a1111", "gouache"):
        fields = {"init_image": "start", "strength": 1.0, "determinism": "cpu", "procedure": procedure}
        black, white = (paint(pipe, start((value,) * 3), **fields) for value in (0, 255))
        found[procedure] = black.recipe.pixels == white.recipe.pixels
    assert found == {"a1111": False, "gouache": True}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral"])
def test_noise_of_our_own_stays_our_own(pipe: Pipeline, sampler: str) -> None:
    steps = {
        procedure: paint(pipe, sampler=sampler, schedule="exponential", procedure=procedure).recipe.steps
        for procedure in ("a1111", "gouache")
    }
    assert steps["a1111"][0] == steps["gouache"][0] or sampler == "dpmpp_3m_sde", "it leaves out one level more"


EVERYWHERE: list[dict[str, Any]] = [
    {"init_image": "start", "mask": {"image": "mask"}, "hires": {"scale": 1.5, "strength": 0.5}},
    {"init_image": "start", "mask": {"image": "mask", "only_masked": True}, "hires": {"scale": 2.0, "strength": 0.5}},
    {"init_image": "start", "outpaint": {"right": 8}},
    {"init_image": "start", "inversion": {"source_prompt": "a dog"}, "sampler": "ddim"},
    {"init_image": "start", "strength": 0.0},
    {"init_image": "start", "strength": 0.0, "sampler": "ddim"},
    {"init_image": "start", "strength": 0.4, "sampler": "plms"},
    {"init_image": "start", "mask": {"image": "mask", "fill": "noise"}, "subseed": 4, "subseed_strength": 0.5},
    {"hires": {"strength": 0.0}},
    {"hires": {"strength": 0.3}, "sampler": "ddim"},
    {"hires": {"width": 64, "height": 40, "strength": 0.5}, "sigmas": [8.0, 2.0, 0.5, 0.0]},
    {"interpolation": {"prompt": "a dog", "seed": 9, "frames": 3, "frame": 1}},
    {"num_inference_steps": 1, "sampler": "dpmpp_sde"},
    {"count": 2, "sampler": "dpmpp_2m_sde"},
    {"tiled": {"tile": 32}, "width": 64},
]


@pytest.mark.parametrize("fields", EVERYWHERE)
@pytest.mark.parametrize("determinism", ["a1111", pytest.param("cpu", marks=pytest.mark.slow)])
def test_every_feature_works_with_the_procedure(pipe: Pipeline, determinism: str, fields: dict[str, Any]) -> None:
    start = Image.new("RGB", (32, 32), (200, 30, 60))
    pictures = {"start": png(start), "mask": png(drawn((32, 32), (8, 8, 23, 23)))}
    found = paint(pipe, pictures, determinism=determinism, procedure="a1111", **fields)
    assert found.image.mode == "RGB"
    (again,) = pipe.paint(found.recipe.request, pictures)
    assert again.recipe.pixels == found.recipe.pixels


def test_a_second_pass_without_end_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InvalidInput, match=r"hires\.strength"):
        paint(pipe, hires={"strength": 1e-9})
