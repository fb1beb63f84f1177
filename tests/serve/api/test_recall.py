"""A picture's settings paint it again: the same pixels and the same recipe, whatever it was painted from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

from gouache.pipeline.output.recipe import RECIPE_VERSION
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import Request
from gouache.serve.queue.leases import Leases
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio
from gouache.serve.worker.job_run import JobContext, JobRun
from gouache.serve.worker.loaded_models import LoadedModels

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


@pytest.fixture(scope="module")
def pocket() -> Pipeline:
    """The shipped model."""
    return open_pipeline(None, device="cpu")[0]


class Desk:
    """A client and a worker of one studio, both in this process."""

    def __init__(self, client: TestClient, pipeline: Pipeline) -> None:
        self.client = client
        self.studio: Studio = client.studio  # type: ignore[attr-defined]
        self.pipeline = pipeline

    def attach(self, picture: Image.Image) -> str:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return str(self.client.post("/v1/attachments", content=buffer.getvalue()).json()["name"])

    def paint(self, request: dict[str, Any]) -> list[Picture]:
        answer = self.client.post("/v1/jobs", json={"request": request})
        assert answer.status_code == 202, answer.text
        studio = self.studio
        models = LoadedModels(lambda *_: self.pipeline, 2**30)
        context = JobContext(
            studio.database, studio.leases, studio.file_store, studio.catalog, models, lambda _: None, lambda: False
        )
        held = Leases(studio.database).claim("host:1:1", 600)
        assert held is not None
        JobRun(context, held).paint()
        return studio.pictures.of_job(answer.json()["id"])

    def settings(self, picture: Picture) -> dict[str, Any]:
        answer = self.client.get(f"/v1/pictures/{picture.id}/request")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture
def desk(make_client: MakeClient, pocket: Pipeline) -> Desk:
    kept: list[Studio] = []
    client = make_client(kept.append)
    client.studio = kept[0]  # type: ignore[attr-defined]
    return Desk(client, pocket)


def photo() -> Image.Image:
    picture = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((30, 40, 90, 100), fill=(200, 60, 30))
    return picture


def spot() -> Image.Image:
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((40, 40, 90, 90), fill=255)
    return mask


PLAIN: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 2}
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {},
    "open": {"num_inference_steps": None, "count": 2},
    "random-seed": {"seed": None, "count": 2},
    "largest-seed": {"seed": 2**63 - 3, "count": 3},
    "upscaled": {"width": 256, "height": 256},
    "odd-size": {"width": 300, "height": 200},
    "upscaled-more": {"width": 256, "height": 256, "upscale": {"factor": 2.0}},
    "own-upscale": {"upscale": {"factor": 2.0, "upscaler": "model"}},
    "lanczos": {"upscale": {"factor": 1.5, "upscaler": "lanczos"}},
    "hires": {"hires": {"scale": 1.5, "strength": 0.5}},
    "image": {"init_image": "photo", "strength": 0.6, "count": 2},
    "inpaint": {"init_image": "photo", "mask": {"image": "spot"}},
    "only-masked": {"init_image": "photo", "mask": {"image": "spot", "only_masked": True, "fill": "noise"}},
    "outpaint": {"init_image": "photo", "outpaint": {"right": 32}, "count": 2},
    "interpolation": {"interpolation": {"prompt": "a green pear", "seed": 9, "frames": 3}},
    "tiled": {"tiled": {"overlap": 0.5}, "width": 192, "height": 128},
    "style": {"style": "3d"},
    "layout": {"prompt": "a cat to the left of a tree"},
    "transparent": {"background": "transparent"},
    "opaque": {"background": "#204060"},
    "variation": {"subseed": 3, "subseed_strength": 0.3, "count": 2},
    "drawn-variation": {"subseed_strength": 0.3},
    "regions": {"regions": [{"prompt": "a blue sky", "box": [0.0, 0.0, 1.0, 0.5]}]},
    "best-of": {"best_of": 2},
    "a1111": {"determinism": "a1111", "sampler": "DPM++ 2M Karras", "count": 2},
    "named-sampler": {"sampler": "Euler a"},
    "negative": {"negative_prompt": "blurry", "guidance_scale": 3.0},
    "no-prior": {"prior": {"enabled": False}},
    "inversion": {"init_image": "photo", "inversion": {"source_prompt": "a plum"}},
}
EVERY_TIME = ("text", "upscaled", "inpaint", "interpolation", "variation", "a1111", "outpaint")


@pytest.mark.every_time(*EVERY_TIME)
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_settings_of_a_picture_paint_it_again(desk: Desk, kind: str) -> None:
    pictures = {"photo": desk.attach(photo()), "spot": desk.attach(spot())}
    wanted = {**PLAIN, **REQUESTS[kind]}
    if "init_image" in wanted:
        wanted["init_image"] = pictures["photo"]
    if "image" in (wanted.get("mask") or {}):
        wanted["mask"] = {**wanted["mask"], "image": pictures["spot"]}
    last = desk.paint(wanted)[-1]
    found = desk.settings(last)
    assert found["notes"] == []
    asked = Request.from_dict(found["request"])
    assert asked.count == 1
    assert found["seeds"]["seed"] == str(last.parsed().request.seed)
    assert asked.model == "pocket"
    (again,) = desk.paint(found["request"])
    files = [desk.studio.file_store.read("pictures", one.file) for one in (last, again)]
    assert again.parsed() == last.parsed()
    assert files[0] == files[1]


def test_sizes_come_back_as_they_were_asked(desk: Desk) -> None:
    (picture,) = desk.paint({**PLAIN, "width": 256, "height": 256})
    assert (picture.width, picture.height) == (256, 256)
    found = desk.settings(picture)
    assert (found["request"]["width"], found["request"]["height"]) == (256, 256)
    assert "upscale" not in found["request"]
    assert found["painted"]["sampler"] == "dpmpp_2m"
    assert found["painted"]["width"] == 128


def test_what_can_t_be_said_is_noted(desk: Desk) -> None:
    from sqlalchemy import update

    from gouache.serve.store.tables import pictures

    (picture,) = desk.paint({**PLAIN, "width": 256, "height": 256})
    database = desk.studio.database

    def with_recipe(old: str, new: str) -> dict[str, Any]:
        assert old in picture.recipe
        with database.write() as connection:
            row = update(pictures).where(pictures.c.id == picture.id)
            connection.execute(row.values(recipe=picture.recipe.replace(old, new, 1)))
        return desk.settings(desk.studio.pictures.get(picture.id))

    older = with_recipe(f'"recipe":{RECIPE_VERSION}', '"recipe":3')
    assert [note["kind"] for note in older["notes"]] == ["older"]
    assert (older["request"]["width"], older["request"].get("upscale")) == (256, None)
    gone = with_recipe('"model":"pocket"', '"model":"gone"')
    assert [(note["kind"], note["about"]) for note in gone["notes"]] == [("model", "gone")]
    (edited,) = desk.paint({**PLAIN, "init_image": desk.attach(photo())})
    for file in (desk.studio.settings.data / "attachments").iterdir():
        file.unlink()
    lost = desk.settings(edited)
    assert [note["kind"] for note in lost["notes"]] == ["picture"]


def test_a_controlled_picture_comes_back(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.serve.api.test_controls import save_controlnet
    from tests.serve.tiny_worker import tiny_pipeline

    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    save_controlnet(tmp_path / "models" / "ControlNet" / "lines", 1)
    kept: list[Studio] = []
    client = make_client(kept.append)
    client.studio = kept[0]  # type: ignore[attr-defined]
    desk = Desk(client, tiny_pipeline())
    control = {"model": "lines", "image": desk.attach(photo()), "weight": 0.7, "preprocessor": "canny"}
    (first,) = desk.paint({**PLAIN, "control": [control], "clip_skip": 2})
    found = desk.settings(first)
    (again,) = desk.paint(found["request"])
    assert [note["kind"] for note in found["notes"]] == []
    assert again.parsed() == first.parsed()
    assert again.sha256 == first.sha256
    assert first.kind == "control"
