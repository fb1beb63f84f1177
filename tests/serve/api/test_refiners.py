"""SDXL over HTTP: refiners (a native request's `refiner`, A1111's `refiner_checkpoint`), the second encoder's prompt
and the size numbers (A1111's settings for them) paint what Python paints.

The kind: every way in which a client names a second model, or none, or one that isn't there, or a path; and what only
SDXL is told beside the prompt.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from PIL import Image

from gouache.errors import InvalidInput
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.serve.api.a1111.fields import Txt2Img
from gouache.serve.api.a1111.mapping import order_of
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import Server

SIDE = 32
PLAIN: dict[str, Any] = {"prompt": "a cup", "seed": 7, "width": SIDE, "height": SIDE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.pipeline.twins import Twins

    models, made = tmp_path_factory.mktemp("models"), Twins(tmp_path_factory.mktemp("tokenizers"))
    for name in ("sdxl", "sdxl-refiner"):
        made.of(name).save(models / name)
    return models


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.serve.conftest import Server, make_settings

    settings = make_settings(tmp_path_factory.mktemp("data"), models=(folder,), default_model="sdxl")
    made = Server(Studio(settings)).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def expected(folder: Path) -> Image.Image:
    """What Python paints."""
    torch.set_num_threads(1)
    request = Request.from_dict(
        {
            **PLAIN,
            "num_inference_steps": 4,
            "guidance_scale": 7.0,
            "sampler": "euler",
            "refiner": str(folder / "sdxl-refiner"),
            "refiner_switch_at": 0.5,
        },
        where="request",
    )
    (painted,) = Pipeline.load(folder / "sdxl", device="cpu").paint(request)
    return painted.image


NAMED: dict[str, dict[str, Any]] = {
    "by name": {"refiner_checkpoint": "sdxl-refiner", "refiner_switch_at": 0.5},
    "by the script": {"alwayson_scripts": {"Refiner": {"args": [True, "sdxl-refiner", 0.5]}}},
}


@pytest.mark.parametrize("name", NAMED)
def test_a1111s_fields(server: Server, expected: Image.Image, name: str) -> None:
    body = {**PLAIN, "steps": 4, "cfg_scale": 7, "sampler_name": "Euler", "negative_prompt": "", **NAMED[name]}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert picture.convert("RGB").tobytes() == expected.convert("RGB").tobytes()
    assert "Refiner: sdxl-refiner [" in answer.json()["info"]
    assert "Refiner switch at: 0.5" in answer.json()["info"]


def test_a_native_job(server: Server, expected: Image.Image) -> None:
    request = {
        **PLAIN,
        "num_inference_steps": 4,
        "guidance_scale": 7.0,
        "sampler": "euler",
        "refiner": "sdxl-refiner",
        "refiner_switch_at": 0.5,
    }
    with httpx.Client(base_url=server.url, timeout=120) as client:
        job = client.post("/v1/jobs", json={"request": request}).json()
        client.get(f"/v1/jobs/{job['id']}/events")
        (picture,) = client.get(f"/v1/jobs/{job['id']}").json()["pictures"]
        data = client.get(f"/v1/pictures/{picture}/file").content
    recipe = read_recipe(data).recipe
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == expected.convert("RGB").tobytes()
    assert recipe is not None
    assert recipe.refiner is not None
    assert recipe.refiner.sha256 not in (None, recipe.model.sha256)


def test_a_native_job_with_a_second_prompt_and_sizes(server: Server, folder: Path) -> None:
    """Both with a refiner behind them, in one request."""
    request = {
        **PLAIN,
        "prompt_2": "a blue boat",
        "negative_prompt_2": "dark",
        "num_inference_steps": 2,
        "sampler": "euler",
        "size_condition": {"original_width": 20, "original_height": 24, "crop_left": 3, "aesthetic_score": 7.0},
        "refiner_switch_at": 0.5,
    }
    python = Request.from_dict({**request, "refiner": str(folder / "sdxl-refiner")}, where="request")
    (expected,) = Pipeline.load(folder / "sdxl", device="cpu").paint(python)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        job = client.post("/v1/jobs", json={"request": {**request, "refiner": "sdxl-refiner"}}).json()
        client.get(f"/v1/jobs/{job['id']}/events")
        (picture,) = client.get(f"/v1/jobs/{job['id']}").json()["pictures"]
        data = client.get(f"/v1/pictures/{picture}/file").content
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == expected.image.convert("RGB").tobytes()


SETTINGS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({}, None),
    ({"sdxl_crop_top": 0, "sdxl_refiner_low_aesthetic_score": 2.5}, None),
    ({"sdxl_crop_top": 8, "sdxl_crop_left": 16.0}, {"crop_top": 8, "crop_left": 16}),
    ({"sdxl_refiner_high_aesthetic_score": 9}, {"aesthetic_score": 9.0, "negative_aesthetic_score": 2.5}),
]


@pytest.mark.parametrize(("settings", "expected"), SETTINGS)
def test_a1111s_settings_for_sdxl(server: Server, settings: dict[str, Any], expected: dict[str, Any] | None) -> None:
    body = Txt2Img(prompt="a", refiner_checkpoint="sdxl-refiner", override_settings=settings)
    told = order_of(body, server.studio, "local").request.size_condition
    assert (None if told is None else {name: getattr(told, name) for name in expected or {}}) == expected
    assert told is None or told.original_width is None


@pytest.mark.parametrize("name", ["sdxl_crop_top", "sdxl_crop_left", "sdxl_refiner_low_aesthetic_score"])
def test_a1111s_settings_for_sdxl_have_bounds(server: Server, name: str) -> None:
    body = Txt2Img(prompt="a", override_settings={name: -1})
    with pytest.raises(InvalidInput, match=name):
        order_of(body, server.studio, "local")


@pytest.mark.parametrize("name", ["nowhere", "../sdxl-refiner", "/etc/passwd", "sdxl-refiner/unet"])
def test_what_is_no_name_of_a_model_is_refused(server: Server, name: str) -> None:
    fields = {"refiner_checkpoint": name, "refiner_switch_at": 0.5}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=fields, timeout=60)
    assert (answer.status_code, answer.json()["field"]) == (422, "refiner_checkpoint")
    native = httpx.post(f"{server.url}/v1/jobs", json={"request": {"prompt": "a", "refiner": name}}, timeout=60)
    assert native.status_code == 422, native.text
    assert "refiner" in native.text


@pytest.mark.parametrize(
    "fields",
    [
        {"refiner_checkpoint": "", "refiner_switch_at": 0},
        {"refiner_checkpoint": "None", "refiner_switch_at": 0.8},
        {"refiner_checkpoint": "sdxl-refiner", "refiner_switch_at": 1},
        {"refiner_switch_at": 0.8},
    ],
)
def test_no_refiner_is_none(server: Server, fields: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json={**PLAIN, "steps": 2, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "Refiner" not in answer.json()["info"]
