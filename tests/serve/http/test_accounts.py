"""`gouache accounts` beside a running `gouache serve`: what is added, changed or revoked counts at once."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from gouache.cli.serving.accounts import app
from gouache.errors import InvalidInput, NotFound
from gouache.serve.store.accounts import Accounts
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
SERVER = Path(__file__).parents[1] / "tiny_server.py"
TOKEN = "an-environment-token-of-one-server"


class Process:
    """`gouache serve` as a process of its own, whose worker paints with the tiny model."""

    def __init__(self, folder: Path, environment: dict[str, str], **changes: object) -> None:
        settings = {"data": str(folder), "port": 0, "page": False, "threads": 1, "grace": 1.0, "workers": 0, **changes}
        self.folder = folder
        self.log = (folder.parent / f"{folder.name}.log").open("a+")
        clean = {name: value for name, value in os.environ.items() if name != "GOUACHE_TOKEN"}
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**clean, **environment},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Lines of its log with this message."""
        self.log.seek(0)
        lines = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def code(self, token: str | None = None, path: str = "/v1/jobs", **headers: str) -> int:
        """The status of a request with this token."""
        named = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.get(self.url + path, headers={**named, **headers}, timeout=60).status_code

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.log.close()


StartProcess = Callable[..., Process]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[StartProcess]:
    """Starts servers of one store."""
    started: list[Process] = []

    def start(environment: dict[str, str] | None = None, **changes: object) -> Process:
        started.append(Process(tmp_path / "data", environment or {}, **changes))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def accounts(server: Process, *arguments: str, given: str = "") -> str:
    """What `gouache accounts` prints."""
    command = [sys.executable, "-m", "gouache", "accounts", *arguments, "--data", str(server.folder)]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def sign_in(server: Process, name: str, password: str) -> str:
    """The cookie of a browser that signs in."""
    answer = httpx.post(f"{server.url}/login", data={"name": name, "password": password}, timeout=60)
    return f"gouache_session={answer.cookies['gouache_session']}" if answer.status_code == 303 else ""


@pytest.mark.slow
def test_a_running_server_acts_on_every_change_at_once(serve: StartProcess) -> None:
    server = serve()
    assert server.code() == 200
    first = accounts(server, "add", "ada")
    assert (server.code(), server.code(first)) == (401, 200)  # The first account closed it.
    second = accounts(server, "add", "ada", "--days", "1")
    accounts(server, "add", "bob", "--password", given="long enough\nlong enough\n")
    assert (server.code(second), server.code(authorization=basic("bob", "long enough"))) == (200, 200)
    (ada, bob) = json.loads(accounts(server, "list", "--json"))["accounts"]
    assert (ada["name"], len(ada["tokens"]), ada["has_password"]) == ("ada", 2, False)
    assert (bob["name"], bob["tokens"], bob["has_password"]) == ("bob", [], True)

    by_token, by_password = sign_in(server, "ada", first), sign_in(server, "bob", "long enough")
    assert (server.code(cookie=by_token), server.code(cookie=by_password)) == (200, 200)
    assert accounts(server, "revoke", "ada", "--token", ada["tokens"][0][0]) == "1 revoked"
    assert (server.code(first), server.code(cookie=by_token), server.code(second)) == (401, 401, 200)
    accounts(server, "password", "bob", given="another one\nanother one\n")
    assert (server.code(authorization=basic("bob", "long enough")), server.code(cookie=by_password)) == (401, 401)
    assert server.code(authorization=basic("bob", "another one")) == 200
    accounts(server, "revoke", "ada")
    assert (server.code(second), server.code()) == (401, 401)  # Closed still: the account is there.
    accounts(server, "delete", "ada")
    assert "open again" in accounts(server, "delete", "bob")
    assert server.code() == 200


@pytest.mark.slow
def test_the_environments_token_counts_while_it_is_set(serve: StartProcess) -> None:
    server = serve({"GOUACHE_TOKEN": TOKEN})
    assert (server.code(TOKEN), server.code()) == (200, 401)
    cookie = sign_in(server, "", TOKEN)
    assert server.code(cookie=cookie) == 200
    stored = b"".join(path.read_bytes() for path in server.folder.iterdir() if path.is_file())
    assert TOKEN.encode() not in stored
    changed = serve({"GOUACHE_TOKEN": TOKEN[::-1]})
    assert (changed.code(TOKEN[::-1]), changed.code(TOKEN), changed.code(cookie=cookie)) == (200, 401, 401)
    unset = serve()
    assert accounts(unset, "list") == ""
    kept = accounts(unset, "add", "ada")
    assert (unset.code(kept), unset.code(TOKEN), unset.code(cookie=cookie)) == (200, 401, 401)


