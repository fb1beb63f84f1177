"""The Models and Settings views and the empty studio in a real Chromium, on the ways that a user takes.

`GOUACHE_SCREENSHOTS=DIR` keeps pictures.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.loopback_hub import REPO, Hub, served_hub
from tests.serve.conftest import CHROMIUM
from tests.serve.page.test_page_whole import CONTRAST, open_view, painted, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server, StartServer

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a folder; the same in one file beside it."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    folder = tmp_path_factory.mktemp("tiny")
    write_model(bundle_to_write(untrained_bundle()), folder / "repository", "gouache")
    write_model(bundle_to_write(untrained_bundle()), folder / "mine.safetensors", "gouache")
    return folder / "repository"


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served_hub(repository, tmp_path, monkeypatch) as served:
        served.card = {"license": "creativeml-openrail-m"}
        yield served


@pytest.fixture
def online(hub: Hub, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A studio that may speak to the loopback hub."""
    assert hub.url
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "data" / "models"))
    return start_server(page=True, models=(tmp_path / "cache",))


def look(page: Page, name: str) -> None:
    """Keep a picture of the page, if pictures are wanted."""
    if folder := os.environ.get("GOUACHE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def card(name: str) -> str:
    return f'.models-card[data-model="{name}"]'


@pytest.mark.slow
def test_a_file_is_sent_used_and_paints(browser: Browser, studio_page: Server, repository: Path) -> None:
    page, faults = open_view(browser, studio_page, "models", width=390)
    page.set_input_files("#weights-drop input", repository.parent / "mine.safetensors")
    page.locator('.models-way[data-state="done"]').wait_for()
    assert "Model" in page.inner_text(".models-way")
    page.click(f'{card("mine.safetensors")} >> text="Use"')
    page.wait_for_url("**/paint")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_timeout(600)  # The request is kept after a moment.
    kept = studio_page.studio.options("local")
    assert json.loads(kept["page.paint"])["model"] == "mine.safetensors"
    painted(studio_page, model="mine.safetensors")
    page.click("#nav-models")
    page.locator(f"{card('mine.safetensors')} img").wait_for()
    page.click(f'{card("mine.safetensors")} >> text="Make default"')
    page.locator(".toast", has_text="default").wait_for()
    assert studio_page.studio.default_model("local") == "mine.safetensors"
    assert violations(page) == []
    assert faults == []


@pytest.mark.slow
def test_bad_files_are_told_in_the_pages_language(browser: Browser, studio_page: Server, tmp_path: Path) -> None:
    page, _ = open_view(browser, studio_page, "models", locale="zh-CN")
    (tmp_path / "login.safetensors").write_bytes(b"<!doctype html><title>log in</title>" + b" " * 5_000_000)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{ not a header !" + b"\0" * 1000)
    page.set_input_files("#weights-drop input", [tmp_path / "login.safetensors", tmp_path / "torn.safetensors"])
    page.locator('.models-way[data-state="failed"] >> nth=1').wait_for()
    told = page.locator(".models-way [role=alert]").all_inner_texts()
    assert "网页" in told[0]
    assert "损坏" in told[1]
    assert not re.search(r"[A-Za-z]{12,}|/tmp", " ".join(told))
    assert not [*(studio_page.studio.uploads.models / ".uploads").iterdir()]


@pytest.mark.slow
def test_a_model_is_pulled_after_its_licence_was_read_and_may_be_cancelled(
    browser: Browser, online: Server, hub: Hub
) -> None:
    hub.pause = 0.05
    page, faults = open_view(browser, online, "models")
    page.fill(".models-repo-name", REPO)
    page.press(".models-repo-name", "Enter")
    page.locator(".dialog", has_text="CreativeML OpenRAIL-M").wait_for()
    assert online.studio.pulls.listing() == [], "nothing is fetched before"
    assert violations(page) == []
    page.click("#pull-accept:not([disabled])")
    page.locator("#pull-state [role=progressbar]").wait_for()
    page.click("#pull-cancel")
    page.locator('#pull-state[data-state="cancelled"]').wait_for()
    hub.pause = 0.0
    page.click("#pull-state >> text=Try again")
    page.locator('#pull-state[data-state="done"]').wait_for()
    page.locator(card(REPO)).wait_for()
    page.fill(".models-repo-name", "painter/none")
    page.press(".models-repo-name", "Enter")
    page.locator(".dialog [role=alert]", has_text="no such repository").wait_for()
    assert page.is_disabled("#pull-accept")
    assert [fault for fault in faults if "424" not in fault] == []


@pytest.mark.slow
@pytest.mark.usefixtures("adapters")
def test_a_lora_goes_into_the_prompt_with_its_weight(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "models")
    row = page.locator('.models-adapter[data-adapter="ink"]')
    row.locator("input[type=range]").fill("0.6")
    row.locator("text=Add to prompt").click()
    row.locator("text=In the prompt").wait_for()
    row.locator("input[type=range]").fill("1.2")
    page.wait_for_timeout(600)
    assert json.loads(studio_page.studio.options("local")["page.paint"])["prompt"] == "<lora:ink:1.2>"
    row.locator("text=In the prompt").click()
    page.click("text=Embeddings")
    page.locator('.models-adapter[data-adapter="zog"] >> text=To negative prompt').click()
    page.wait_for_timeout(600)
    kept = json.loads(studio_page.studio.options("local")["page.paint"])
    assert (kept["prompt"], kept["negative_prompt"]) == ("", "zog")
    assert faults == []


@pytest.mark.slow
def test_a_folder_of_this_machine_is_added(browser: Browser, studio_page: Server, repository: Path) -> None:
    page, _ = open_view(browser, studio_page, "models")
    page.fill(".models-folder-path", "/nowhere/at/all")
    page.press(".models-folder-path", "Enter")
    page.locator("[role=alert]", has_text="no such folder").wait_for()
    page.fill(".models-folder-path", str(repository.parent))
    page.press(".models-folder-path", "Enter")
    page.locator(card("mine.safetensors")).wait_for()
    page.click(f'[aria-label="Stop using {repository.parent}"]')
    page.locator(card("mine.safetensors")).wait_for(state="detached")


def test_settings_act_at_once_and_outlast_a_reload(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "settings")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    look(page, "settings")
    page.click("text=Dark")
    assert page.evaluate(paper) != light
    assert page.evaluate(CONTRAST) == []
    page.uncheck("#settings-previews")
    with page.expect_navigation():
        page.click("text=简体中文")
    page.locator("h1", has_text="设置").wait_for()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not page.is_checked("#settings-previews")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    look(page, "settings-phone")
    assert violations(page) == []
    assert faults == []


def test_an_empty_studio_paints_an_example_at_a_click(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "paint")
    page.locator("#first-steps").wait_for()
    assert violations(page) == []
    look(page, "first-steps")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    look(page, "first-steps-phone")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.click('[data-example="rainbow"]')
    page.locator("#first-steps").wait_for(state="detached")
    page.locator(".paint-thumb[data-picture]").wait_for()
    (job,) = studio_page.studio.jobs.listing(owner="local")
    assert job.parsed().prompt == "a rainbow"
    assert studio_page.wait(job.id).state == "done"
    assert faults == []
