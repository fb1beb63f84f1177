"""Requests that no client would send: each is refused with a 4xx, and the server goes on answering."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import gouache
from gouache.errors import (
    ConfigError,
    GouacheError,
    InvalidInput,
    ModelNotFound,
    PictureError,
    StoreError,
    WorkerError,
)
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient, Server, StartServer

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")

FORM = {"content-type": "multipart/form-data; boundary=x"}
JSON = {"content-type": "application/json"}
FIELD = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of any claimed size with any chunks."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *more, (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BODIES = {
    "no boundary": ("/v1/images/edits", {"content-type": "multipart/form-data"}, b"x"),
    "torn form": ("/v1/images/edits", FORM, FIELD[:-4]),
    "junk form": ("/v1/images/edits", FORM, b"\x00\xff--x--"),
    "long part header": ("/v1/images/edits", FORM, b"--x\r\n" + b"A" * 100_000 + b": b\r\n\r\n\r\n--x--"),
    "many fields": ("/v1/images/edits", FORM, (FIELD + b"1\r\n") * 5000 + b"--x--"),
    "huge field": ("/v1/images/edits", FORM, FIELD + b"a" * 5_000_000 + b"\r\n--x--"),
    "deep JSON": ("/v1/jobs", JSON, b"[" * 200_000),
    "deep closed JSON": ("/v1/jobs", JSON, b"[" * 50_000 + b"]" * 50_000),
    "deep script": ("/sdapi/v1/txt2img", JSON, b'{"alwayson_scripts":' + b'{"a":' * 3000 + b"1" + b"}" * 3001),
    "long number": ("/v1/jobs", JSON, b'{"request":{"prompt":"a","seed":' + b"9" * 6000 + b"}}"),
    "not a number": ("/v1/jobs", JSON, b'{"request":{"prompt":"a","guidance_scale":NaN}}'),
    "infinity": ("/v1/jobs", JSON, b'{"request":{"prompt":"a","guidance_scale":1e999}}'),
    "half a character": ("/v1/jobs", JSON, b'{"request":{"prompt":"\\ud800"}}'),
    "many lists": ("/v1/jobs", JSON, b'{"request":{"prompt":[' + b"[]," * 1_000_000 + b"[]]}}"),
    "many keys": ("/sdapi/v1/txt2img", JSON, b"{" + b",".join(b'"k%d":1' % k for k in range(200_000)) + b"}"),
    "no UTF-8": ("/v1/jobs", JSON, b'{"request":{"prompt":"\xff"}}'),
    "long text": ("/v1/jobs", JSON, b'{"request":{"prompt":"' + b"a" * 5_000_000 + b'"}}'),
    "pixel bomb": ("/v1/attachments", {}, png(60_000, 60_000, (b"IDAT", zlib.compress(b"\0" * 10_000_000)))),
    "text bomb": ("/v1/attachments", {}, png(8, 8, (b"zTXt", b"parameters\0\0" + zlib.compress(b"A" * 60_000_000)))),
    "script in a picture": ("/v1/attachments", {}, b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_a_malformed_body_is_refused(client: httpx.Client, name: str) -> None:
    path, headers, body = BODIES[name]
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code in (400, 413, 422), answer.text[:300]


@pytest.mark.parametrize("origin", ["http://[::", "null", "http://127.0.0.1@evil.example", "//", "\x7f"])
def test_an_origin_that_is_none_is_refused(client: httpx.Client, origin: str) -> None:
    assert client.post("/v1/jobs", json={}, headers={"origin": origin}).status_code == 403


def test_one_job_comes_of_many_hands_with_one_key(client: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    body = {"request": {"prompt": "race", "seed": 1, "num_inference_steps": 1}}

    def hand_in() -> None:
        answers.append(client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "one-key-for-all"}))

    threads = [threading.Thread(target=hand_in) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def unfinished(server: Server) -> socket.socket:
    """A connection whose body never ends."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    made.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{")
    return made


def test_slow_bodies_are_cut_off_and_keep_nobody_waiting(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"body_seconds": 1.0})
    slow = [unfinished(server) for _ in range(100)]
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
    for one in slow:
        assert one.recv(100).startswith(b"HTTP/1.1 408")
        one.close()


