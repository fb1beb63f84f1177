"""The request: JSON both ways for anything it accepts, and a typed error for anything it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gouache.errors import ConfigError
from gouache.pipeline.fields.elsewhere import ELSEWHERE
from gouache.pipeline.request import MAX_COUNT, MAX_PROMPT, MAX_STEPS, Hires, Mask, Outpaint, Prior, Request

TEXT = st.text(st.characters(codec="utf-8"), max_size=200)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *(("image", "init_image"), ("mask_image", "mask.image"), ("generator", "seed")),
        *(("num_images_per_prompt", "count"), ("steps", "num_inference_steps"), ("cfg_scale", "guidance_scale")),
        *(("scheduler", "sampler"), ("sampler_name", "sampler"), ("denoising_strength", "strength")),
        *(("size", "width"), ("batch_size", "count"), ("latents", "seed"), ("checkpoint", "model")),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(name: str, ours: str) -> None:
    values: dict[str, Any] = {name: 1}
    makers: tuple[Callable[[], Request], ...] = (lambda: Request(**values), lambda: Request.from_dict(values))
    for make in makers:
        with pytest.raises(ConfigError) as caught:
            make()
        assert f"`{ours}`" in caught.value.cure
        assert len(str(caught.value)) < 250


def test_names_of_other_tools_are_none_of_ours_and_lead_to_ours() -> None:
    assert set(ELSEWHERE) & set(Request.model_fields) == set()
    for name, sentence in ELSEWHERE.items():
        field = re.match(r"(?:It is|Give) `(\w+)", sentence)
        assert field is None or field[1] in Request.model_fields, name


@pytest.mark.parametrize(
    ("values", "says"),
    [({"heigth": 64}, "Did you mean 'height'?"), ({"count": 0}, "count"), ({"hires": {"steps": 3}}, "hires: key")],
)
def test_keyword_arguments_are_checked_as_json_is(values: dict[str, Any], says: str) -> None:
    makers: tuple[Callable[[], Request], ...] = (lambda: Request(**values), lambda: Request.from_dict(values))
    for make in makers:
        with pytest.raises(ConfigError, match=re.escape(says)):
            make()


@settings(max_examples=200, deadline=None)
@given(
    prompt=TEXT,
    negative_prompt=TEXT,
    seed=st.none() | st.integers(0, 2**63 - 1),
    guidance_scale=st.none() | st.floats(-1000, 1000),
    mask=st.none() | st.builds(Mask, blur=st.integers(0, 256), invert=st.booleans()),
    hires=st.none() | st.builds(Hires, scale=st.floats(1.1, 8.0)),
    interval=st.none() | st.tuples(st.floats(0, 1), st.floats(2, 100)),
)
def test_json_is_the_identity(
    prompt: str,
    negative_prompt: str,
    seed: int | None,
    guidance_scale: float | None,
    mask: Mask | None,
    hires: Hires | None,
    interval: tuple[float, float] | None,
) -> None:
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        guidance_scale=guidance_scale,
        init_image="a.png",
        mask=mask,
        hires=hires,
        guidance_interval=interval,
    )
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": MAX_STEPS + 1}, "num_inference_steps"),
        ({"count": 0}, "count"),
        ({"count": MAX_COUNT + 1}, "count"),
        ({"width": 4}, "width"),
        ({"width": 16384, "height": 16384}, "pixels"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"strength": 1.5}, "strength"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**63 - 1, "count": 2}, "seed"),
        ({"init_image": "sha256:xyz"}, "hash"),
        ({"init_image": ""}, "init_image"),
        ({"mask": {}}, "init_image"),
        ({"outpaint": {"left": 8}}, "init_image"),
        ({"inversion": {}}, "init_image"),
        ({"init_image": "a.png", "outpaint": {}}, "outpaint"),
        ({"background": "blue-ish"}, "background"),
        ({"init_image": "a.png", "outpaint": {"aspect": "wide"}}, "aspect"),
        ({"guidance_interval": [5.0, 1.0]}, "guidance_interval"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
        ({"sigmas": [1.0]}, "sigmas"),
        ({"emphasis": "loud"}, "emphasis"),
        ({"prior": {"keep": [0.5, 0.0, 0.5, 1.0]}}, "keep"),
        ({"mask": {"blurr": 3}, "init_image": "a.png"}, "blurr"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Request.from_dict(values)


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"watermark": ""}, "request: watermark: given '', expected 1 to 32 bytes in UTF-8."),
    (
        {"background": "red"},
        "request: background: given 'red', expected transparent, opaque, surroundings, white, black or #rrggbb.",
    ),
    ({"seed": -1}, "request: seed: given -1, expected a number greater than or equal to 0."),
    ({"count": 257}, "request: count: given 257, expected a number less than or equal to 256."),
    ({"prompt": 3}, "request: prompt: given 3, expected a valid string."),
    ({"sampler": ""}, "request: sampler: given '', expected at least 1 character."),
    ({"guidance_scale": float("nan")}, "request: guidance_scale: given nan, expected a finite number."),
    ({"determinism": "no"}, "request: determinism: given 'no', expected 'exact', 'portable', 'a1111' or 'cpu'."),
    ({"mask": {}}, "request: given {'mask': {}}, expected mask beside init_image."),
    ({"control": [{"model": "x"}]}, "request: control.0.image: given {'model': 'x'}, expected a value."),
    ({"tiled": 5}, "request: tiled: given 5, expected a valid dictionary."),
    (
        {"tiled": {"til": 64}},
        "request: tiled: key 'til': given 64, expected one of the keys of Tiled: tile, overlap. Did you mean 'tile'?",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), SENTENCES, ids=lambda value: str(value)[:30])
def test_an_error_reads_as_a_sentence(values: dict[str, Any], sentence: str) -> None:
    """The kind: what the validating library says of itself ("Input should be ..."), in the place of a noun phrase."""
    with pytest.raises(ConfigError) as error:
        Request.from_dict(values, where="request")
    assert str(error.value) == sentence


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(ConfigError) as error:
        Request.from_dict({"prompt": "x" * (MAX_PROMPT + 1)}, where="request")
    assert len(str(error.value)) < 300


def test_an_unknown_field_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'guidance_scale'"):
        Request.from_dict({"guidance_scle": 7.5})


def test_replace_validates_again_and_leaves_the_original() -> None:
    request = Request(prompt="a", seed=3)
    assert request.replace({"seed": 4}) == Request(prompt="a", seed=4)
    assert request.seed == 3
    with pytest.raises(ConfigError, match="count"):
        request.replace({"count": -1})


def test_pictures_are_listed_once_each() -> None:
    request = Request(init_image="a.png", mask=Mask(image="a.png"), outpaint=Outpaint(left=8), prior=Prior())
    assert request.pictures() == ("a.png",)
    controls = [{"model": "canny", "image": name} for name in ("edges.png", "a.png", "edges.png")]
    assert request.replace({"control": controls}).pictures() == ("a.png", "edges.png")
    prompts = [{"adapter": "x", "images": "b.png"}, {"adapter": "x", "images": ["c.png", "b.png"], "mask": "m.png"}]
    assert request.replace({"image_prompts": prompts}).pictures() == ("a.png", "b.png", "c.png", "m.png")
    with pytest.raises(ConfigError, match="image_prompts"):
        request.replace({"image_prompts": prompts * 3})
    with pytest.raises(ConfigError, match="at most 8 items"):
        request.replace({"control": controls * 3})


def test_every_field_is_explained() -> None:
    def check(model: type[BaseModel]) -> int:
        count = 0
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no explanation"
            options = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
            for kind in (field.annotation, *options):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    count += check(kind)
            count += 1
        return count

    assert check(Request) > 60


def test_the_request_is_known_without_torch() -> None:
    code = "import sys, gouache.pipeline.request; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