@pytest.mark.slow
def test_log_out_ends_the_session_and_no_other(serve: StartProcess) -> None:
    server = serve({"GOUACHE_TOKEN": TOKEN})
    one, other = sign_in(server, "", TOKEN), sign_in(server, "", TOKEN)
    assert httpx.get(f"{server.url}/logout", headers={"cookie": one}).status_code == 405
    elsewhere = {"cookie": one, "origin": "https://evil.example"}
    assert httpx.post(f"{server.url}/logout", headers=elsewhere).status_code == 403
    assert server.code(cookie=one) == 200
    left = httpx.post(f"{server.url}/logout", headers={"cookie": one})
    assert (left.status_code, left.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in left.headers["set-cookie"]
    assert (server.code(cookie=one), server.code(cookie=other), server.code(TOKEN)) == (401, 200, 200)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["revoke", "log-out"])
def test_what_is_read_while_a_job_paints_ends_with_the_right_to_read_it(serve: StartProcess, how: str) -> None:
    server = serve(workers=1)
    token = accounts(server, "add", "ada")
    cookie = sign_in(server, "ada", token)
    who = {"authorization": f"Bearer {token}"} if how == "revoke" else {"cookie": cookie}
    body = {"request": {"prompt": "x", "num_inference_steps": 100, "count": 32, "width": 64, "height": 64}}
    with httpx.Client(base_url=server.url, headers=who, timeout=120) as client:
        job = client.post("/v1/jobs", json=body).json()["id"]
        blocking: list[httpx.Response] = []
        asked = {"prompt": "y", "steps": 1, "width": 64, "height": 64}
        waits = threading.Thread(
            target=lambda: blocking.append(
                httpx.post(f"{server.url}/sdapi/v1/txt2img", json=asked, headers=who, timeout=300)
            )
        )
        waits.start()
        with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            time.sleep(1.1)  # Answers are looked at once a second.
            if how == "revoke":
                accounts(server, "revoke", "ada")
            else:
                client.post("/logout")
            ended = [line for line in lines if "progress" in line]
        assert client.get(f"/v1/jobs/{job}").status_code == 401
    fresh = accounts(server, "add", "ada")
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {fresh}"}, timeout=60) as client:
        view = client.get(f"/v1/jobs/{job}").json()
        assert view["state"] == "running", "the stream went on to the end of its job"
        assert len(ended) < 100 * 32
        client.post(f"/v1/jobs/{job}/cancel")
        waits.join(120)
    assert blocking[0].status_code == 401
    assert "images" not in blocking[0].json()


@pytest.mark.slow
def test_what_proxies_say_counts_from_the_named_ones_only(serve: StartProcess) -> None:
    told = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    cookies = {}
    for name, settings in (
        ("none", {}),
        ("other", {"behind_proxy": ["10.0.0.0/8"]}),
        ("own", {"behind_proxy": ["127.0.0.1"]}),
    ):
        server = serve({"GOUACHE_TOKEN": TOKEN}, **settings)
        answer = httpx.post(f"{server.url}/login", data={"password": TOKEN}, headers=told)
        cookies[name] = answer.headers["set-cookie"]
        wrong = httpx.get(f"{server.url}/v1/jobs", headers={**told, "authorization": "Bearer wrong"})
        refused = server.logged("log-in failed")
        assert refused[-1]["request"] == wrong.headers["x-request-id"]
        assert refused[-1]["address"] == ("203.0.113.9" if name == "own" else "127.0.0.1")
        assert [line["status"] for line in server.logged("request refused")][-1] == 401
    assert "Secure" in cookies["own"]
    assert "Secure" not in cookies["none"] + cookies["other"]


@pytest.mark.slow
def test_each_address_behind_a_proxy_has_its_own_tries(serve: StartProcess) -> None:
    server = serve({"GOUACHE_TOKEN": TOKEN}, behind_proxy=["127.0.0.1"], limits={"failed_logins_per_minute": 2})
    spoofed = ["203.0.113.1, 203.0.113.9"] * 3  # A client's own header stands before what the proxy adds.
    codes = [server.code("wrong-wrong-wrong-wrong", **{"x-forwarded-for": one}) for one in [*spoofed, "203.0.113.7"]]
    assert codes == [401, 401, 429, 401]


@pytest.mark.slow
def test_many_guesses_at_the_same_moment_count_each(serve: StartProcess) -> None:
    server = serve({"GOUACHE_TOKEN": TOKEN}, limits={"failed_logins_per_minute": 3})
    accounts(server, "add", "bob", "--password", given="long enough\nlong enough\n")
    codes: list[int] = []
    hands = [
        threading.Thread(target=lambda k=k: codes.append(server.code(authorization=basic("bob", f"guess {k}"))))
        for k in range(12)
    ]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert sorted(codes) == [401] * 3 + [429] * 9


