"""Who is let in, and for how long."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from gouache.errors import GouacheError
from gouache.serve.http.visitors import network_of
from gouache.serve.settings import Limits
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient, StartServer

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


def test_wrong_tries_of_others_keep_no_right_token_waiting(make_client: MakeClient) -> None:
    tokens: list[str] = []
    client = make_client(
        lambda studio: tokens.append(studio.accounts.new_token("ada")), limits=Limits(failed_logins_per_minute=1)
    )
    codes = [client.get("/v1/jobs", headers={"authorization": f"Bearer {k}"}).status_code for k in range(3)]
    assert codes == [401, 429, 429]
    basic = "Basic " + base64.b64encode(f"ada:{tokens[0]}".encode()).decode()
    for right in (f"Bearer {tokens[0]}", basic):
        assert client.get("/v1/jobs", headers={"authorization": right}).status_code == 200


def test_whoever_has_a_network_guesses_from_one_place() -> None:
    assert network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("?") == "?"


def test_a_session_ends_with_the_password_and_with_the_account(make_client: MakeClient) -> None:
    found: list[Studio] = []

    def prepare(studio: Studio) -> None:
        found.append(studio)
        studio.accounts.set_password("ada", "long enough")
        studio.accounts.set_password("bob", "long enough")

    client = make_client(prepare)

    def sign_in(name: str, password: str) -> dict[str, str]:
        client.cookies.clear()
        client.post("/login", data={"name": name, "password": password}, follow_redirects=False)
        value = client.cookies["gouache_session"]
        client.cookies.clear()
        return {"cookie": f"gouache_session={value}"}

    ada, bob = sign_in("ada", "long enough"), sign_in("bob", "long enough")
    found[0].accounts.set_password("ada", "another one")
    assert client.get("/v1/jobs", headers=ada).status_code == 401
    assert client.get("/v1/jobs", headers=bob).status_code == 200
    ada = sign_in("ada", "another one")
    assert client.get("/v1/jobs", headers=ada).status_code == 200
    found[0].accounts.revoke("ada")
    assert client.get("/v1/jobs", headers=ada).status_code == 401


@pytest.mark.slow
def test_a_token_is_revoked_by_the_command_while_the_server_runs(start_server: StartServer) -> None:
    tokens: dict[str, str] = {}
    server = start_server(
        prepare=lambda studio: tokens.update({name: studio.accounts.new_token(name) for name in ("ada", "bob")})
    )

    def code(name: str) -> int:
        headers = {"authorization": f"Bearer {tokens[name]}"}
        return httpx.get(f"{server.url}/v1/jobs", headers=headers, timeout=60).status_code

    def revoke(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gouache", "serve", "--data", str(server.studio.settings.data)]
        return subprocess.run([*command, "--revoke-token", name], capture_output=True, text=True)

    assert [code("ada"), code("bob")] == [200, 200]
    assert revoke("ada").stdout.strip() == "1 revoked"
    assert [code("ada"), code("bob")] == [401, 200]
    with pytest.raises(GouacheError, match="user 'ada', who has none"):
        server.studio.accounts.revoke_tokens("ada")