def speaking(server: Server, said: bytes) -> socket.socket:
    """A connection on which so much was said."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    made.sendall(said)
    return made


def heard(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            parts.append(part)
    connection.close()
    return b"".join(parts)


def drip(connections: list[socket.socket], said: bytes, seconds: float) -> None:
    """A few bytes now and then, so that no connection is ever quiet; until the server wants no more."""
    until = time.monotonic() + seconds
    while connections and time.monotonic() < until:
        for one in list(connections):
            try:
                one.sendall(said)
            except ConnectionError:
                connections.remove(one)
                one.close()
        time.sleep(0.1)


def test_headers_that_never_end_are_cut_off(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"header_seconds": 2.0})
    start = time.monotonic()
    silent = [speaking(server, b"") for _ in range(20)]
    half = [speaking(server, b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ") for _ in range(60)]
    second = [speaking(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") for _ in range(20)]
    for one in second:
        assert one.recv(100).startswith(b"HTTP/1.1 200")
        one.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
    dripping = half + second
    drip(dripping, b"a", 30)
    assert dripping == []
    assert 2.0 <= time.monotonic() - start < 25
    assert all(heard(one) == b"" for one in silent)
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200


def test_half_a_request_is_answered_with_408(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"header_seconds": 0.3})
    assert heard(speaking(server, b"GET / HTTP/1.1\r\nHost:")).startswith(b"HTTP/1.1 408 ")


def test_headers_without_measure_are_refused(server: Server) -> None:
    said = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"a" * 200_000
    assert heard(speaking(server, said))[:12] in (b"HTTP/1.1 400", b"")  # Reset where bytes are left unread.


def test_a_body_that_goes_on_after_its_answer_is_cut_off(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"header_seconds": 1.0})
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9999999\r\n\r\n"
    slow = [speaking(server, head) for _ in range(10)]
    for one in slow:
        assert one.recv(100).startswith(b"HTTP/1.1 403")
    drip(slow, b"a", 30)
    assert slow == []


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_who_reads_nothing_of_the_answer_is_cut_off(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"body_seconds": 1.0})
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.settimeout(60)
    deaf.connect(("127.0.0.1", server.port))
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    deaf.sendall(asked * 100)  # Answers of some ten megabytes, more than the system keeps for a connection.
    until = time.monotonic() + 60
    while connections_of(server) and time.monotonic() < until:
        time.sleep(0.1)
    assert connections_of(server) == 0
    deaf.close()


def connections_of(server: Server) -> int:
    return len(server.web.server_state.connections)


def test_too_many_connections_are_turned_away_and_the_server_lives(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"connections": 10})
    many = [speaking(server, b"") for _ in range(30)]
    refused = httpx.get(f"{server.url}/healthz", timeout=30)
    assert refused.status_code == 503
    for one in many:
        one.close()
    until = time.monotonic() + 30
    while httpx.get(f"{server.url}/healthz", timeout=30).status_code == 503 and time.monotonic() < until:
        time.sleep(0.05)
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200


def test_a_user_follows_so_many_streams_and_no_more(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"streams": 2})
    with httpx.Client(base_url=server.url, timeout=30) as client:
        job = client.post("/v1/jobs", json={"request": {"prompt": "x"}}).json()["id"]
        events = f"/v1/jobs/{job}/events"
        with client.stream("GET", events) as first, client.stream("GET", events) as second:
            lines = [stream.iter_lines() for stream in (first, second)]  # A dropped iterator would close its stream.
            assert [next(line) for line in lines] == ["id: 1"] * 2
            third = client.get(events)
            assert (third.status_code, third.headers["retry-after"]) == (429, "30")
        until = time.monotonic() + 30
        while server.studio.streams["local"] and time.monotonic() < until:
            time.sleep(0.05)
        with client.stream("GET", events) as again:
            assert again.status_code == 200


def test_streams_that_are_opened_at_the_same_moment_are_counted_too(start_server: StartServer) -> None:
    server = start_server(workers=0, limits={"streams": 5})
    job = httpx.post(f"{server.url}/v1/jobs", json={"request": {"prompt": "x"}}, timeout=30).json()["id"]
    said = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    opened = [speaking(server, said) for _ in range(40)]
    statuses = [one.recv(12) for one in opened]
    assert (statuses.count(b"HTTP/1.1 200"), statuses.count(b"HTTP/1.1 429")) == (5, 35)
    for one in opened:
        one.close()
    until = time.monotonic() + 30
    while server.studio.streams["local"] and time.monotonic() < until:
        time.sleep(0.05)
    assert server.studio.streams["local"] == 0


def test_others_are_not_told_where_files_lie(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    token = "a-token-that-is-long-enough"
    server = start_server(prepare=lambda studio: studio.accounts.add_token("ada", token))
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        job = client.post("/v1/jobs", json={"request": {"prompt": "<lora:none:1>"}}).json()["id"]
        assert server.wait(job).state == "failed"
        said = client.get(f"/v1/jobs/{job}").text
    assert "no such LoRA" in said
    assert str(tmp_path) not in said


def test_an_upgrade_is_no_way_in(server: Server) -> None:
    said = b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
    said += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    assert heard(speaking(server, said)).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))


def test_a_picture_deleted_while_its_job_goes_on_stays_deleted(client: httpx.Client, server: Server) -> None:
    body = {"prompt": "many", "seed": 1, "count": 8, "num_inference_steps": 4}
    job = client.post("/v1/jobs", json={"request": body}).json()["id"]
    while not (seen := client.get(f"/v1/jobs/{job}").json())["pictures"]:
        assert seen["state"] in ("queued", "running")
    gone = seen["pictures"][0]
    assert client.delete(f"/v1/pictures/{gone}").status_code == 204
    assert server.wait(job).state == "done"
    assert gone not in client.get(f"/v1/jobs/{job}").json()["pictures"]
    assert client.get(f"/v1/pictures/{gone}/file").status_code == 404


@pytest.mark.parametrize("owner", ["local", "ada"])
@pytest.mark.parametrize(
    "error",
    [
        PictureError("{data}/attachments/x", given="no such file", expected="a picture"),
        ModelNotFound("model", given="{models}/a.safetensors", expected="a file", cure="See {models}."),
        WorkerError("worker", given="FileNotFoundError: '{data}/pictures/x.png'", expected="no such fault"),
        GouacheError("{home}/.cache", given="[Errno 13] {home}/x", expected="room"),
        InvalidInput("data", given="{data}", expected="a set"),
        StoreError("store", given="sqlite3 {data}/studio.sqlite3 is locked", expected="a store"),
        ConfigError("{package}/x.json", given="{package}", expected="a config"),
    ],
    ids=lambda error: type(error).__name__ if isinstance(error, GouacheError) else None,
)
def test_no_error_names_a_place_of_the_server(
    make_client: MakeClient, tmp_path: Path, error: GouacheError, owner: str
) -> None:
    places = {
        "data": str(tmp_path / "data0"),
        "models": str(tmp_path / "weights"),
        "home": str(Path.home()),
        "package": str(Path(gouache.__file__).parent),
    }
    parts = {name: text.format(**places) if name != "kind" else text for name, text in error.to_dict().items()}
    raised = type(error).from_dict(parts)
    token = "a-token-that-is-long-enough"

    def prepare(studio: Studio) -> None:
        if owner != "local":
            studio.accounts.add_token(owner, token)

        def fail(*_: object, **__: object) -> None:
            raise raised

        studio.submit = fail  # type: ignore[assignment, method-assign]

    client = make_client(prepare, models=(tmp_path / "weights",))
    who = {"Authorization": f"Bearer {token}"}
    for path, body in (
        ("/v1/jobs", {"request": {"prompt": "x"}}),
        ("/sdapi/v1/txt2img", {"prompt": "x"}),
        ("/v1/images/generations", {"prompt": "x"}),
    ):
        said = client.post(path, json=body, headers=who).text
        assert "..." in said
        for place in places.values():
            assert place not in said


def test_what_was_said_in_a_request_is_said_back(studio: Studio) -> None:
    for text in ("/etc/passwd", "a/b", "C:\\x", "tmpfs", f"x{studio.settings.data}"):
        assert studio.settings.hide_places(text) == text
    assert studio.settings.hide_places(f"'{studio.settings.data}/x'") == "'.../x'"


def test_a_painted_picture_says_nothing_of_where_its_model_lay(client: httpx.Client, server: Server) -> None:
    asked = {"prompt": "x", "num_inference_steps": 1, "width": 64, "height": 64}
    job = server.wait(client.post("/v1/jobs", json={"request": asked}).json()["id"])
    (picture,) = server.studio.pictures.of_job(job.id)
    data = client.get(f"/v1/pictures/{picture.id}/file").content
    assert json.loads(picture.recipe)["model"]["path"] is None
    assert b'"path":null' in data or b'"path": null' in data
    assert str(Path.home()).encode() not in data
