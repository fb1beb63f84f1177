"""Models that are added over the interface: files in pieces, folders; and what the list says of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save, save_file

from gouache.errors import CheckpointError, Conflict, CorruptCheckpoint, InvalidInput, NotFound
from gouache.serve.models.added_folders import added_folders
from gouache.serve.models.uploads import KEPT_SECONDS, Placed, Upload, Uploads

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

    from gouache.serve.studio import Studio

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def lora_bytes(**metadata: str) -> bytes:
    down, up = f"{LORA}.lora_down.weight", f"{LORA}.lora_up.weight"
    return save({down: torch.zeros(2, 320), up: torch.zeros(320, 2)}, metadata=metadata)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in one file."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    return write_model(
        bundle_to_write(untrained_bundle()), tmp_path_factory.mktemp("tiny") / "tiny.safetensors", "gouache"
    )


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "models"


@pytest.fixture
def client(models: Path, make_client: MakeClient) -> TestClient:
    return make_client(models=(models,), base_url="http://localhost")


def send(client: Any, name: str, data: bytes, piece: int = 100_000, start: int = 0, **more: object) -> Any:
    """Begin, and send what isn't there yet; gives the last answer."""
    begun = client.post("/v1/models/files", json={"name": name, "size": len(data), **more})
    assert begun.status_code == 201, begun.text
    view = begun.json()
    answer = begun
    for at in range(view["received"] or start, len(data), piece):
        answer = client.put(f"/v1/models/files/{view['id']}?offset={at}", content=data[at : at + piece])
        if answer.status_code != 200:
            return answer
    return answer


def test_a_model_that_was_sent_in_pieces_is_listed_and_can_be_asked_for(
    client: Any, models: Path, model_file: Path
) -> None:
    data = model_file.read_bytes()
    assert len(data) > 3 * 100_000
    done = send(client, "mine.safetensors", data, sha256=hashlib.sha256(data).hexdigest()).json()
    assert (done["done"], done["kind"], done["name"], done["family"]) == (True, "model", "mine.safetensors", "sd1")
    assert (models / "mine.safetensors").read_bytes() == data
    assert not [*(models / ".uploads").iterdir()]
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert listed["mine.safetensors"]["usable"]
    assert listed["mine.safetensors"]["name"] == "mine"
    assert client.put("/v1/models/default", json={"model": "mine"}).json() == {"model": "mine.safetensors"}
    assert client.post("/v1/jobs", json={"request": {"prompt": "x", "model": "mine"}}).status_code in (200, 202)


def test_what_a_file_is_decides_where_it_goes(client: Any, models: Path) -> None:
    (models / "Lora").mkdir(parents=True)
    assert send(client, "ink.safetensors", lora_bytes(ss_output_name="ink")).json()["kind"] == "lora"
    assert (models / "Lora" / "ink.safetensors").is_file(), "the folder that is there already"
    buffer = io.BytesIO()
    torch.save({"emb_params": torch.zeros(3, 768)}, buffer)
    told = send(client, "zog.pt", buffer.getvalue()).json()
    assert (told["kind"], told["name"]) == ("textual-inversion", "zog")
    assert (models / "embeddings" / "zog.pt").is_file()
    names = [found["name"] for found in client.get("/v1/models/adapters").json()]
    assert names == ["ink", "zog"]


def test_pieces_come_in_order_and_an_upload_goes_on_where_it_was(client: Any, models: Path, model_file: Path) -> None:
    data = model_file.read_bytes()
    begun = client.post("/v1/models/files", json={"name": "a.safetensors", "size": len(data), "modified": 5}).json()
    place = f"/v1/models/files/{begun['id']}"
    assert client.put(f"{place}?offset=7", content=data[7:20]).status_code == 409
    first = client.put(f"{place}?offset=0", content=data[:200_000]).json()
    assert (first["received"], first["kind"]) == (200_000, "model"), "its header was here"
    again = client.put(f"{place}?offset=0", content=data[:200_000])
    assert again.status_code == 409
    assert again.json()["error"]["expected"] == "200000"
    assert [one["received"] for one in client.get("/v1/models/files").json()] == [200_000]
    other = client.post("/v1/models/files", json={"name": "a.safetensors", "size": len(data), "modified": 6}).json()
    assert (other["received"], other["id"] != begun["id"]) == (0, True), "a file that was changed is another one"
    assert client.delete(f"/v1/models/files/{other['id']}").status_code == 204
    assert send(client, "a.safetensors", data, modified=5).json()["done"]
    assert (models / "a.safetensors").read_bytes() == data


def test_an_upload_outlives_the_server(models: Path, model_file: Path) -> None:
    data, arrived = model_file.read_bytes(), list[Placed]()
    first = Uploads(models, 0, arrived.append)
    begun = first.open("a.safetensors", len(data), 1)
    first.write(begun.id, 0, data[:150_000])
    second = Uploads(models, 0, arrived.append)
    assert second.open("a.safetensors", len(data), 1).received == 150_000
    placed = second.write(begun.id, 150_000, data[150_000:])
    assert isinstance(placed, Placed)
    assert placed.sha256 == hashlib.sha256(data).hexdigest(), "pieces of before are read again for it"
    assert arrived == [placed]


