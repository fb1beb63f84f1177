"""The Train view in a real Chromium, as somebody goes who has some pictures and leaves everything as preset."""

from __future__ import annotations

import io
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw
from tests.serve.conftest import CHROMIUM
from tests.serve.page.test_page_whole import open_view
from tests.training.test_from_packed import small_model

from gouache.checkpoints.save import write_model
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server, StartServer

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(1800),
]


def drawn(count: int, side: int) -> list[dict[str, str | bytes]]:
    """Pictures of one look with their captions, as files that are dropped."""
    files: list[dict[str, str | bytes]] = []
    for i in range(count):
        picture = Image.new("RGB", (side, side), (18, 44, 110))
        draw, edge = ImageDraw.Draw(picture), side // 6 + i % 5
        shape = ("square", "circle", "triangle")[i % 3]
        box = (edge, edge, side - edge, side - edge)
        if shape == "square":
            draw.rectangle(box, outline="white", width=max(2, side // 24))
        elif shape == "circle":
            draw.ellipse(box, outline="white", width=max(2, side // 24))
        else:
            draw.polygon([(side // 2, edge), (edge, side - edge), (side - edge, side - edge)], outline="white", width=2)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append({"name": f"{i:02}.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
        files.append(
            {"name": f"{i:02}.txt", "mimeType": "text/plain", "buffer": f"a {shape} in blueprint style".encode()}
        )
    return files


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("GOUACHE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"train-{name}.png"), full_page=True)


def drop(page: Page, files: list[dict[str, str | bytes]]) -> None:
    page.locator("#train-drop input[type=file]").set_input_files(files)  # type: ignore[arg-type]


def train_with_presets(page: Page, count: int, side: int, minutes: str, *, whole: bool = False) -> None:
    """Drop pictures, set the time alone (and that a whole model is trained), start, and wait for the end."""
    drop(page, drawn(count, side))
    page.get_by_text(f"{count} pictures · all captioned").wait_for()
    if whole:
        page.locator("[name=train-stage][value=denoiser]").check()
    assert page.locator(".train-card").count() == count
    page.locator("#train-minutes").fill(minutes)
    page.locator("#train-will").wait_for()
    shot(page, "plan")
    page.locator("#train-start").click()
    page.locator("#train-phase").wait_for()
    until = time.monotonic() + 1500
    while page.locator("#train-phase").get_attribute("data-phase") not in ("done", "failed"):
        assert time.monotonic() < until, page.locator(".train-run").inner_text()
        page.wait_for_timeout(300)
    shot(page, "done")
    assert page.locator("#train-phase").get_attribute("data-phase") == "done", page.locator(".train-run").inner_text()


def check_result(page: Page, server: Server, name: str, side: int) -> None:
    """Samples were shown; the model is chosen in the Paint view, and paints."""
    sheet = page.locator(".train-sheet img")
    assert sheet.evaluate("image => image.complete && image.naturalWidth > 0")
    page.locator("#train-paint").click()
    page.locator("#nav-paint[aria-current=page]").wait_for()
    assert page.evaluate("import('/page/x/app/state.js').then(() => true)")
    until = time.monotonic() + 30
    kept: object = None
    while kept != name and time.monotonic() < until:
        page.wait_for_timeout(200)
        kept = page.evaluate("fetch('/v1/page').then((found) => found.json()).then((page) => page.state.paint?.model)")
    assert kept == name
    path = server.studio.settings.data / "models" / name
    (painted,) = Pipeline.load(path).paint(
        Request(prompt="a square in blueprint style", seed=1, width=side, height=side)
    )
    assert painted.image.size == (side, side)
    assert len(set(painted.image.convert("RGB").getdata())) > 10


def test_a_training_from_the_page_ends_with_a_model_that_paints(browser: Browser, start_server: StartServer) -> None:
    """A small model with drafts, as the shipped one; the slow test below takes that one."""
    server = start_server(page=True, workers=0, prepare=lambda studio: _small_in(studio.settings.data / "models"))
    page, faults = open_view(browser, server, "train")
    page.locator("#train-model").wait_for()
    page.locator("#train-model").select_option("small")
    train_with_presets(page, 6, 32, "0.1", whole=True)
    check_result(page, server, "my pictures", 32)
    assert not faults


@pytest.mark.slow
def test_the_shipped_model_learns_24_pictures_with_everything_preset(
    browser: Browser, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    server = start_server(page=True, workers=0)
    page, faults = open_view(browser, server, "train")
    train_with_presets(page, 24, 128, "0.5", whole=True)
    check_result(page, server, "my pictures", 128)
    assert not faults


@pytest.mark.slow
def test_a_lora_is_preset_and_one_click_puts_it_into_the_prompt(
    browser: Browser, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    server = start_server(page=True, workers=0)
    page, faults = open_view(browser, server, "train")
    train_with_presets(page, 5, 128, "0.05")
    page.get_by_text("it is used where a prompt says <lora:my pictures:1>").wait_for()
    assert (tmp_path / "models" / "lora" / "my pictures.safetensors").is_file()
    names = page.evaluate("fetch('/v1/models/adapters').then((found) => found.json())")
    assert "my pictures" in str(names)
    page.locator("#train-paint").click()
    page.locator("#nav-paint[aria-current=page]").wait_for()
    until, kept = time.monotonic() + 30, ""
    while "<lora:my pictures:1>" not in kept:
        assert time.monotonic() < until, kept
        page.wait_for_timeout(200)
        kept = str(page.evaluate("fetch('/v1/page').then((found) => found.json()).then((page) => page.state.paint)"))
    assert not faults


def test_captions_are_written_and_pictures_removed_on_the_page(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "train")
    drop(page, [one for one in drawn(3, 32) if str(one["name"]).endswith(".png")])
    page.get_by_text("3 have no caption and are left out").wait_for()
    page.get_by_text("None of these pictures has a caption.").wait_for()
    assert page.locator("#train-start").is_disabled()
    first = page.get_by_label("Caption of 00.png")
    first.fill("a square <b>& more</b>")
    first.press("Control+Enter")
    page.get_by_text("2 have no caption and are left out").wait_for()
    page.locator("#train-will").wait_for()
    page.get_by_label("Remove 01.png").click()
    page.get_by_text("one has no caption and is left out").wait_for()
    sets = studio_page.studio.training.sets
    assert [(one.file, one.caption) for one in sets.pictures("my pictures")] == [
        ("00.png", "a square <b>& more</b>"),
        ("02.png", ""),
    ]
    drop(page, [{"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}])
    page.get_by_text("One file could not be used:").wait_for()
    page.reload()
    assert page.get_by_label("Caption of 00.png").input_value() == "a square <b>& more</b>"
    page.get_by_role("link", name="my pictures").click()
    page.get_by_role("button", name="Delete set").click()
    # What the page asks for while the set goes may be gone already, so that faults are judged here.
    assert not [fault for fault in faults if "422" not in fault]
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("None yet.").nth(1).wait_for()  # the runs and the sets
    assert sets.listing() == []


@pytest.mark.slow
@pytest.mark.usefixtures("stopped_run")
def test_a_run_shows_its_curve_and_its_samples_over_time_and_is_deleted(browser: Browser, studio_page: Server) -> None:
    page, faults = open_view(browser, studio_page, "train")
    page.get_by_role("link", name="cats").click()
    page.locator(".train-chart .mean").wait_for()
    assert "Loss from 1" in str(page.locator(".train-chart").get_attribute("aria-label"))
    slider = page.locator("#train-sheet-slider")
    assert page.locator(".train-sheet img").get_attribute("alt") == "Painting, 6,400 pictures shown"
    slider.focus()
    slider.press("ArrowLeft")
    assert page.locator(".train-sheet img").get_attribute("alt") == "Painting, 3,200 pictures shown"
    shot(page, "run")
    page.get_by_text("The same on the command line").click()
    assert "gouache train denoiser" in page.locator(".train-command").inner_text()
    assert str(studio_page.studio.settings.data) not in page.content()
    page.go_back()
    page.locator("#train-drop").wait_for()
    page.go_forward()
    page.locator("#train-delete").click()
    page.get_by_role("button", name="Delete", exact=True).last.click()
    page.locator("#train-drop").wait_for()
    assert studio_page.studio.training.listing() == []
    assert not faults


@pytest.mark.slow
def test_who_is_no_administrator_reads_why(browser: Browser, start_server: StartServer) -> None:
    token = "a-token-that-is-long-enough"
    server = start_server(page=True, workers=0, prepare=lambda studio: studio.accounts.add_token("ada", token))
    context = browser.new_context(locale="zh-CN", extra_http_headers={"Authorization": f"Bearer {token}"})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/train")
    page.get_by_text("只有管理员可以训练模型").wait_for()
    assert not [url for url in asked if "/v1/training" in url]


def _small_in(models: Path) -> None:
    models.mkdir(parents=True)
    model = small_model()
    defaults = model.defaults.model_copy(update={"width": 32, "height": 32})
    write_model(replace(model, defaults=defaults), models / "small", "gouache")
