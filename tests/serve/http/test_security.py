"""Closed by default: one test, or more, for each class of attack that hit other servers."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from gouache.errors import InvalidInput, NotFound, PictureError
from gouache.pipeline.request import Request
from gouache.serve.server import check_openness
from gouache.serve.settings import Limits, Settings
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
OPEN = "http://127.0.0.1"


def paint(client: TestClient, headers: dict[str, str] | None = None, **fields: object) -> Any:
    return client.post("/v1/jobs", json={"request": {"prompt": "x", **fields}}, headers=headers)


# Names and origins: DNS rebinding, cross-site requests, open CORS.


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.9", "[::1", "", "localhost.evil"]
)
def test_a_host_that_is_not_ours_is_refused(make_client: MakeClient, host: str) -> None:
    client = make_client()
    assert client.get("/v1/jobs", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "[::1]:7860"])
def test_loopback_names_are_ours(make_client: MakeClient, host: str) -> None:
    assert make_client().get("/v1/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1.evil"])
def test_a_page_of_another_site_can_neither_read_nor_write(make_client: MakeClient, origin: str) -> None:
    client = make_client()
    for answer in (
        client.get("/v1/jobs", headers={"origin": origin}),
        client.post("/sdapi/v1/interrupt", headers={"origin": origin}),
        client.options("/v1/jobs", headers={"origin": origin, "access-control-request-method": "POST"}),
    ):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_our_own_page_may_write_and_cross_site_form_posts_may_not(make_client: MakeClient, kind: str) -> None:
    """A form of any kind that a browser sends without asking first, although its body is JSON that could be read."""
    client = make_client()
    assert paint(client, {"origin": OPEN}).status_code == 202
    assert client.post("/sdapi/v1/interrupt", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    for sender in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        form = client.post("/v1/jobs", content='{"request": {}}', headers={"content-type": kind, **sender})
        assert form.status_code == 403
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1


def test_every_reply_forbids_framing_sniffing_and_scripts(make_client: MakeClient) -> None:
    client = make_client()
    for path in ("/v1/jobs", "/healthz", "/nowhere", "/login"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]


# Who may come in.


def test_it_refuses_to_listen_to_others_without_a_token(tmp_path: Path) -> None:
    studio = Studio(Settings(data=tmp_path, host="0.0.0.0", workers=0))
    try:
        with pytest.raises(InvalidInput, match="without any account"):
            check_openness(studio)
        studio.accounts.new_token("ada")
        check_openness(studio)
    finally:
        studio.close()


def test_a_token_is_needed_once_there_is_one(make_client: MakeClient) -> None:
    tokens: list[str] = []
    client = make_client(lambda studio: tokens.append(studio.accounts.new_token("ada")))
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/v1/jobs").headers["www-authenticate"].startswith("Basic")
    assert client.get("/healthz").status_code == 200
    bearer = {"authorization": f"Bearer {tokens[0]}"}
    basic = {"authorization": "Basic " + base64.b64encode(f"ada:{tokens[0]}".encode()).decode()}
    for headers in (bearer, basic):
        assert client.get("/v1/jobs", headers=headers).status_code == 200
    for wrong in ("Bearer nonsense", "Basic !!", "Basic " + base64.b64encode(b"ada:wrong").decode(), "Digest x"):
        assert client.get("/v1/jobs", headers={"authorization": wrong}).status_code == 401
    assert client.get("/sdapi/v1/options").json()["detail"]
    assert client.post("/v1/images/generations", json={"prompt": "x"}).json()["error"]["type"] == "authentication_error"


def test_a_password_opens_a_session_and_a_forged_one_opens_nothing(make_client: MakeClient) -> None:
    client = make_client(lambda studio: studio.accounts.set_password("ada", "long enough"))
    assert (
        client.get("/v1/jobs", headers={"accept": "text/html"}, follow_redirects=False).headers["location"] == "/login"
    )
    wrong = client.post("/login", data={"name": "ada", "password": "wrong"}, follow_redirects=False)
    assert wrong.status_code == 401
    right = client.post("/login", data={"name": "ada", "password": "long enough"}, follow_redirects=False)
    assert right.status_code == 303
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/v1/jobs").status_code == 200
    value = client.cookies["gouache_session"]
    client.cookies.clear()
    for forged in (value[:-1], value[::-1], value.upper(), "x" * len(value), "ada", ""):
        assert client.get("/v1/jobs", headers={"cookie": f"gouache_session={forged}"}).status_code == 401


def test_secrets_are_stored_as_hashes(make_client: MakeClient, tmp_path: Path) -> None:
    tokens: list[str] = []

    def prepare(studio: Studio) -> None:
        tokens.append(studio.accounts.new_token("ada"))
        studio.accounts.set_password("bob", "correct horse battery")

    client = make_client(prepare)
    client.get("/v1/jobs", headers={"authorization": f"Bearer {tokens[0]}"})
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data0").iterdir() if path.is_file())
    assert b"ada" in stored
    assert tokens[0].encode() not in stored
    assert b"correct horse" not in stored


def test_guessing_is_slowed_down(make_client: MakeClient) -> None:
    tokens: list[str] = []
    client = make_client(
        lambda studio: tokens.append(studio.accounts.new_token("ada")), limits=Limits(failed_logins_per_minute=3)
    )
    codes = [client.get("/v1/jobs", headers={"authorization": f"Bearer {k}"}).status_code for k in range(5)]
    assert codes == [401, 401, 401, 429, 429]


def test_one_user_sees_and_stops_nothing_of_another(make_client: MakeClient) -> None:
    tokens: dict[str, str] = {}

    def prepare(studio: Studio) -> None:
        tokens.update({name: studio.accounts.new_token(name) for name in ("ada", "bob")})

    client = make_client(prepare)
    ada, bob = ({"authorization": f"Bearer {tokens[name]}"} for name in ("ada", "bob"))
    job = paint(client, ada).json()["id"]
    assert client.get(f"/v1/jobs/{job}", headers=bob).status_code == 404
    assert client.post(f"/v1/jobs/{job}/cancel", headers=bob).status_code == 404
    assert client.post("/sdapi/v1/interrupt", headers=bob).status_code == 200
    assert client.get(f"/v1/jobs/{job}", headers=ada).json()["state"] == "queued"
    assert client.get("/v1/jobs", headers=bob).json()["jobs"] == []
    assert client.get("/sdapi/v1/progress", headers=bob).json()["state"]["job_count"] == 0


def test_a_token_has_a_rate(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(jobs_per_minute=2))
    answers = [paint(client) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert int(answers[2].headers["retry-after"]) > 0
    quick = make_client(limits=Limits(requests_per_minute=3))
    assert [quick.get("/v1/jobs").status_code for _ in range(4)] == [200, 200, 200, 429]


# Files: reading, traversal, links, generated names.


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "sha256:" + "0" * 64, "file:///etc/passwd"])
def test_a_request_can_name_no_file(make_client: MakeClient, path: str) -> None:
    answer = paint(make_client(), init_image=path)
    assert answer.status_code == 422
    assert "root:" not in answer.text


def test_neither_model_nor_upscaler_can_be_a_path(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    client = make_client(models=(tmp_path / "models",))
    for fields in (
        {"model": str(tmp_path / "secret.safetensors")},
        {"model": "../secret.safetensors"},
        {"upscale": {"upscaler": "/etc/passwd"}},
        {"hires": {"upscaler": "../x.pth"}},
    ):
        assert paint(client, **fields).status_code == 422


def test_a_link_out_of_a_models_folder_is_not_listed(make_client: MakeClient, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    (folder / "inside.safetensors").write_bytes(b"x")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    seen: list[Studio] = []
    client = make_client(seen.append, models=(folder,))
    assert [entry.name for entry in seen[0].catalog.entries()] == ["pocket", "inside.safetensors"]
    # A file that can't be used is not offered.
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["pocket"]


@pytest.mark.parametrize("name", ["../studio.sqlite3", "..%2fstudio.sqlite3", "%2e%2e/x", "a/../../x", "x%00y"])
def test_pictures_are_only_found_by_their_ids(make_client: MakeClient, name: str) -> None:
    assert make_client().get(f"/v1/pictures/{name}/file").status_code in (400, 404, 405)


def test_the_file_store_follows_no_link_and_takes_no_foreign_name(studio: Studio, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = "0" * 64
    (studio.settings.data / "attachments" / name).symlink_to(secret)
    with pytest.raises(PictureError):
        studio.file_store.attachment(f"sha256:{name}")
    for bad in ("../secret", "x.png", "/etc/passwd", "0" * 32 + ".svg", ""):
        with pytest.raises(NotFound):
            studio.file_store.read("pictures", bad)


# No address is fetched.


def test_addresses_are_refused_everywhere(make_client: MakeClient) -> None:
    client, url = make_client(), "http://169.254.169.254/latest"
    assert client.post("/sdapi/v1/img2img", json={"init_images": [url]}).json()["field"] == "init_images"
    assert client.post("/sdapi/v1/png-info", json={"image": url}).json()["field"] == "image"
    assert client.post("/sdapi/v1/extra-single-image", json={"image": url}).status_code == 422
    form = client.post("/v1/images/edits", data={"prompt": "x", "image": url})
    assert (form.status_code, form.json()["error"]["param"]) == (400, "image")
    assert paint(client, init_image=url).status_code == 422


# Stored scripts.


def test_texts_come_back_as_json_and_pictures_as_pictures(make_client: MakeClient) -> None:
    client = make_client()
    evil = "<script>alert(1)</script>"
    job = paint(client, prompt=evil).json()
    answer = client.get(f"/v1/jobs/{job['id']}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["request"]["prompt"] == evil
    missing = client.get("/v1/jobs/%3Cscript%3E")
    assert missing.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "data", [b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", b"GIF89a", b"%PDF-1.4"]
)
def test_only_real_pictures_can_be_uploaded(make_client: MakeClient, data: bytes) -> None:
    assert make_client().post("/v1/attachments", content=data).status_code == 422


# Too much of everything.


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels and whose data is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_picture_bomb_is_refused_before_it_is_decoded(make_client: MakeClient) -> None:
    client = make_client()
    assert client.post("/v1/attachments", content=bomb(60_000)).status_code == 422
    body = {"init_images": [base64.b64encode(bomb(60_000)).decode()]}
    assert client.post("/sdapi/v1/img2img", json=body).json()["field"] == "init_images"


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 16_384, "height": 16_384},
        {"num_inference_steps": 1000},
        {"count": 256},
        {"prompt": "x" * 30_000},
        {"upscale": {"factor": 16.0}, "width": 2048, "height": 2048},
        {"hires": {"scale": 8.0}, "width": 1024},
        {"prompt": "nul\0"},
        {"prompt": "a AND " * 40},
        {"interpolation": {"frames": 1000}},
        {"seed": 2**64},
        {"guidance_scale": 1e308},
    ],
)
def test_what_is_over_a_limit_is_refused(make_client: MakeClient, fields: dict[str, Any]) -> None:
    answer = paint(make_client(), **fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]


def test_nan_and_lone_surrogates_are_refused(make_client: MakeClient) -> None:
    client, headers = make_client(), {"content-type": "application/json"}
    for body in ('{"request": {"guidance_scale": NaN}}', '{"request": {"prompt": "\\ud800"}}', "[" * 20_000, "{}x"):
        assert client.post("/v1/jobs", content=body, headers=headers).status_code in (400, 422)


def test_a_body_over_the_limit_is_cut_off_whatever_its_header_says(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(body_bytes=10_000))

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    assert client.post("/v1/attachments", content=b"x" * 20_000).status_code == 413
    assert client.post("/v1/attachments", content=pieces()).status_code == 413
    assert client.post("/v1/jobs", content=pieces(), headers={"content-type": "application/json"}).status_code == 413


def test_a_users_bodies_together_have_a_measure(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(bodies_bytes=10_000))
    for _ in range(3):  # What was answered is not counted any more.
        assert client.post("/v1/attachments", content=b"x" * 6_000).status_code == 422
    answer = client.post("/v1/attachments", content=b"x" * 12_000)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_a_nearly_full_disk_takes_nothing_new(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(free_bytes=2**60))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for answer in (
        paint(client),
        client.post("/v1/attachments", content=buffer.getvalue()),
        client.put("/v1/training/sets/cats/one.png", content=buffer.getvalue()),
    ):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "Make room" in answer.json()["error"]["message"]
    assert client.get("/v1/jobs").json() == {"jobs": []}


def test_a_full_queue_says_when_to_come_back(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(queue=2))
    answers = [paint(client) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[2].headers["retry-after"] == "30"


def test_unknown_ids_are_404_and_never_done(make_client: MakeClient) -> None:
    client = make_client()
    for path in ("/v1/jobs/0", "/v1/jobs/0/preview", "/v1/jobs/0/events", "/v1/pictures/0", "/v1/pictures/0/recipe"):
        assert client.get(path).status_code == 404
    assert client.post("/v1/jobs/0/cancel").status_code == 404
    assert client.delete("/v1/pictures/0").status_code == 404


def test_the_recipe_that_is_told_outside_has_no_path(studio: Studio) -> None:
    job, _ = studio.submit(Request(prompt="x"), owner="local", source="v1")
    assert "path" not in json.dumps(job.error_parts())
    assert str(studio.settings.data) not in job.request


def test_a_picture_that_is_sent_is_one(make_client: MakeClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    answer = make_client().post("/v1/attachments", content=buffer.getvalue())
    assert answer.json()["name"].startswith("sha256:")
    assert (answer.json()["width"], answer.json()["height"]) == (8, 8)
