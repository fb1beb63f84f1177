"""The page in a real Chromium: paint, edit, search, restore, reload, cancel, two tabs, and a script in a prompt."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server, StartServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
SECONDS = 30_000
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


@pytest.fixture
def studio_page(start_server: StartServer) -> Server:
    return start_server(page=True)


@pytest.fixture
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def open_page(browser: Browser, server: Server, *, locale: str = "en-US", width: int = 1280) -> tuple[Page, list[str]]:
    """A fresh tab on the page, and the list of its errors and of requests to other hosts."""
    page = browser.new_context(viewport={"width": width, "height": 900}, locale=locale).new_page()
    page.set_default_timeout(SECONDS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if _is_ours(request.url, server) else faults.append(request.url))
    page.goto(server.url)
    page.locator("#prompt textarea").wait_for()
    return page, faults


def _is_ours(url: str, server: Server) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def wait_for_status(page: Page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def keep(page: Page, name: str) -> None:
    """Store a screenshot where a run asks for artefacts."""
    folder = os.environ.get("GOUACHE_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def tab(page: Page, number: int) -> None:
    page.locator("#tabs button[role=tab]").nth(number).click()


def long_job(server: Server) -> str:
    from gouache.pipeline.request import Request

    request = Request(prompt="a long one", seed=1, num_inference_steps=150, width=256, height=256)
    return server.studio.submit(request, owner="local", source="page")[0].id


@pytest.mark.timeout(240)
def test_paint_search_restore_reload_cancel_and_a_second_tab(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page)
    keep(page, "empty")
    page.fill("#prompt textarea", "<img src=x onerror=alert(1)> a red fox")
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "Done")
    page.locator("#paint-results img").first.wait_for()
    keep(page, "paint")
    page.click("#settings button")
    keep(page, "settings")

    tab(page, 2)
    page.fill("#search textarea, #search input", "FOX")
    page.keyboard.press("Enter")
    page.locator("#pictures button.thumbnail-item").first.click()
    page.locator("#chosen img").wait_for()
    keep(page, "gallery")
    page.click("#delete")
    page.locator("#pictures button.thumbnail-item").wait_for(state="detached")
    page.click("#undo")
    page.locator("#pictures button.thumbnail-item").first.click()
    page.locator("#chosen img").wait_for()
    page.click("#use-settings")
    page.locator("#prompt textarea").wait_for()
    assert page.input_value("#prompt textarea") == "<img src=x onerror=alert(1)> a red fox"
    assert int(page.input_value("#seed input")) >= 0

    job = long_job(studio_page)
    wait_for_status(page, "Painting")
    page.reload()
    wait_for_status(page, "Painting")
    second, second_faults = open_page(browser, studio_page, locale="zh-CN", width=390)
    wait_for_status(second, "正在绘画")
    second.locator("#paint-preview img").wait_for()
    keep(second, "phone-chinese")
    assert second.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Escape")
    wait_for_status(page, "Cancelled")
    wait_for_status(second, "已取消")
    assert studio_page.studio.jobs.get(job).state == "cancelled"
    assert faults == second_faults == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_edit_with_a_mask(browser: Browser, studio_page: Server, tmp_path: Path) -> None:
    page, faults = open_page(browser, studio_page)
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "start.png")
    tab(page, 1)
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1500)  # The canvas says nothing when its drawing program is ready.
    page.locator("#canvas input[type=file]").first.set_input_files(str(tmp_path / "start.png"))
    page.wait_for_timeout(1500)
    page.locator("#canvas button[aria-label*=rush], #canvas button[title*=rush]").first.click()
    box: Any = page.locator("#canvas canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.fill("#edit-prompt textarea", "a blue door")
    page.wait_for_timeout(500)
    page.click("#edit-button")
    page.locator("#edit-status", has_text="Nothing").wait_for(state="detached")
    job = studio_page.studio.jobs.listing(limit=1)[0]
    start = studio_page.studio.vault.attachment(job.parsed().init_image or "")
    assert Image.open(io.BytesIO(start)).size == (64, 64)
    assert studio_page.wait(job.id).complaint() is None
    page.locator("#edit-status", has_text="Done").wait_for()
    keep(page, "edit")
    request = job.parsed()
    assert request.prompt == "a blue door"
    assert request.init_image is not None
    assert request.mask is not None
    assert faults == []
