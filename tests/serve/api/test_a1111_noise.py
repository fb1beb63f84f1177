"""A1111's settings of noise over HTTP mean what they say.

The fault's kind: `randn_source: CPU` was taken, listed and not acted upon, and `eta_noise_seed_delta` could not be set.
Members: both settings, in a body's override, in the stored options and in an infotext, for both calls.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from gouache.errors import InvalidInput
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.request import Request
from gouache.serve.api.a1111.fields import Img2Img, Txt2Img
from gouache.serve.api.a1111.mapping import order_of
from gouache.serve.api.a1111.server_options import options_of, set_options
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import Server

OWNER = "ada"
TEXT = "a tree\nSteps: 3, Sampler: Euler a, CFG scale: 4, Seed: 7, Size: 32x32, RNG: CPU, ENSD: 9, Version: v1.9.4"
# Settings -> level, procedure, ENSD.
SETTINGS: list[tuple[dict[str, Any], tuple[str, str | None, int]]] = [
    ({}, ("exact", None, 0)),
    ({"randn_source": "gouache"}, ("exact", None, 0)),
    ({"randn_source": "CPU"}, ("cpu", "a1111", 0)),
    ({"randn_source": "GPU"}, ("a1111", "a1111", 0)),
    ({"randn_source": "NV"}, ("a1111", "a1111", 0)),
    ({"randn_source": "CPU", "eta_noise_seed_delta": 31337}, ("cpu", "a1111", 31337)),
    ({"randn_source": "NV", "eta_noise_seed_delta": 31337}, ("a1111", "a1111", 31337)),
    ({"eta_noise_seed_delta": 31337}, ("a1111", "a1111", 31337)),
    ({"eta_noise_seed_delta": 0}, ("exact", None, 0)),
    ({"randn_source": "CPU", "CLIP_stop_at_last_layers": 2}, ("cpu", "a1111", 0)),
]


def noise_of(request: Request) -> tuple[str, str | None, int]:
    return request.determinism, request.procedure, request.eta_noise_seed_delta


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("chosen", "expected"), SETTINGS)
def test_an_override_and_a_stored_option_say_the_same(
    studio: Studio, chosen: dict[str, Any], expected: tuple[str, str | None, int]
) -> None:
    bodies = (Txt2Img(prompt="a cup"), Img2Img(prompt="a cup", init_images=[picture()]))
    for body in bodies:
        overridden = body.model_copy(update={"override_settings": chosen})
        assert noise_of(order_of(overridden, studio, OWNER).request) == expected
    set_options(studio, OWNER, chosen)
    for body in bodies:
        assert noise_of(order_of(body, studio, OWNER).request) == expected
    assert chosen.items() <= options_of(studio, OWNER).listing(studio).items()


def test_what_is_listed_may_be_sent_back(studio: Studio) -> None:
    before = options_of(studio, OWNER)
    listed = before.listing(studio)
    set_options(studio, OWNER, {name: listed[name] for name in ("randn_source", "eta_noise_seed_delta")})
    assert options_of(studio, OWNER) == before


@pytest.mark.parametrize("value", ["cpu", "", "TPU", 1, True])
def test_an_unknown_source_is_named(studio: Studio, value: object) -> None:
    with pytest.raises(InvalidInput, match="randn_source"):
        order_of(Txt2Img(override_settings={"randn_source": value}), studio, OWNER)


@pytest.mark.parametrize("value", [-1, 2**33, "x", 1.5, True])
def test_an_impossible_delta_is_named(studio: Studio, value: object) -> None:
    with pytest.raises(InvalidInput, match="eta_noise_seed_delta"):
        order_of(Txt2Img(override_settings={"eta_noise_seed_delta": value}), studio, OWNER)


def test_an_infotext_brings_its_noise_and_an_override_wins(studio: Studio) -> None:
    assert noise_of(order_of(Txt2Img(infotext=TEXT), studio, OWNER).request) == ("cpu", "a1111", 9)
    body = Txt2Img(infotext=TEXT, override_settings={"randn_source": "NV"})
    assert noise_of(order_of(body, studio, OWNER).request) == ("a1111", "a1111", 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "latent"),
        ("Latent", "latent"),
        ("Latent (antialiased)", "latent-antialiased"),
        ("Latent (bicubic)", "latent-bicubic"),
        ("Latent (bicubic antialiased)", "latent-bicubic-antialiased"),
        ("Latent (nearest)", "latent-nearest"),
        ("Latent (nearest-exact)", "latent-nearest-exact"),
        ("Lanczos", "lanczos"),
    ],
)
def test_all_latent_upscalers_of_a1111_are_there(studio: Studio, name: str | None, expected: str) -> None:
    hires = order_of(Txt2Img(enable_hr=True, hr_upscaler=name), studio, OWNER).request.hires
    assert hires is not None
    assert hires.upscaler == expected


def test_the_picture_says_whose_noise_it_has(server: Server) -> None:
    fields = {"prompt": "a cup", "seed": 3, "steps": 2, "width": 32, "height": 32, "sampler_name": "Euler a"}
    found = {}
    for source in ("CPU", "NV"):
        body = {**fields, "override_settings": {"randn_source": source}}
        answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=120).json()
        found[source] = read_recipe(base64.b64decode(answer["images"][0])).request
    assert noise_of(found["CPU"]) == ("cpu", "a1111", 0)
    assert noise_of(found["NV"]) == ("a1111", "a1111", 0)