@pytest.mark.parametrize(
    ("data", "given"),
    [
        (b"<!DOCTYPE html><html>log in</html>" + b" " * 400_000, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" + b" " * 400, "Git LFS"),
        (os.urandom(8) + b"x" * 400_000, "header"),
        ((60).to_bytes(8, "little") + b"{" + b"x" * 400_000, "not JSON"),
    ],
    ids=["page", "pointer", "noise", "torn"],
)
def test_a_bad_file_is_told_by_its_first_piece(client: Any, models: Path, data: bytes, given: str) -> None:
    size = max(len(data), 300_000)
    begun = client.post("/v1/models/files", json={"name": "bad.safetensors", "size": size}).json()
    answer = client.put(f"/v1/models/files/{begun['id']}?offset=0", content=data[:1000])
    assert answer.status_code == 422
    said = answer.json()["error"]
    assert given in said["given"]
    assert said["param"] == "bad.safetensors"
    assert str(models) not in answer.text
    assert ".part" not in answer.text
    assert begun["id"] not in answer.text
    assert client.get("/v1/models/files").json() == []
    assert not [*(models / ".uploads").iterdir()]


def test_a_foreign_or_partial_file_is_refused_with_its_reason(client: Any, models: Path) -> None:
    flux = save({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4), "img_in.weight": torch.zeros(4, 64)})
    answer = send(client, "flux.safetensors", flux)
    assert answer.status_code == 422
    assert "FLUX" in answer.json()["error"]["given"]
    assert client.get("/v1/models?unusable=true").json()["data"][-1]["id"] == "pocket", "nothing of it is kept"
    assert not (models / "flux.safetensors").exists()


def test_a_ckpt_that_would_run_code_is_never_run(client: Any, models: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickled = b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickled)
        archive.writestr("x/version", "3")
    answer = send(client, "evil.ckpt", file.getvalue())
    assert answer.status_code == 422
    assert not mark.exists()
    assert not (models / "evil.ckpt").exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "x.exe",
        "../x.ckpt",
        "a/b.ckpt",
        "a\\b.ckpt",
        ".ckpt",
        ".x.ckpt",
        "x\n.ckpt",
        "a" * 300 + ".ckpt",
        "c:x.ckpt",
    ],
)
def test_names_are_file_names(models: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        Uploads(models, 0, lambda _: None).open(name, 1000, 0)


def test_sums_sizes_and_names_that_are_taken(models: Path) -> None:
    uploads = Uploads(models, 0, lambda _: None)
    data = lora_bytes()
    begun = uploads.open("ink.safetensors", len(data), 0, hashlib.sha256(b"other").hexdigest())
    with pytest.raises(InvalidInput):
        uploads.write(begun.id, 0, b"")
    with pytest.raises(InvalidInput):
        uploads.write(begun.id, 0, data + b"x")
    with pytest.raises(CorruptCheckpoint, match=r"^ink\.safetensors: given sha256"):
        uploads.write(begun.id, 0, data)
    with pytest.raises(NotFound):
        uploads.write(begun.id, 0, data)
    begun = uploads.open("ink.safetensors", len(data), 0)
    assert isinstance(uploads.write(begun.id, 0, data), Placed)
    with pytest.raises(Conflict, match="taken"):
        uploads.open("ink.safetensors", len(data), 0)
    for size in (3, 2**50):
        with pytest.raises(InvalidInput):
            uploads.open("x.ckpt", size, 0)
    odd = save({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)})
    begun = uploads.open("odd.safetensors", len(odd), 0)
    with pytest.raises(CheckpointError):
        uploads.write(begun.id, 0, odd)


