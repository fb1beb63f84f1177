"""A studio's own watermark and safety gate: added to every request, in every interface, and never weakened by one."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from gouache.errors import ConfigError, InvalidInput, ModelNotFound, PictureError
from gouache.pipeline.output.safety import carries
from gouache.pipeline.request import Request, Safety
from gouache.serve.queue.admission import admit
from gouache.serve.settings import Limits
from gouache.serve.start import make_settings
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.conftest import StartServer


@pytest.mark.parametrize(
    ("studio_says", "request_says", "result"),
    [("off", "off", "off"), ("blur", "off", "blur"), ("blur", "block", "block"), ("block", "blur", "block")],
)
def test_a_request_may_ask_for_a_stricter_gate_only(
    studio: Studio, studio_says: Safety, request_says: Safety, result: str
) -> None:
    settings = studio.settings.model_copy(update={"safety": studio_says, "watermark": "house"})
    asked = Request(prompt="x", safety=request_says)
    admitted = admit(asked, settings, studio.catalog, studio.file_store.attachment)
    assert (admitted.safety, admitted.watermark) == (result, "house")
    assert (
        admit(asked.replace({"watermark": "own"}), settings, studio.catalog, studio.file_store.attachment).watermark
        == "own"
    )


def test_a_regions_mask_and_words_are_checked_as_all_others(studio: Studio) -> None:
    def admitted(**region: object) -> Request:
        settings = studio.settings.model_copy(update={"limits": Limits(prompt=20)})
        asked = Request(prompt="x").replace({"regions": ({"prompt": "a cup", **region},)})
        return admit(asked, settings, studio.catalog, studio.file_store.attachment)

    assert admitted(box=(0.0, 0.0, 0.5, 1.0)).regions[0].prompt == "a cup"
    for mask, words in (("/etc/passwd", "a path"), (f"sha256:{'0' * 64}", "sha256")):
        with pytest.raises(PictureError, match=words):
            admitted(mask=mask)
    with pytest.raises(InvalidInput, match=r"regions\[0\]\.prompt"):
        admitted(box=(0.0, 0.0, 0.5, 1.0), prompt="a" * 21)


def test_a_guiders_pass_counts_as_work(studio: Studio) -> None:
    request = Request(width=64, height=64, num_inference_steps=10)
    plain = 64 * 64 * 10

    def admitted(work: int, **guiders: dict[str, object]) -> Request:
        settings = studio.settings.model_copy(update={"limits": Limits(work=work)})
        return admit(request.replace(guiders), settings, studio.catalog, studio.file_store.attachment)

    admitted(plain, freeu={}, mimic={})
    assert admitted(2 * plain, pag={"scale": 2.0}, slg={}).pag is not None
    with pytest.raises(InvalidInput, match="pixel steps"):
        admitted(2 * plain - 1, pag={}, slg={})
    with pytest.raises(InvalidInput, match="pixel steps"):
        admitted(plain, sag={})


def test_pictures_of_every_interface_carry_the_studios_watermark(start_server: StartServer) -> None:
    server = start_server(watermark="ada")
    body = {"prompt": "x", "width": 128, "height": 128, "steps": 2}
    with httpx.Client(base_url=server.url, timeout=200) as client:
        answer = client.post("/sdapi/v1/txt2img", json=body).json()
        picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        assert carries(picture, "ada")
        recipe = json.loads(str(picture.info["gouache"]))
        assert recipe["request"]["watermark"] == "ada"
        assert recipe["notes"][-1].startswith("watermark: 3 bytes")
        small = client.post("/v1/images/generations", json={"prompt": "x"})
        assert small.status_code == 400
        assert small.json()["error"]["param"] == "watermark"


def test_a_gate_without_weights_fails_the_job_and_says_what_is_missing(start_server: StartServer) -> None:
    server = start_server(safety="blur")
    with httpx.Client(base_url=server.url, timeout=200) as client:
        job = client.post("/v1/jobs", json={"request": {"prompt": "x"}}).json()["id"]
        assert server.wait(job).state == "failed"
        error = client.get(f"/v1/jobs/{job}").json()["error"]
    assert error["kind"] == "ModelNotFound"
    assert "GOUACHE_SAFETY_CHECKER" in error["cure"]


def settings_of(folder: Path, **options: object) -> object:
    plain = {"data": folder, "host": "127.0.0.1", "port": 0, "workers": 0, "threads": 1, "page": False}
    return make_settings({**plain, **options})


def test_options_that_can_not_work_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        settings_of(tmp_path, watermark="x" * 33)
    with pytest.raises(ConfigError, match="safety"):
        settings_of(tmp_path, safety="maybe")
    with pytest.raises(ModelNotFound, match="safety checker"):
        settings_of(tmp_path, safety_checker=tmp_path / "none")
