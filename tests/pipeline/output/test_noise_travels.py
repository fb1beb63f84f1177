"""Whose noise a text or an old recipe means.

The fault's kind: a word for the source of noise that was read as nothing, or written where it wasn't true. Members:
every program that writes RNG or ENSD, each source, and every recipe that gouache itself wrote before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gouache.errors import ConfigError
from gouache.pipeline.output.a1111_text import infotext_of, request_of
from gouache.pipeline.output.infotext import format_infotext, parse_infotext
from gouache.pipeline.output.recipe import RECIPE_VERSION, Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

LINE = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
FORGE = "f2.0.1v1.10.1-previous-664-gd557aef9"
# What stands behind the line -> level, procedure, ENSD.
TOLD: dict[str, tuple[str, str | None, int]] = {
    "": ("a1111", "a1111", 0),
    "RNG: CPU": ("cpu", "a1111", 0),
    "RNG: NV": ("a1111", "a1111", 0),
    "RNG: GPU": ("a1111", "a1111", 0),
    "RNG: CPU, Version: v1.10.1": ("cpu", "a1111", 0),
    "RNG: CPU, Version: v1.6.0-2-g4afaaf8a": ("cpu", "a1111", 0),
    "RNG: NV, ENSD: 31337, Version: v1.9.4": ("a1111", "a1111", 31337),
    "ENSD: 31337, Version: v1.3.2": ("a1111", "a1111", 31337),
    "ENSD: 31337, RNG: CPU": ("cpu", "a1111", 31337),
    f"RNG: CPU, Version: {FORGE}": ("cpu", "a1111", 0),
    f"Version: {FORGE}": ("a1111", "a1111", 0),
    "Version: f0.0.17v1.8.0rc-latest-276-g29be1da7": ("a1111", "a1111", 0),
    "RNG: CPU, Version: f1.0.0v2-v1.10.1RC-latest-841-g43094ae2": ("cpu", "a1111", 0),
    "RNG: cuda, Version: stable-diffusion.cpp": ("a1111", "gouache", 0),
    "RNG: cpu, Version: stable-diffusion.cpp": ("cpu", "gouache", 0),
    "RNG: std_default, Version: stable-diffusion.cpp": ("exact", "gouache", 0),
    "RNG: unheard of, Version: v1.10.1": ("exact", None, 0),
    "RNG: CPU, Version: gouache 0.1.0": ("exact", None, 0),
    "RNG: gouache, Version: gouache 0.1.0": ("exact", None, 0),
    "RNG: CPU, Determinism: cpu, Version: gouache 0.1.0": ("cpu", None, 0),
    "RNG: CPU, Version: 2a3b4c5": ("exact", None, 0),
}


@pytest.mark.parametrize(("told", "expected"), TOLD.items())
def test_the_source_of_noise_is_read(told: str, expected: tuple[str, str | None, int]) -> None:
    request = request_of(parse_infotext(f"{LINE}, {told}" if told else LINE), "text")
    assert (request.determinism, request.procedure, request.eta_noise_seed_delta) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"determinism": "exact"},
        {"determinism": "portable"},
        {"determinism": "cpu"},
        {"determinism": "a1111"},
        {"determinism": "cpu", "procedure": "a1111"},
        {"determinism": "a1111", "procedure": "gouache"},
        {"determinism": "exact", "procedure": "a1111"},
        {"determinism": "cpu", "eta_noise_seed_delta": 31337},
        {"determinism": "a1111", "eta_noise_seed_delta": 5},
    ],
)
def test_what_we_write_is_what_we_read(make_tiny: MakeBundle, fields: dict[str, Any]) -> None:
    (painted,) = Pipeline(make_tiny()).paint(
        Request.from_dict({"prompt": "a cat", "seed": 1, "num_inference_steps": 1, **fields})
    )
    text = format_infotext(infotext_of(painted.recipe))
    read, asked = request_of(parse_infotext(text), "text"), painted.recipe.request
    own = {"portable": "exact"}
    assert read.determinism == own.get(asked.determinism, asked.determinism)
    assert (read.procedure or "gouache") == (asked.procedure or "gouache") or read.determinism == "a1111"
    assert read.eta_noise_seed_delta == asked.eta_noise_seed_delta
    assert ("RNG: CPU" in text) == (asked.determinism == "cpu"), "nobody else's source is claimed"


def test_a_seed_delta_needs_a_stream_of_seeds() -> None:
    for level in ("exact", "portable"):
        with pytest.raises(ConfigError, match="eta_noise_seed_delta"):
            Request.from_dict({"determinism": level, "eta_noise_seed_delta": 1})
    with pytest.raises(ConfigError, match="last picture's seed"):
        Request.from_dict({"determinism": "cpu", "eta_noise_seed_delta": 2, "seed": 2**63 - 2})


def old_recipe(painted: Recipe, version: int, **fields: Any) -> Recipe:
    """The recipe as an older gouache wrote it: without the newer fields."""
    values = json.loads(painted.to_json())
    for name in ("procedure", "eta_noise_seed_delta"):
        del values["request"][name]
    values["request"] |= fields
    return Recipe.from_dict({**values, "recipe": version})


@pytest.fixture(scope="module")
def painted(make_tiny: MakeBundle) -> Recipe:
    request = Request(prompt="a cat", seed=1, num_inference_steps=1, width=32, height=32)
    return Pipeline(make_tiny()).paint(request)[0].recipe


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"determinism": "a1111"}, {"procedure": "gouache"}),
        ({"determinism": "exact"}, {"procedure": None}),
        ({"prompt": "a cat BREAK"}, {"prompt": "a cat BREAK BREAK"}),
        ({"negative_prompt": "a BREAK \n"}, {"negative_prompt": "a BREAK \n BREAK"}),
        ({"prompt": "a cat BREAKFAST"}, {"prompt": "a cat BREAKFAST"}),
        ({"prompt": "a BREAK b"}, {"prompt": "a BREAK b"}),
        ({"prompt": "a BREAK", "emphasis": "none"}, {"prompt": "a BREAK"}),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_an_old_recipe_means_what_it_meant(
    painted: Recipe, version: int, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    request = old_recipe(painted, version, **fields).request
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"width": 48}, (48, 64)), ({"height": 48}, (64, 48)), ({"width": 48, "scale": 3.0}, (48, 96)), ({}, (64, 64))],
)
def test_an_old_second_pass_with_one_side_keeps_its_size(
    painted: Recipe, asked: dict[str, Any], size: tuple[int, int]
) -> None:
    hires = old_recipe(painted, 2, hires={"scale": 2.0, "upscaler": "latent", "strength": 0.5, **asked}).request.hires
    assert hires is not None
    assert hires.size_for(32, 32) == size


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    ("prior", "level"),
    [(None, None), ({"temperature": 0.5}, 0.0), ({"start_sigma": None}, 0.0), ({"start_sigma": 1.5}, 1.5)],
)
def test_the_picture_of_an_old_recipe_begins_on_noise_unless_it_named_a_level(
    painted: Recipe, version: int, prior: dict[str, Any] | None, level: float | None
) -> None:
    request = old_recipe(painted, version, prior=prior).request
    assert (None if request.prior is None else request.prior.start_sigma) == level


@pytest.mark.parametrize("version", [1, 3, 5])
@pytest.mark.parametrize(("prior", "recall"), [(None, None), ({"temperature": 0.5}, 0.0), ({"recall": 2.0}, 2.0)])
def test_the_prior_of_an_old_recipe_mixes_what_it_remembers(
    painted: Recipe, version: int, prior: dict[str, Any] | None, recall: float | None
) -> None:
    request = old_recipe(painted, version, prior=prior).request
    assert (None if request.prior is None else request.prior.recall) == recall


def test_a_recipe_of_today_is_taken_at_its_word(painted: Recipe) -> None:
    assert painted.recipe == RECIPE_VERSION
    values = json.loads(painted.to_json())
    values["request"] |= {"determinism": "a1111", "procedure": "a1111", "prompt": "a BREAK"}
    request = Recipe.from_dict(values).request
    assert (request.procedure, request.prompt) == ("a1111", "a BREAK")


@pytest.mark.parametrize(
    ("first", "asked", "second"),
    [
        ((32, 32), {"width": 48}, (48, 48)),
        ((32, 32), {"height": 48}, (48, 48)),
        ((48, 32), {"width": 96}, (96, 64)),
        ((48, 32), {"height": 48}, (72, 48)),
        ((32, 64), {"width": 40}, (40, 80)),
        ((32, 32), {"scale": 1.5}, (48, 48)),
        ((32, 32), {"width": 64, "height": 48}, (64, 48)),
        ((64, 32), {"width": 80, "scale": 4.0}, (80, 40)),
        ((32, 48), {"height": 72, "scale": 4.0}, (48, 72)),
        ((40, 40), {"width": 60}, (60, 60)),
    ],
)
def test_a_second_pass_of_our_own_keeps_proportions_too(
    make_tiny: MakeBundle, first: tuple[int, int], asked: dict[str, Any], second: tuple[int, int]
) -> None:
    fields = {"prompt": "a", "seed": 1, "num_inference_steps": 1, "width": first[0], "height": first[1]}
    (found,) = Pipeline(make_tiny()).paint(Request.from_dict({**fields, "hires": {"strength": 0.0, **asked}}))
    assert found.image.size == second


@pytest.mark.parametrize(
    ("told", "sides"),
    [
        ("Hires resize: 1152x0", (1152, None)),
        ("Hires resize: 0x768", (None, 768)),
        ("Hires resize: 1152x768", (1152, 768)),
        ("Hires upscale: 1.5", (None, None)),
        ("Hires resize: 0x0, Hires upscale: 2", (None, None)),
    ],
)
def test_the_side_that_a1111_leaves_open_is_written_as_0(told: str, sides: tuple[int | None, int | None]) -> None:
    request = request_of(parse_infotext(f"{LINE}, Denoising strength: 0.5, {told}, Version: v1.10.1"), "text")
    assert request.hires is not None
    assert (request.hires.width, request.hires.height) == sides


def test_one_open_side_comes_back_from_our_own_text(make_tiny: MakeBundle) -> None:
    hires = {"width": 48, "strength": 0.5}
    fields = {"prompt": "a", "seed": 1, "num_inference_steps": 1, "width": 32, "height": 32, "determinism": "a1111"}
    (painted,) = Pipeline(make_tiny()).paint(Request.from_dict({**fields, "hires": hires}))
    text = format_infotext(infotext_of(painted.recipe))
    assert "Hires resize: 48x0" in text
    read = request_of(parse_infotext(text), "text").hires
    assert read is not None
    assert (read.width, read.height) == (48, None)
