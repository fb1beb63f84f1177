"""What pictures cost: no user's pictures make the web server large, or keep others waiting."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zipfile
import zlib
from struct import pack
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from PIL import Image

from gouache.errors import GouacheError, PictureError, QueueFull
from gouache.serve.decoding import processes
from gouache.serve.decoding.processes import AT_ONCE, MOST_WAITING, Decoding
from gouache.serve.settings import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.testclient import TestClient
    from tests.serve.http.test_accounts import Process

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
LIMIT = 256 * 256
"""Pixels of a painted picture on the servers of these tests; an upload may have four times as many."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return pack(">I", len(body)) + kind + body + pack(">I", zlib.crc32(kind + body))


def bomb(side: int) -> bytes:
    """A whole PNG of side x side black pixels, a few kB long."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(b"\0" * (1 + side // 8)) for _ in range(side)) + packer.flush()
    head = pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def other_bomb(side: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("1" if kind in ("TIFF", "BMP", "PPM") else "L", (side, side)).save(buffer, kind)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


DOORS: dict[str, Any] = {
    "attachments": lambda client, data: client.post("/v1/attachments", content=data),
    "png-info": lambda client, data: client.post("/sdapi/v1/png-info", json={"image": text(data)}),
    "extras": lambda client, data: client.post(
        "/sdapi/v1/extra-single-image", json={"image": text(data), "upscaler_1": "Lanczos"}
    ),
    "extras batch": lambda client, data: client.post(
        "/sdapi/v1/extra-batch-images", json={"imageList": [{"data": text(data), "name": "a"}]}
    ),
    "img2img": lambda client, data: client.post("/sdapi/v1/img2img", json={"prompt": "x", "init_images": [text(data)]}),
    "mask": lambda client, data: client.post(
        "/sdapi/v1/img2img", json={"prompt": "x", "init_images": [text(other_bomb(64, "PNG"))], "mask": text(data)}
    ),
    "edits": lambda client, data: client.post(
        "/v1/images/edits", data={"prompt": "x"}, files={"image": ("a.png", data, "image/png")}
    ),
    "edits' mask": lambda client, data: client.post(
        "/v1/images/edits",
        data={"prompt": "x"},
        files={"image": ("a.png", other_bomb(64, "PNG"), "image/png"), "mask": ("b.png", data, "image/png")},
    ),
    "variations": lambda client, data: client.post(
        "/v1/images/variations", files={"image": ("a.png", data, "image/png")}
    ),
    "set": lambda client, data: client.put("/v1/training/sets/cats/a.png", content=data),
    "zip": lambda client, data: client.put("/v1/training/sets/cats/a.zip", content=zipped({"a.png": data})),
}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A studio whose uploads are small, shared by the doors."""
    from starlette.testclient import TestClient

    from gouache.serve.server import create_app
    from gouache.serve.settings import Settings
    from gouache.serve.studio import Studio

    plain = {"data": tmp_path_factory.mktemp("small"), "workers": 0, "page": False, "wait": 1.0}
    studio = Studio(Settings.from_dict({**plain, "limits": Limits(pixels=LIMIT)}))
    with TestClient(create_app(studio), base_url="http://127.0.0.1") as client:
        yield client
    studio.close()


@pytest.mark.parametrize("door", [name for name in DOORS if name not in ("set", "zip")])
def test_a_bomb_is_refused_at_every_door(small: TestClient, door: str) -> None:
    answer = DOORS[door](small, bomb(13_000))
    if door == "png-info":  # Its texts are in its head; nothing is decoded to find more.
        assert (answer.status_code, answer.json()["info"]) == (200, "")
    else:
        assert answer.status_code in (400, 422), answer.text
        assert f"at most {4 * LIMIT} pixels" in answer.text


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "PNG"])
def test_every_kind_of_picture_has_the_limit(small: TestClient, kind: str) -> None:
    answer = small.post("/v1/attachments", content=other_bomb(600, kind))
    assert answer.status_code == 422
    assert f"at most {4 * LIMIT} pixels" in answer.text
    assert small.post("/v1/attachments", content=other_bomb(500, kind)).status_code == 201


@pytest.mark.parametrize("door", ["set", "zip"])
def test_pictures_for_training_are_looked_at_one_by_one_or_in_a_zip(small: TestClient, door: str) -> None:
    for data in (bomb(9000), b"no picture", b"\x89PNG\r\n\x1a\n"):
        answer = DOORS[door](small, data)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["param"] == "a.png"
    assert DOORS[door](small, other_bomb(64, "PNG")).json()["pictures"] == 1


