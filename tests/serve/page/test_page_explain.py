"""The Explain view in a real Chromium: a prompt, or a picture of the gallery, and what each part did for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.serve.conftest import CHROMIUM
from tests.serve.page.test_page_whole import CONTRAST, open_view, painted, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(300),
]


def explained(page: Page, prompt: str) -> None:
    """Have a prompt explained and wait for it."""
    page.fill("#explain-prompt", prompt)
    page.fill("#explain-steps", "3")
    page.click("#explain-go")
    page.locator("#explained").wait_for()


def test_a_prompt_is_explained_word_by_word_and_step_by_step(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "explain")
    explained(page, "a red fox")
    assert page.locator("[data-word]").all_inner_texts() == ["a", "red", "fox"]
    page.hover("[data-word='1']")
    red = page.get_attribute("#explain-heat", "src")
    page.mouse.move(0, 0)
    page.locator("#explain-heat").wait_for(state="detached")
    page.click("[data-word='2']")
    page.mouse.move(0, 0)
    assert page.get_attribute("#explain-heat", "src") not in (None, red)
    page.locator("#explain-step").fill("1")
    assert page.inner_text("#explain-told").startswith("Step 1 of 3")
    # The address is enough to come back.
    page.reload()
    page.locator("#explained").wait_for()
    assert faults == []


def test_the_file_that_it_gives_opens_without_the_studio(browser: Browser, studio_page: Server, tmp_path: Path) -> None:
    page, faults = open_view(browser, studio_page, "explain", locale="zh-CN")
    explained(page, "a red fox")
    with page.expect_download() as download:
        page.click("#explain-download")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    alone = page.context.new_page()
    problems: list[str] = []
    alone.on("pageerror", lambda error: problems.append(str(error)))
    alone.goto(file.as_uri())
    assert alone.get_attribute("html", "lang") == "zh-CN"
    alone.click(".said button >> nth=2")
    assert alone.is_visible(".heat")
    alone.locator("input[type=range]").fill("1")
    assert alone.inner_text(".steps label").startswith("第几步 1:")
    assert problems == []
    assert faults == []


@pytest.mark.slow
def test_a_picture_of_the_gallery_is_explained(browser: Browser, studio_page: Server) -> None:
    picture = painted(studio_page)
    page, faults = open_view(browser, studio_page, "gallery")
    page.goto(f"{studio_page.url}/gallery/{picture}")
    page.click("#explain")
    page.locator("#explained").wait_for()
    assert "/explain/" in page.url
    assert page.locator("[data-word]").count() == 6
    page.click("#nav-queue")
    page.locator(".queue-open[href^='/explain/']").click()
    page.locator("#explained").wait_for()
    assert faults == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_what_cannot_be_explained_is_said_in_the_pages_words(
    browser: Browser, studio_page: Server, locale: str
) -> None:
    page, _ = open_view(browser, studio_page, "explain", locale=locale)
    page.fill("#explain-prompt", "a")
    page.fill("#explain-steps", "999")
    page.click("#explain-go")
    told = page.locator("#explain-error").inner_text()
    assert ("步数" in told) if locale == "zh-CN" else ("Steps" in told or "steps" in told)
    page.goto(f"{studio_page.url}/explain/0123")
    page.locator(".empty h2").wait_for()
    assert page.locator(".empty h2").inner_text() == (
        "这份解读已不存在" if locale == "zh-CN" else "This explanation is no longer here"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_an_explanation_is_accessible_and_fits_its_window(browser: Browser, studio_page: Server, dark: bool) -> None:
    for width, locale in ((1280, "en-US"), (390, "zh-CN")):
        page, faults = open_view(browser, studio_page, "explain", locale=locale, width=width, dark=dark)
        explained(page, "a red fox next to a blue cup")
        page.click("[data-word='2']")
        page.wait_for_timeout(500)
        assert violations(page) == []
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert faults == []
        page.context.close()
