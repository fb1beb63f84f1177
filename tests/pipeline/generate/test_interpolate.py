"""Ways between prompts with AND, editing and alternation; edits with models that take further channels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Interpolation, Mask, Outpaint, Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

SIDE = 32
QUICK = Request(prompt="a cat", seed=4, num_inference_steps=4)


def only(pipe: Pipeline, request: Request) -> Painted:
    (painted,) = pipe.paint(request)
    return painted


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A smooth picture of the model's size."""
    path = tmp_path / "start.png"
    smooth(SIDE, SIDE).save(path)
    return path


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("a cat AND a tree :0.5", "a dog AND a (house:1.3) :1.5"),
        ("a [cat:dog:2] here", "a house"),
        ("a house", "a [cat|dog] here"),
        ("a [cat:dog:0.25] AND x", "a [x:y:3] AND [p|q]"),
    ],
)
def test_a_way_between_any_prompts_has_the_originals_at_its_ends(pipe: Pipeline, first: str, last: str) -> None:
    request = QUICK.replace({"prompt": first})
    painted = pipe.paint(request.replace({"interpolation": Interpolation(prompt=last, frames=3)}))
    assert painted[0].image.tobytes() == only(pipe, request).image.tobytes()
    assert painted[2].image.tobytes() == only(pipe, request.replace({"prompt": last})).image.tobytes()
    assert len({one.image.tobytes() for one in painted}) == 3
    assert only(pipe, painted[1].recipe.request).image.tobytes() == painted[1].image.tobytes()


def test_a_mixed_plan_is_the_mixture_at_every_step(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "a1111", None)
    plans = [reader.plan(text, 6) for text in ("a [cat:dog:2] AND x :0.5", "a [p|q] AND y :1.5")]
    mixed = plans[0].mixed(plans[1], 0.25)
    for step in range(1, 8):
        for (weight, text), (first_weight, first), (last_weight, last) in zip(
            mixed.at(step), plans[0].at(step), plans[1].at(step), strict=True
        ):
            assert weight == pytest.approx(0.75 * first_weight + 0.25 * last_weight)
            assert torch.allclose(text.context, 0.75 * first.context + 0.25 * last.context, atol=1e-6)


def test_prompts_with_other_numbers_of_parts_are_refused_at_once(pipe: Pipeline) -> None:
    way = Interpolation(prompt="a cat", frames=3)
    with pytest.raises(InvalidInput, match=r"1 parts joined by AND.*weight :0"):
        pipe.run(QUICK.replace({"prompt": "a cat AND a dog", "interpolation": way}))
    with pytest.raises(InvalidInput, match="the same tags"):
        pipe.run(QUICK.replace({"prompt": "a <lora:film>", "interpolation": way}))


def test_and_is_a_word_in_a_negative_prompt(pipe: Pipeline) -> None:
    """It has no parts of its own in the guidance; what stands behind it must not be lost."""
    plain, longer = (only(pipe, QUICK.replace({"negative_prompt": text})) for text in ("blur", "blur AND grey sky"))
    assert plain.recipe.pixels != longer.recipe.pixels


def test_outpainting_with_models_that_take_further_channels(make_tiny: MakeBundle, start: Path) -> None:
    grow = QUICK.replace({"init_image": str(start), "outpaint": Outpaint(right=12, top=8, overlap=4)})
    for channels in (4, 5):  # instruct, inpainting
        painted = only(Pipeline(make_tiny(draft_channels=channels)), grow)
        assert painted.image.size == (SIDE + 12, SIDE + 8)
        kept = painted.image.crop((0, 8 + 16, SIDE - 16, 8 + SIDE))
        assert kept.tobytes() == Image.open(start).crop((0, 16, SIDE - 16, SIDE)).tobytes()
        new = np.asarray(painted.image.crop((SIDE + 2, 0, SIDE + 12, SIDE)))
        assert new.std() > 1
    depth = Pipeline(make_tiny(draft_channels=1))
    with pytest.raises(InvalidInput, match="Extend the picture and its depth map"):
        depth.run(grow.replace({"depth_image": str(start)}))


def test_a_depth_map_is_cut_as_its_picture_is(make_tiny: MakeBundle, tmp_path: Path) -> None:
    """What lies outside the worked-on part of the depth map has no say."""
    pipe = Pipeline(make_tiny(draft_channels=1))
    smooth(64, 64).save(tmp_path / "big.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (4, 4, 16, 16))
    mask.save(tmp_path / "mask.png")
    ramp = np.tile(np.linspace(0, 255, 64), (64, 1))
    other = ramp.copy()
    other[40:, 40:] = 0
    pictures: list[bytes] = []
    for name, depth in (("ramp", ramp), ("other", other), ("flipped", ramp[:, ::-1])):
        Image.fromarray(depth.astype(np.uint8)).save(tmp_path / f"{name}.png")
        options = Mask(image=str(tmp_path / "mask.png"), only_masked=True, padding=4, blur=0)
        files = {"init_image": str(tmp_path / "big.png"), "depth_image": str(tmp_path / f"{name}.png")}
        pictures.append(only(pipe, QUICK.replace({**files, "mask": options})).image.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_way_between_pictures_for_instruct_models(make_tiny: MakeBundle, start: Path, tmp_path: Path) -> None:
    pipe = Pipeline(make_tiny(draft_channels=4))
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "end.png")
    way = Interpolation(image=str(tmp_path / "end.png"), frames=3)
    painted = pipe.paint(QUICK.replace({"init_image": str(start), "interpolation": way}))
    assert len({one.image.tobytes() for one in painted}) == 3
    with pytest.raises(InvalidInput, match="one instruction"):
        pipe.paint(QUICK.replace({"init_image": str(start), "prompt": "make it red AND blue"}))