def test_no_upload_fills_the_disk(make_client: MakeClient, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gouache.serve.models.uploads.free_bytes", lambda _: 10**9)
    client = make_client(models=(models,), limits={"free_bytes": 4 * 10**8})
    assert client.post("/v1/models/files", json={"name": "x.ckpt", "size": 7 * 10**8}).status_code == 503
    assert client.post("/v1/models/files", json={"name": "x.ckpt", "size": 5 * 10**8}).status_code == 201


def test_what_was_left_is_given_up_after_a_week(models: Path) -> None:
    uploads = Uploads(models, 0, lambda _: None)
    begun = uploads.open("x.ckpt", 1000, 0)
    assert [one.id for one in uploads.listing()] == [begun.id]
    long_ago = time.time() - KEPT_SECONDS - 1
    os.utime(models / ".uploads" / f"{begun.id}.json", (long_ago, long_ago))
    assert uploads.listing() == []
    assert not [*(models / ".uploads").iterdir()]
    for key in ("../x", "0" * 32, ""):
        with pytest.raises(NotFound):
            uploads.get(key)


def test_only_administrators_add_and_only_here(make_client: MakeClient, models: Path, model_file: Path) -> None:
    def two_users(studio: Studio) -> None:
        for name in ("admin", "bob"):
            studio.accounts.set_password(name, "a password of " + name)

    client = make_client(two_users, models=(models,), base_url="http://localhost")
    bob, admin = ("bob", "a password of bob"), ("admin", "a password of admin")
    for method, path, body in (
        ("POST", "files", {"name": "x.ckpt", "size": 99}),
        ("GET", "files", None),
        ("PUT", "files/x?offset=0", None),
        ("DELETE", "files/x", None),
        ("GET", "folders", None),
        ("POST", "folders", {"path": "/tmp"}),
        ("DELETE", "folders/0", None),
        ("GET", "room", None),
        ("GET", "pulls/about?repo=a/b", None),
    ):
        answer = client.request(method, f"/v1/models/{path}", auth=bob, json=body)
        assert answer.status_code == 403, (method, path, answer.text)
    for headers in ({"X-Forwarded-For": "203.0.113.7"}, {"Via": "1.1 proxy"}):
        body = {"path": str(model_file.parent)}
        answer = client.post("/v1/models/folders", json=body, auth=admin, headers=headers)
        assert answer.status_code == 403, headers


def test_a_folder_of_this_machine_is_added_and_taken_off(server_here: Any, model_file: Path, tmp_path: Path) -> None:
    client, studio = server_here
    answer = client.post("/v1/models/folders", json={"path": str(model_file.parent)})
    assert answer.status_code == 201, answer.text
    assert answer.json() == [{"number": 0, "path": str(model_file.parent.resolve()), "models": 1}]
    assert "tiny.safetensors" in [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert client.post("/v1/models/folders", json={"path": str(model_file.parent)}).json()[0]["number"] == 0
    for wrong in ("/", "relative", str(tmp_path / "none"), str(model_file), "\0"):
        refused = client.post("/v1/models/folders", json={"path": wrong})
        assert refused.status_code == 422, wrong
    assert client.delete("/v1/models/folders/1").status_code == 422
    assert client.delete("/v1/models/folders/0").json() == []
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["pocket"]
    assert added_folders(studio.database) == []
    assert model_file.is_file()
    strange = client.get("/v1/models/folders", headers={"Host": "studio.example"})
    assert strange.status_code == 403


@pytest.fixture
def server_here(start_server: Any, models: Path) -> Any:
    """A client on this machine, and the studio; no worker is needed."""
    import httpx

    server = start_server(workers=0, models=(models,))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client, server.studio


def test_the_list_says_why_a_file_cannot_be_used(client: Any, models: Path) -> None:
    models.mkdir(exist_ok=True)
    (models / "broken.safetensors").write_bytes(b"no weights at all")
    client.post("/v1/models/refresh")
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["pocket"]
    listed = client.get("/v1/models?unusable=true")
    broken = listed.json()["data"][-1]
    assert (broken["usable"], broken["problem"]["kind"]) == (False, "CorruptCheckpoint")
    assert str(models) not in listed.text
    pocket = listed.json()["data"][0]
    assert pocket["default"]
    assert (pocket["family"], pocket["shipped"], pocket["thumbnail"]) == ("pocket", True, None)
    assert {"id", "object", "created", "owned_by"} <= set(pocket)


def test_an_adapter_tells_its_trigger_words(client: Any, models: Path) -> None:
    (models / "loras").mkdir(parents=True)
    frequency = json.dumps({"10_zog": {"zog style": 40, "a cat": 5, "night": 22, "": 40}, "bad": 3})
    loras = {
        "named": {
            "modelspec.trigger_phrase": "zog, ink wash",
            "ss_tag_frequency": frequency,
            "modelspec.author": "ada",
        },
        "counted": {"ss_tag_frequency": frequency},
        "silent": {"ss_tag_frequency": "{"},
    }
    for name, metadata in loras.items():
        (models / "loras" / f"{name}.safetensors").write_bytes(lora_bytes(**metadata))
    save_file({"emb_params": torch.zeros(3, 768)}, models / "loras" / "word.safetensors")
    found = {one["name"]: one for one in client.get("/v1/models/adapters").json()}
    assert (found["named"]["triggers"], found["named"]["triggers_named"]) == (["zog", "ink wash"], True)
    assert found["named"]["author"] == "ada"
    assert found["counted"]["triggers"] == ["zog style", "night"]
    assert found["silent"]["triggers"] == []
    assert found["named"]["family_label"] in ("", "Stable Diffusion 1.x")
    assert found["word"]["kind"] == "textual-inversion"


def test_the_recommended_are_told_apart_from_those_that_are_here(client: Any) -> None:
    found = client.get("/v1/models/recommended").json()
    repos = [one["repo"] for one in found]
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in repos
    assert len(set(repos)) == len(repos)
    assert all(one["licence"] and one["licence_link"].startswith("https://") and one["bytes"] > 10**9 for one in found)
    assert not any(one["here"] for one in found)


def test_an_upload_is_told_as_json_and_back() -> None:
    upload = Upload(id="0" * 32, name="x.ckpt", size=10, modified=3)
    assert Upload.from_json(upload.to_json()) == upload
