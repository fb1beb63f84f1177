"""Every view in a real Chromium: accessible in both themes and languages, as wide as its window, without a fault.

`GOUACHE_SCREENSHOTS=DIR python -m pytest tests/serve/page/test_page_whole.py -m "slow or not slow"` keeps pictures.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.serve.conftest import CHROMIUM

from gouache.serve.page.routes import VIEWS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server

CONTRAST = (Path(__file__).parent / "page_contrast.js").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(900),
]


def open_view(
    browser: Browser, server: Server, view: str, *, locale: str = "en-US", width: int = 1280, dark: bool = False
) -> tuple[Page, list[str]]:
    """A fresh tab on a view, and the list of its errors and of requests to other hosts."""
    scheme: Any = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith((server.url, "data:", "blob:")) else faults.append(request.url),
    )
    page.goto(f"{server.url}/{view}")
    page.locator(f"#nav-{view}[aria-current=page]").wait_for()
    page.locator("main .loading").wait_for(state="detached")
    return page, faults


def painted(server: Server, **fields: object) -> str:
    """A finished picture's id."""
    from gouache.pipeline.request import Request

    request = Request.from_dict({"prompt": "a red fox in the snow", "seed": 1, **fields}, where="test")
    job, _ = server.studio.submit(request, owner="local", source="page")
    assert server.wait(job.id).state == "done"
    return server.studio.pictures.ids_of_jobs([job.id])[job.id][0]


def violations(page: Page) -> list[str]:
    """What axe-core finds at WCAG's levels A and AA."""
    from axe_playwright_python.sync_playwright import Axe

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.every_time("paint-light", "gallery-dark")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible_and_fits_its_window(browser: Browser, studio_page: Server, view: str, dark: bool) -> None:
    painted(studio_page)
    for width, locale in ((1280, "en-US"), (390, "zh-CN")):
        page, faults = open_view(browser, studio_page, view, locale=locale, width=width, dark=dark)
        page.wait_for_timeout(600)
        folder = os.environ.get("GOUACHE_SCREENSHOTS")
        if folder:
            name = f"{view}-{width}-{locale[:2]}-{'dark' if dark else 'light'}.png"
            page.screenshot(path=str(Path(folder) / name), full_page=True)
        assert violations(page) == []
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert faults == []
        page.context.close()


def test_back_and_reload_stay_in_the_studio(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "paint")
    for view in ("gallery", "queue", "settings"):
        page.click(f"#nav-{view}")
        page.wait_for_url(f"**/{view}")
    page.go_back()
    page.wait_for_url("**/queue")
    page.reload()
    page.locator("#nav-queue[aria-current=page]").wait_for()
    page.go_back()
    page.wait_for_url("**/gallery")
    assert faults == []


def test_a_file_dropped_beside_a_box_does_not_replace_the_page(browser: Browser, studio_page: Server) -> None:
    page, _ = open_view(browser, studio_page, "queue")
    prevented = page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["x"], "x.png", { type: "image/png" }));
          const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.querySelector("header").dispatchEvent(drop);
          return drop.defaultPrevented;
        }"""
    )
    assert prevented