def test_one_bad_picture_keeps_the_whole_zip_out(small: TestClient) -> None:
    data = zipped({"a.png": other_bomb(64, "PNG"), "b.jpg": b"\xff\xd8\xff", "b.txt": b"a cat"})
    assert small.put("/v1/training/sets/dogs/a.zip", content=data).status_code == 422
    assert [one["name"] for one in small.get("/v1/training/sets").json() if one["name"] == "dogs"] == []


def test_who_has_many_pictures_keeps_nobody_elses_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    going, go = [], threading.Event()

    def answer(facts: dict[str, str], *_: object) -> tuple[dict[str, Any], bytes]:
        going.append(facts["who"])
        go.wait(20)
        return {"made": {}}, b""

    monkeypatch.setattr(processes, "_answer", answer)
    decoding = Decoding()

    def ask(owner: str) -> threading.Thread:
        hand = threading.Thread(target=decoding.run, args=(owner, "check", b"", {"who": owner}))
        hand.start()
        return hand

    hands = [ask("ada") for _ in range(MOST_WAITING)]
    until = time.monotonic() + 10
    while not going and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert going == ["ada"]
    with pytest.raises(QueueFull, match="at a time"):
        decoding.run("ada", "check", b"", {})
    hands.append(ask("bob"))
    while len(going) < AT_ONCE and time.monotonic() < until:
        time.sleep(0.01)
    assert going == ["ada", "bob"]
    go.set()
    for hand in hands:
        hand.join(20)
    assert sorted(going) == ["ada"] * MOST_WAITING + ["bob"]
    decoding.close()


def test_a_picture_that_ends_its_process_is_an_error_and_the_next_is_read() -> None:
    decoding = Decoding()
    good = other_bomb(64, "PNG")
    wanted = {"where": "image", "max_pixels": None}
    assert decoding.run("ada", "check", good, wanted)[0]["width"] == 64
    processes._idle[-1]._process.kill()
    with pytest.raises(PictureError, match="ends the process"):
        decoding.run("ada", "check", good, wanted)
    assert decoding.run("ada", "check", good, wanted)[0]["width"] == 64
    with pytest.raises(PictureError, match="longer than"):
        decoding.run("ada", "resize", good, {**RESIZE, "width": 30_000, "height": 30_000}, 0.05)
    # More than its memory allows is an error of the picture too, whatever raised it.
    with pytest.raises(GouacheError):
        decoding.run("ada", "resize", good, {**RESIZE, "width": 40_000, "height": 40_000})
    assert decoding.run("ada", "check", good, wanted)[0]["width"] == 64
    decoding.close()


RESIZE = {"crops": False, "resample": 1, "texts": {}, "max_pixels": None}


@pytest.mark.slow
def test_eight_extras_and_five_bombs_keep_the_server_small_and_quick(tmp_path: Path) -> None:
    from tests.serve.http.test_accounts import TOKEN, Process, accounts

    server: Process = Process(tmp_path / "data", {"GOUACHE_TOKEN": TOKEN})
    try:
        other = {"authorization": f"Bearer {accounts(server, 'add', 'bob')}"}
        heavy = {"authorization": f"Bearer {TOKEN}"}
        photo = io.BytesIO()
        Image.effect_noise((600, 600), 80).convert("RGB").save(photo, "JPEG", quality=90)
        extras = {"image": text(photo.getvalue()), "upscaler_1": "Lanczos", "upscaling_resize": 3}
        hidden = {"image": text(bomb(13_000))}
        web = psutil.Process(server._process.pid)
        before, codes, waits, largest = web.memory_info().rss, [], [], 0

        def post(path: str, body: dict[str, Any]) -> None:
            codes.append(httpx.post(server.url + path, json=body, headers=heavy, timeout=600).status_code)

        hands = [threading.Thread(target=post, args=("/sdapi/v1/extra-single-image", extras)) for _ in range(8)]
        hands += [threading.Thread(target=post, args=("/sdapi/v1/png-info", hidden)) for _ in range(5)]
        for hand in hands:
            hand.start()
        while any(hand.is_alive() for hand in hands):
            start = time.monotonic()
            assert httpx.get(f"{server.url}/v1/jobs", headers=other, timeout=60).status_code == 200
            waits.append(time.monotonic() - start)
            largest = max(largest, web.memory_info().rss)
            time.sleep(0.05)
        assert codes == [200] * 13
        waits.sort()
        print(json.dumps({"median": waits[len(waits) // 2], "longest": waits[-1], "MiB": (largest - before) / 2**20}))  # noqa: T201
        assert waits[len(waits) * 95 // 100] < 1.0
        assert largest - before < 600 * 2**20
    finally:
        server.stop()
