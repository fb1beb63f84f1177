"""Signing in with a real Chromium, as a person does: the form, a wrong password, the right one, and the page behind it.

Other clients than browsers send no `Origin`, so only a browser shows what a page's policies make of it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from tests.serve.conftest import StartServer

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("chromium") or shutil.which("chromium-browser")),
        reason="no Chromium here; on Debian: apt-get install chromium",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


@pytest.mark.every_time("password")
@pytest.mark.parametrize("kind", ["password", "token"])
def test_a_person_signs_in(
    browser: Browser, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    secret = {"password": "long enough"}
    server = start_server(
        page=True,
        workers=0,
        prepare=lambda studio: (
            studio.accounts.set_password("ada", secret["password"]),
            secret.update(token=studio.accounts.new_token("ada")),
        ),
    )
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url)
    page.wait_for_url("**/login")
    for attempt, expected in (("wrong password", 401), (secret[kind], 303)):
        page.locator("input[name=name]").fill("ada")
        page.locator("input[name=password]").fill(attempt)
        with page.expect_response(lambda response: response.url.endswith("/login")) as answered:
            page.get_by_role("button").click()
        assert answered.value.status == expected
    page.locator("#prompt textarea").wait_for()
    assert page.url.rstrip("/") == server.url