BAD_NAMES = ["", " ", "a\nb", "a\rb", "a/b", "..", "a:b", "a b", "x" * 300, "\u0430dmin", "Admin", "AD\u039cIN",
             "\uff41da", "a\0b", "ada\u200b", "\u202eada", "-a", "<b>", "local1\t", "\u0430\u0501\u0430"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_fool_people_or_programs_are_refused(studio: Studio, name: str) -> None:
    studio.accounts.new_token("ada")
    for make in (studio.accounts.new_token, lambda one: studio.accounts.set_password(one, "long enough")):
        with pytest.raises(InvalidInput, match="user"):
            make(name)
    assert [one.name for one in studio.accounts.listing()] == ["ada"]


@pytest.mark.parametrize("name", ["ada2", "小明", "Мария", "j.smith@example.org", "a", "x" * 64, "Ελένη", "josé"])
def test_ordinary_names_are_names(studio: Studio, name: str) -> None:
    assert studio.accounts.by_token(studio.accounts.new_token(name)).owner == name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 600, "has a blank in its middle", "newline-at-its-end\n", "\u4ee4" * 20]
)
def test_tokens_that_are_no_secrets_are_refused(studio: Studio, token: str) -> None:
    for accept in (studio.accounts.add_token, studio.accounts.lend_token):
        with pytest.raises(InvalidInput, match="token"):
            accept("ada", token)


def test_each_request_sees_what_another_process_changed(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client()
    folder = ["--data", str(tmp_path / "data0")]

    def run(*arguments: str, given: str = "") -> str:
        done = CliRunner().invoke(app, [*arguments, *folder], input=given)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def code(authorization: str = "", cookie: str = "") -> int:
        given = {"authorization": authorization, "cookie": f"gouache_session={cookie}"}
        client.cookies.clear()
        return client.get("/v1/jobs", headers={name: value for name, value in given.items() if value}).status_code

    assert code() == 200
    token = run("add", "ada", "--days", "1")
    assert (code(), code(f"Bearer {token}"), code(basic("ada", token))) == (401, 200, 200)
    run("add", "bob", "--password", given="long enough\nlong enough\n")
    client.post("/login", data={"name": "bob", "password": "long enough"}, follow_redirects=False)
    session = client.cookies["gouache_session"]
    assert (code(basic("bob", "long enough")), code(cookie=session)) == (200, 200)
    run("password", "bob", given="another one\nanother one\n")
    assert (code(basic("bob", "long enough")), code(basic("bob", "another one")), code(cookie=session)) == (
        401,
        200,
        401,
    )
    shown = run("list")
    assert all(part in shown for part in ("ada", "bob", "expires", "no password"))
    assert token not in shown
    assert run("revoke", "ada") == "1 revoked"
    assert code(f"Bearer {token}") == 401
    client.post("/login", data={"name": "bob", "password": "another one"}, follow_redirects=False)
    session = client.cookies["gouache_session"]
    client.post("/logout", headers={"cookie": f"gouache_session={session}"}, follow_redirects=False)
    assert code(cookie=session) == 401
    body = {"request": {"prompt": "a red apple"}}
    ada, bob = f"Bearer {run('add', 'ada')}", basic("bob", "another one")
    jobs = [client.post("/v1/jobs", json=body, headers={"authorization": who}).json()["id"] for who in (ada, bob, ada)]
    assert run("delete", "ada") == "deleted; 2 of its jobs cancelled"
    (left,) = client.get("/v1/jobs", headers={"authorization": bob}).json()["jobs"]
    assert (left["id"], left["state"]) == (jobs[1], "queued")
    run("delete", "bob")
    assert code() == 200


def test_a_token_and_a_session_end_with_their_time(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    known = studio.accounts
    token, now = known.new_token("ada", days=2), time.time()
    found = known.by_token(token)
    assert found is not None
    session = known.open_session(found)
    assert known.by_session(session) == found
    monkeypatch.setattr("gouache.serve.store.accounts.time.time", lambda: now + 3 * 24 * 3600)
    assert (known.by_token(token), known.by_session(session), known.holds(found)) == (None, None, False)
    for days in (0, -1, float("nan"), 1e9):
        with pytest.raises(InvalidInput, match="days"):
            known.new_token("ada", days=days)


def test_a_short_name_of_a_token_revokes_one_and_no_other(studio: Studio) -> None:
    known = studio.accounts
    ada, bob = known.new_token("ada"), known.new_token("bob")
    shorts = {one.name: one.tokens[0][0] for one in known.listing()}
    for owner, short in (("ada", shorts["bob"]), ("ada", ""), ("ada", shorts["ada"][:3]), ("ada", "%")):
        with pytest.raises(NotFound):
            known.revoke_tokens(owner, short)
    assert known.revoke_tokens("ada", shorts["ada"]) == 1
    assert (known.by_token(ada), known.by_token(bob) is None) == (None, False)


def test_both_kinds_of_store_keep_accounts(store_url: str) -> None:
    from gouache.serve.store.database import Database

    database = Database(store_url)
    try:
        known = Accounts(database)
        assert not known.any()
        token = known.new_token("ada")
        known.set_password("bob", "long enough")
        found = known.by_token(token)
        assert found is not None
        session = known.open_session(found)
        assert known.by_session(session) == found
        assert known.by_password("bob\0", "long enough") is None
        assert known.by_password("bob", "long enough") is not None
        assert [one.sessions for one in known.listing()] == [1, 0]
        known.close_session(session)
        assert known.by_session(session) is None
        known.revoke("ada")
        assert (known.by_token(token), known.any()) == (None, True)
    finally:
        database.close()
