"""What the editor asks the server for: control pictures, uploads again, composed pictures; each user sees their own."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gouache.pipeline.inputs.edges import canny
from gouache.pipeline.output.foreign import read_recipe
from gouache.serve.queue.queue import fingerprint_of
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient, Server

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
TOKENS = {name: f"the-token-of-{name}-which-is-long" for name in ("ada", "bob")}


def who(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def house() -> Image.Image:
    made = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(made).rectangle((16, 12, 47, 40), fill="navy")
    return made


@pytest.fixture
def client(make_client: MakeClient, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))

    def prepare(studio: Studio) -> None:
        for name, token in TOKENS.items():
            studio.accounts.add_token(name, token)

    return make_client(prepare)


def uploaded(client: TestClient, data: bytes, name: str = "ada") -> str:
    answer = client.post("/v1/attachments", content=data, headers=who(name))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


def test_canny_draws_what_the_pipeline_draws(client: TestClient) -> None:
    name = uploaded(client, png(house()))
    body = {"image": name, "preprocessor": "canny", "parameters": {"canny_low": 50, "canny_high": 150}}
    made = client.post("/v1/control-images", json=body, headers=who("ada"))
    assert made.status_code == 201, made.text
    assert (made.json()["width"], made.json()["height"]) == (64, 48)
    file = client.get(f"/v1/attachments/{made.json()['name'].removeprefix('sha256:')}", headers=who("ada"))
    assert file.headers["content-type"] == "image/png"
    assert "sandbox" in file.headers["content-security-policy"]
    drawn = np.asarray(Image.open(io.BytesIO(file.content)).convert("L"))
    assert np.array_equal(drawn, np.asarray(canny(house(), 50, 150).convert("L")))
    assert drawn.any()


def test_what_the_server_lacks_is_said(client: TestClient) -> None:
    name = uploaded(client, png(house()))
    lists = client.get("/v1/control-images", headers=who("ada")).json()
    assert lists == {"preprocessors": ["none", "canny"], "models": []}
    refused = client.post("/v1/control-images", json={"image": name, "preprocessor": "depth"}, headers=who("ada"))
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "preprocessor"
    crossed = {"image": name, "preprocessor": "canny", "parameters": {"canny_low": 9, "canny_high": 3}}
    assert client.post("/v1/control-images", json=crossed, headers=who("ada")).status_code == 422


def test_uploads_are_shown_to_whoever_sent_them(client: TestClient) -> None:
    data = png(house())
    name = uploaded(client, data)
    digest = name.removeprefix("sha256:")
    assert client.get(f"/v1/attachments/{digest}", headers=who("ada")).content == data
    assert client.get(f"/v1/attachments/{digest}", headers=who("bob")).status_code in (404, 422)
    stolen = client.post("/v1/control-images", json={"image": name, "preprocessor": "canny"}, headers=who("bob"))
    assert stolen.status_code in (404, 422)
    assert client.get(f"/v1/attachments/{'0' * 64}", headers=who("ada")).status_code in (404, 422)


def test_a_composed_picture_without_parents_is_kept_as_it_is(client: TestClient) -> None:
    picture = house().convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 4))
    made = client.post("/v1/pictures", content=png(picture), headers=who("ada"))
    assert made.status_code == 201, made.text
    file = client.get(made.json()["file"], headers=who("ada"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.content))), np.asarray(picture))
    assert [one["id"] for one in client.get("/v1/pictures", headers=who("ada")).json()["pictures"]] == [
        made.json()["id"]
    ]
    assert client.get("/v1/pictures", headers=who("bob")).json()["pictures"] == []
    job = client.get(f"/v1/jobs/{made.json()['job']}", headers=who("ada")).json()
    assert (job["state"], job["source"], job["pictures"]) == ("done", "edit", [made.json()["id"]])
    assert client.post("/v1/pictures", content=b"no picture", headers=who("ada")).status_code == 422
    assert client.post("/v1/pictures", content=b"", headers=who("ada")).status_code == 422


def test_a_composed_picture_has_the_recipe_of_its_parent(server: Server) -> None:
    import httpx

    with httpx.Client(base_url=server.url, timeout=60) as client:
        job = client.post("/v1/jobs", json={"request": {"prompt": "a red house", "seed": 7}}).json()
        parent = server.studio.pictures.ids_of_jobs([server.wait(job["id"]).id])[job["id"]][0]
        made = client.post(f"/v1/pictures?parent={parent}", content=png(house())).json()
        assert (made["prompt"], made["seed"], made["width"]) == ("a red house", "7", 64)
        assert made["kind"] == "edited"
        recipe = read_recipe(client.get(made["file"]).content).recipe
        assert recipe is not None
        assert recipe.notes[-1] == f"edited by hand from {parent}"
        assert (recipe.steps, recipe.pixels, recipe.request.prompt) == ((), None, "a red house")
        missing = client.post("/v1/pictures?parent=nothing-0000", content=png(house()))
        assert missing.status_code == 404
    # A repeated request must paint anew, and not be answered with what was only composed.
    request = recipe.request.to_json()
    assert server.studio.jobs.recent_duplicate("local", fingerprint_of(request), since=0.0) is None
