"""Sizes above the model's own: painted at its own size and enlarged by its upscaler, and the recipe says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import Upscaler
from gouache.pipeline.generate.enlarge import enlarge_picture
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.generate.upscaler_files import load_upscaler, upscaler_of
from gouache.pipeline.output.a1111_text import infotext_of, left_out, request_of
from gouache.pipeline.output.infotext import format_infotext, parse_infotext
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Hires, Request, Tiled, Upscale

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

OWN = 32
QUICK = Request(prompt="a cat", seed=3, num_inference_steps=2)


def random(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5 * 0.3)


@pytest.fixture(scope="module")
def bundle(make_tiny: MakeBundle) -> ModelBundle:
    """A model that paints 32 x 32 RGBA and brings an upscaler."""
    upscaler = Upscaler(UpscalerConfig(channels=8, blocks=2))
    random(upscaler)
    return replace(make_tiny(image_channels=4), upscaler=upscaler)


@pytest.fixture(scope="module")
def large(bundle: ModelBundle) -> Pipeline:
    return Pipeline(bundle)


def only(pipe: Pipeline, request: Request) -> Painted:
    (painted,) = pipe.paint(request)
    return painted


def test_a_larger_size_is_painted_small_and_enlarged_and_says_so(large: Pipeline) -> None:
    painted = only(large, QUICK.replace({"width": 128, "height": 128}))
    request = painted.recipe.request
    assert painted.image.size == (128, 128)
    assert painted.image.mode == "RGBA"
    assert (request.width, request.height) == (OWN, OWN)
    assert request.upscale == Upscale(factor=4.0, upscaler="model")
    assert "painted at 32x32 and enlarged 4 times by the model" in painted.recipe.notes
    upscaler = large.bundle.upscaler
    assert upscaler is not None
    small = only(large, QUICK)
    assert painted.recipe.steps == small.recipe.steps
    assert painted.image.tobytes() == enlarge_picture(small.image, 4.0, upscaler_of(upscaler)).tobytes()


def test_the_recipe_repeats_it_and_batches_change_nothing(large: Pipeline) -> None:
    request = QUICK.replace({"width": 64, "height": 64})
    alone = only(large, request)
    assert only(large, alone.recipe.request).image.tobytes() == alone.image.tobytes()
    together = large.paint(request.replace({"seed": 2, "count": 3}))
    assert together[1].image.tobytes() == alone.image.tobytes()
    portable = large.paint(request.replace({"seed": 2, "count": 3, "determinism": "portable"}))
    assert [painted.image.size for painted in portable] == [(64, 64)] * 3


def test_replay_from_a_file_on_disk(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = write_model(bundle_to_write(bundle), tmp_path / "model", "gouache")
    painted = only(Pipeline.load(folder, device="cpu"), QUICK.replace({"upscale": Upscale(factor=2.0)}))
    assert painted.image.size == (64, 64)
    (tmp_path / "a.png").write_bytes(painted.encode())
    assert replay(tmp_path / "a.png").same
    from_folder = enlarge_picture(painted.image, 2.0, load_upscaler(folder))
    one = write_model(bundle_to_write(bundle), tmp_path / "one.safetensors", "gouache")
    assert from_folder.tobytes() == enlarge_picture(painted.image, 2.0, load_upscaler(one)).tobytes()


@pytest.mark.parametrize(
    ("width", "height", "painted", "size"),
    [
        (128, 64, (32, 16), (128, 64)),
        (64, 128, (16, 32), (64, 128)),
        (48, 48, (32, 32), (48, 48)),
        (96, 64, (32, 20), (96, 60)),
        (33, 32, (32, 32), (32, 32)),
        (32, 16, (32, 16), (32, 16)),
    ],
)
def test_shapes(large: Pipeline, width: int, height: int, painted: tuple[int, int], size: tuple[int, int]) -> None:
    found = only(large, QUICK.replace({"width": width, "height": height}))
    assert (found.recipe.request.width, found.recipe.request.height) == painted
    assert found.image.size == size
    rounded = [note for note in found.recipe.notes if "rounded" in note]
    assert rounded == ([] if size == (width, height) else [f"size {width}x{height} was rounded to {size[0]}x{size[1]}"])


def test_one_side_alone_and_with_an_enlargement_of_its_own(large: Pipeline) -> None:
    tall = only(large, QUICK.replace({"height": 64}))
    assert tall.image.size == (32, 64)
    assert not any("rounded" in note for note in tall.recipe.notes)
    both = only(large, QUICK.replace({"width": 64, "height": 64, "upscale": Upscale(factor=2.0)}))
    assert both.image.size == (128, 128)
    assert both.recipe.request.upscale == Upscale(factor=4.0, upscaler="model")
    assert large.resolve(both.recipe.request) == both.recipe.request, "resolving again changes nothing"


def test_beyond_its_scale_the_upscaler_runs_twice(large: Pipeline) -> None:
    upscaler = large.bundle.upscaler
    assert upscaler is not None
    small = only(large, QUICK)
    for request in (
        QUICK.replace({"width": 256, "height": 256}),
        QUICK.replace({"width": 64, "height": 64, "upscale": Upscale(factor=4.0)}),
    ):
        painted = only(large, request)
        assert painted.image.tobytes() == enlarge_picture(small.image, 8.0, upscaler_of(upscaler)).tobytes()
        assert painted.recipe.request.upscale == Upscale(factor=8.0, upscaler="model")
    thin = only(large, QUICK.replace({"width": 256, "height": 8}))
    assert thin.image.size == (256, 64)
    assert "size 256x8 was rounded to 256x64" in thin.recipe.notes


def test_more_than_an_enlargement_may_be_is_refused_with_a_cure(large: Pipeline) -> None:
    for request in (
        QUICK.replace({"width": 520, "height": 64}),
        QUICK.replace({"width": 64, "height": 64, "upscale": Upscale(factor=9.0)}),
    ):
        with pytest.raises(InvalidInput, match="at most 512 pixels a side") as caught:
            large.run(request)
        assert "gouache upscale" in caught.value.cure
        assert "--tiled" in caught.value.cure


def test_an_opaque_background_is_white_with_transparency_and_nothing_without(large: Pipeline, pipe: Pipeline) -> None:
    opaque = only(large, QUICK.replace({"background": "opaque"}))
    white = only(large, QUICK.replace({"background": "white"}))
    assert opaque.image.mode == "RGB"
    assert opaque.recipe.request.background == "white"
    assert opaque.image.tobytes() == white.image.tobytes()
    plain = only(pipe, QUICK.replace({"background": "opaque"}))
    assert plain.recipe.request.background is None
    assert plain.image.tobytes() == only(pipe, QUICK).image.tobytes()


def test_other_ways_to_large_pictures_are_left_alone(large: Pipeline) -> None:
    for changes in ({"tiled": Tiled()}, {"upscale": Upscale(factor=2.0, upscaler="lanczos")}, {"hires": Hires()}):
        resolved = large.resolve(QUICK.replace({"width": 64, "height": 64, **changes}))
        assert (resolved.width, resolved.height) == (64, 64)
    hires = only(large, QUICK.replace({"hires": Hires(scale=2.0, strength=0.5, upscaler="model")}))
    assert hires.image.size == (64, 64)


def test_a_model_without_an_upscaler_paints_what_is_asked(pipe: Pipeline) -> None:
    painted = only(pipe, QUICK.replace({"width": 48, "height": 48, "upscale": Upscale(factor=2.0)}))
    assert painted.image.size == (96, 96)
    assert painted.recipe.request.upscale == Upscale(factor=2.0, upscaler="lanczos")
    assert (painted.recipe.request.width, painted.recipe.request.height) == (48, 48)
    with pytest.raises(InvalidInput, match="brings no upscaler"):
        pipe.run(QUICK.replace({"upscale": Upscale(factor=2.0, upscaler="model")}))


def test_seamless_pictures_stay_seamless(large: Pipeline) -> None:
    """The right edge continues at the left one: as smooth across the seam as elsewhere, unlike the plain picture."""
    request = QUICK.replace({"width": 128, "height": 128, "seamless": "x", "background": "white"})
    small = only(large, request.replace({"width": None, "height": None}))
    upscaler = large.bundle.upscaler
    assert upscaler is not None
    expected = enlarge_picture(small.image, 4.0, upscaler_of(upscaler), seamless="x")
    assert only(large, request).image.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("fields", "size", "named"),
    [
        ({}, "32x32", {}),
        ({"width": 128, "height": 64}, "128x64", {"Hires upscale": "4", "Hires resize": "128x64"}),
        ({"width": 48, "height": 48}, "48x48", {"Hires upscale": "1.5", "Hires upscaler": "model"}),
        ({"upscale": Upscale(factor=2.0)}, "64x64", {"Hires upscale": "2", "Denoising strength": "0"}),
        ({"upscale": Upscale(factor=3.0, upscaler="lanczos")}, "96x96", {"Hires upscaler": "Lanczos"}),
        ({"hires": Hires(scale=2.0)}, "32x32", {"Hires upscale": "2", "Denoising strength": "0.7"}),
    ],
)
def test_the_size_in_a1111s_words_is_the_files(
    large: Pipeline, fields: dict[str, Any], size: str, named: dict[str, str]
) -> None:
    """A second pass is the exception: A1111 itself writes the first one's size, and reckons the file's from it."""
    painted = only(large, QUICK.replace(fields))
    info = infotext_of(painted.recipe)
    assert info.values["Size"] == size
    assert "hires" in fields or size == "{}x{}".format(*painted.image.size)
    assert {key: info.values.get(key) for key in named} == named
    again = request_of(parse_infotext(format_infotext(info)), "text").replace({"model": None})
    assert only(large, again).image.tobytes() == painted.image.tobytes()
    assert not left_out(info)
