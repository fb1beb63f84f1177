"""Signing in and out with a real Chromium, as a person does: the form, a wrong password, the right one, the page behind
it, and the way out.

Other clients than browsers send no `Origin`, so only a browser shows what a page's policies make of it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.serve.http.test_accounts import Process, accounts

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import StartServer

    from gouache.serve.studio import Studio

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("chromium") or shutil.which("chromium-browser")),
        reason="no Chromium here; on Debian: apt-get install chromium",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


TOKEN = "a-token-of-the-environment"


def sign_in(page: Page, name: str, secret: str, expected: int) -> None:
    """Fill the form and send it."""
    page.locator("input[name=name]").fill(name)
    page.locator("input[name=password]").fill(secret)
    with page.expect_response(lambda response: response.url.endswith("/login")) as answered:
        page.get_by_role("button").click()
    assert answered.value.status == expected


def goes_in_and_out(page: Page, address: str, name: str, secret: str, shown: str) -> None:
    """A wrong password is told, the right one shows who is signed in, and after signing out nothing is open."""
    page.goto(address)
    page.wait_for_url("**/login")
    sign_in(page, name, "wrong password", 401)
    assert "Wrong name, password or token" in page.get_by_role("alert").inner_text()
    assert not [one for one in page.context.cookies() if one["name"] == "gouache_session"]
    sign_in(page, name, secret, 303)
    page.locator("#nav-paint").wait_for()
    assert page.url.rstrip("/") == address
    page.locator("#user").wait_for()
    assert page.locator("#user").inner_text() == shown
    (cookie,) = (one for one in page.context.cookies() if one["name"] == "gouache_session")
    page.locator("#sign-out").click()
    page.wait_for_url("**/login")
    page.goto(address)
    page.wait_for_url("**/login")
    # The value that the browser had opens nothing for whoever kept it.
    kept = {"cookie": f"gouache_session={cookie['value']}"}
    assert httpx.get(f"{address}/v1/jobs", headers=kept, timeout=60).status_code == 401


@pytest.mark.every_time("password")
@pytest.mark.parametrize("kind", ["password", "token", "environment"])
def test_a_person_signs_in_and_out(
    browser: Browser, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    secret = {"password": "long enough", "environment": TOKEN}

    def prepare(studio: Studio) -> None:
        if kind == "environment":
            studio.accounts.lend_token("admin", TOKEN)
        else:
            studio.accounts.set_password("ada", secret["password"])
            secret.update(token=studio.accounts.new_token("ada"))

    server = start_server(page=True, workers=0, prepare=prepare)
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    name, shown = ("", "admin") if kind == "environment" else ("ada", "ada")
    goes_in_and_out(page, server.url, name, secret[kind], shown)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["environment", "account"])
def test_a_person_signs_in_and_out_of_a_process(browser: Browser, tmp_path: Path, kind: str) -> None:
    given = {"GOUACHE_OFFLINE": "1"} | ({"GOUACHE_TOKEN": TOKEN} if kind == "environment" else {})
    server = Process(tmp_path / "data", given, page=True, workers=1)
    try:
        if kind == "account":
            accounts(server, "add", "ada", "--password", given="long enough\nlong enough\n")
        page = browser.new_context().new_page()
        page.set_default_timeout(90_000)
        who = ("", TOKEN, "admin") if kind == "environment" else ("ada", "long enough", "ada")
        goes_in_and_out(page, server.url, *who)
        # Signed out in another tab, or revoked: the page that is still open leads to the form.
        sign_in(page, *who[:2], 303)
        page.locator("#user").wait_for()
        other = page.context.new_page()
        other.goto(server.url)
        other.locator("#sign-out").click()
        other.wait_for_url("**/login")
        page.wait_for_url("**/login")
    finally:
        server.stop()


def test_an_open_studio_shows_nobody_and_no_way_out(
    browser: Browser, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.goto(start_server(page=True, workers=0).url)
    page.locator("#nav-paint").wait_for()
    assert page.locator("#user").count() == page.locator("#sign-out").count() == 0
