"""A picture that one user sent is that user's: no other can paint it by its hash, through whatever door."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from gouache.errors import PictureError
from gouache.pipeline.request import Request
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import DiskStore
from gouache.serve.store.upkeep import back_up, restore
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
TOKENS = {name: f"the-token-of-{name}-which-is-long" for name in ("ada", "bob")}


def png(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def who(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    def prepare(studio: Studio) -> None:
        for name, token in TOKENS.items():
            studio.accounts.add_token(name, token)

    return make_client(prepare)


def uploaded(client: TestClient, name: str, data: bytes) -> str:
    answer = client.post("/v1/attachments", content=data, headers=who(name))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ControlNet's name, so that only its picture can be what is refused."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "models" / "controlnets"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(16, 3, 3, 3)}, folder / "lines.safetensors")
    return "lines"


DOORS: dict[str, dict[str, Any]] = {
    "init_image": {"init_image": "HASH", "strength": 0.5},
    "mask": {"init_image": "OWN", "strength": 0.5, "mask": {"image": "HASH"}},
    "outpaint": {"init_image": "HASH", "outpaint": {"left": 8}},
    "inversion": {"init_image": "HASH", "inversion": {"source_prompt": "x"}},
    "transparency": {"init_image": "HASH", "mask": {}},
    "hires": {"init_image": "HASH", "hires": {"scale": 2.0}},
}


@pytest.mark.parametrize("door", DOORS)
def test_nobody_paints_what_another_sent(client: TestClient, door: str) -> None:
    secret, own = uploaded(client, "ada", png(1)), uploaded(client, "bob", png(2))
    unknown = f"sha256:{'0' * 64}"

    def answer(name: str, digest: str) -> Any:
        body = json.dumps(DOORS[door]).replace("HASH", digest).replace("OWN", own)
        return client.post("/v1/jobs", json={"request": {"prompt": "x", **json.loads(body)}}, headers=who(name))

    refused, never = answer("bob", secret), answer("bob", unknown)
    assert refused.status_code == never.status_code == 422
    # It is not told that there is such a picture.
    assert refused.text.replace(secret, "") == never.text.replace(unknown, "")
    if door != "mask":
        assert answer("ada", secret).status_code in (202, 422)
        assert "attachment" not in answer("ada", secret).text
    # Whoever has the picture itself may use it.
    assert uploaded(client, "bob", png(1)) == secret
    assert "attachment" not in answer("bob", secret).text


def test_control_images_are_asked_for_too(studio: Studio) -> None:
    secret = studio.attachments.keep("ada", png(1))
    request = Request.from_dict({"prompt": "x", "control": [{"model": "lines", "image": secret}]})
    with pytest.raises(PictureError, match="you uploaded"):
        studio.submit(request, owner="bob", source="v1")


@pytest.mark.parametrize("field", ["images", "mask"])
def test_pictures_of_image_prompts_are_asked_for_too(studio: Studio, field: str) -> None:
    secret, own = studio.attachments.keep("ada", png(1)), studio.attachments.keep("bob", png(2))
    prompt = {"adapter": "plain", "images": [own], field: [secret] if field == "images" else secret}
    request = Request.from_dict({"prompt": "x", "image_prompts": [prompt]})
    with pytest.raises(PictureError, match="you uploaded"):
        studio.submit(request, owner="bob", source="v1")


def test_a_shared_recipe_does_not_open_the_picture_it_began_with(client: TestClient) -> None:
    secret = uploaded(client, "ada", png(1))
    job = client.post(
        "/v1/jobs", json={"request": {"prompt": "x", "init_image": secret, "strength": 0.5}}, headers=who("ada")
    ).json()
    shared = {name: value for name, value in job["request"].items() if value is not None}
    assert shared["init_image"] == secret
    answer = client.post("/v1/jobs", json={"request": shared}, headers=who("bob"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "picture")
    for name in (secret, secret.upper(), secret.replace("sha256:", "SHA256:"), f" {secret}", f"{secret}\0", secret[7:]):
        again = client.post("/v1/jobs", json={"request": {**shared, "init_image": name}}, headers=who("bob"))
        assert again.status_code == 422, name


def test_each_interface_keeps_a_picture_for_its_sender(client: TestClient) -> None:
    """By A1111's and OpenAI's routes no hash can be named; what is sent there belongs to its sender."""
    digest = uploaded(client, "ada", png(1))
    for field in ({"init_images": [digest]}, {"init_images": [base64.b64encode(png(3)).decode()], "mask": digest}):
        answer = client.post("/sdapi/v1/img2img", json={"prompt": "x", **field}, headers=who("bob"))
        assert answer.status_code == 422
    files = {"image": ("a.png", digest.encode(), "image/png")}
    answer = client.post("/v1/images/edits", data={"prompt": "x"}, files=files, headers=who("bob"))
    assert answer.status_code == 400


def test_rows_go_with_their_files_and_travel_in_backups(studio: Studio, tmp_path: Path) -> None:
    kept, gone = studio.attachments.keep("ada", png(1)), studio.attachments.keep("ada", png(2))
    request = Request.from_dict({"prompt": "x", "init_image": kept, "strength": 0.5})
    studio.submit(request, owner="ada", source="v1")
    archive = tmp_path / "all.tar"
    back_up(studio.database, studio.file_store, archive)
    import time

    studio.housekeeping.clean(now=time.time() + 30 * 24 * 3600)
    assert studio.attachments.read("ada", kept) == png(1)
    with pytest.raises(PictureError):
        studio.attachments.read("ada", gone)
    for name, whole in (("new", True), ("old", False)):
        source = archive if whole else _without_owners(archive, tmp_path / "old.tar")
        file_store, database = DiskStore(tmp_path / name), Database(f"sqlite:///{tmp_path / name}.sqlite3")
        restore(database, file_store, source)
        from gouache.serve.store.attachments import Attachments

        attachments = Attachments(database, file_store)
        assert attachments.read("ada", kept) == png(1)
        with pytest.raises(PictureError):
            attachments.read("bob", kept)
        database.close()


def _without_owners(source: Path, target: Path) -> Path:
    """The backup as version 2 of the tables wrote it."""
    with tarfile.open(source) as old, tarfile.open(target, "x") as new:
        for member in old:
            content = old.extractfile(member)
            if member.name != "store/attachments.jsonl" and content is not None:
                data = content.read().replace(b', "expires": null', b"")
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return target
