"""Five people do their day's work on the page, from the first click to the file on their disk.

A poster designer, a game artist, a teacher, somebody who furnishes a room, and somebody who comes from another tool.
Pictures are painted by the tiny model; the teacher needs transparency and has the shipped one.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.serve.conftest import CHROMIUM, Server, make_settings

from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(900),
]
A1111_TEXT = (
    "a lighthouse at dusk\nNegative prompt: blurry\n"
    "Steps: 6, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567, Size: 32x32, "
    "Denoising strength: 0.6, Clip skip: 2, Hires upscale: 2, Hires steps: 3, Hires upscaler: Latent, Version: v1.10.1"
)


def has_value(field: Locator, text: str) -> None:
    """Wait until a field has a text; by an expression it would need `eval`, which the page's policy forbids."""
    from playwright.sync_api import expect

    expect(field).to_have_value(text, timeout=120_000)


def opened(browser: Browser, server: Server, path: str = "/") -> Page:
    page = browser.new_context(
        viewport={"width": 1440, "height": 900}, locale="en-US", accept_downloads=True
    ).new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url + path)
    page.locator("main .loading").wait_for(state="detached")
    return page


def paint(page: Page, prompt: str) -> None:
    """Write, paint by keys, and wait until everything is painted."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    page.locator("#job-state").wait_for(state="attached")
    page.locator("#job-state").wait_for(state="detached")
    page.locator(".paint-thumb[data-picture]").first.wait_for()


def newest(server: Server, count: int = 1) -> list[Image.Image]:
    found = server.studio.pictures.search(limit=count)
    return [Image.open(server.studio.settings.data / "pictures" / one.file) for one in found]


def newest_request(server: Server) -> dict[str, Any]:
    return server.studio.jobs.listing(limit=1)[0].parsed().model_dump(mode="json")


def drop(page: Page, selector: str, data: bytes, name: str = "picture.png") -> None:
    transfer = page.evaluate_handle(
        """([bytes, name]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' })); return data; }""",
        [list(data), name],
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def png(image: Image.Image, text: str | None = None) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    if text:
        info.add_text("parameters", text)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_poster_in_portrait_with_a_second_pass_and_enlarged(browser: Browser, studio_page: Server) -> None:
    page = opened(browser, studio_page)
    page.get_by_role("button", name="Portrait").first.click()
    page.click("#more")
    page.locator(".paint-group summary", has_text="Second pass").click()
    page.locator("[data-path=hires] .form-switch input").check()
    paint(page, "a poster of a jazz concert")
    asked = newest_request(studio_page)
    [poster] = newest(studio_page)
    assert asked["hires"] is not None
    assert asked["height"] > asked["width"]
    assert poster.height > asked["height"]
    page.click("#do-upscale")
    page.locator("#job-state").wait_for(state="attached")
    page.locator("#job-state").wait_for(state="detached")
    [large] = newest(studio_page)
    assert large.width * large.height > poster.width * poster.height
    with page.expect_download() as download:
        page.click("#do-download")
    assert Image.open(download.value.path()).size == large.size


def test_variations_of_a_character_by_a_plot_and_the_seed_of_the_best(browser: Browser, studio_page: Server) -> None:
    page = opened(browser, studio_page)
    page.fill("#prompt", "a knight with a red cape")
    page.click("#grids")
    for letter, field, values in (("X", "seed", "5, 6, 7"), ("Y", "prompt_replace", "red, blue"), ("Z", "", "")):
        page.select_option(f"#axis-{letter}", field)
        if values:
            page.fill(f"#values-{letter}", values)
    page.locator("#grid-count", has_text="6").wait_for()
    page.click("#grid-start")
    page.wait_for_url("**/paint/grid/*")
    page.locator("main img").nth(5).wait_for()
    jobs = studio_page.studio.jobs.listing(limit=10)
    asked = {(job.parsed().seed, job.parsed().prompt) for job in jobs}
    assert asked == {(seed, f"a knight with a {colour} cape") for seed in (5, 6, 7) for colour in ("red", "blue")}
    with page.expect_download() as download:
        page.click("#grid-save")
    sheet = Image.open(download.value.path())
    assert sheet.width >= 3 * 32
    assert sheet.height >= 2 * 32
    page.reload()
    page.locator("main img").nth(5).wait_for()
    page.go_back()
    page.click("#reuse-seed")
    assert page.input_value("#seed") in {"5", "6", "7"}


def test_a_worksheet_of_six_transparent_stickers_as_a_zip(browser: Browser, tmp_path: Path) -> None:
    server = Server(Studio(make_settings(tmp_path / "data", page=True))).start()
    try:
        page = opened(browser, server)
        page.fill("#count", "6")
        paint(page, "a red apple")
        page.click("#nav-gallery")
        page.locator("[data-picture], [data-id]").nth(5).wait_for()
        page.keyboard.press("Control+a")
        page.locator("#selected", has_text="6").wait_for()
        with page.expect_download() as download:
            page.click("#bulk-zip")
        with zipfile.ZipFile(download.value.path()) as archive:
            names = archive.namelist()
            assert len(set(names)) == 6
            for name in names:
                sticker = Image.open(io.BytesIO(archive.read(name)))
                assert sticker.mode == "RGBA"
                alpha = np.asarray(sticker)[..., 3]
                assert alpha[0, 0] < 16
                assert alpha.max() > 240
    finally:
        server.stop()


def test_a_sofa_is_painted_into_the_photo_of_a_room(browser: Browser, studio_page: Server) -> None:
    room = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    page = opened(browser, studio_page, "/edit")
    file: Any = {"name": "room.png", "mimeType": "image/png", "buffer": png(Image.fromarray(room))}
    page.set_input_files("#edit-input", file)
    page.locator(".edit-layer").first.wait_for()
    page.locator("#edit-size").fill("8")
    box = page.locator("#edit-stage").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(middle[0] - 40, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 10, steps=8)
    page.mouse.up()
    page.locator("#edit-blur").fill("2")
    page.fill("#edit-prompt", "a green velvet sofa")
    page.fill("#edit-count", "2")
    page.click("#edit-generate")
    page.locator("#edit-accept").wait_for()
    page.locator("#edit-split").fill("50")
    page.click("#edit-accept")
    page.locator("#edit-accept").wait_for(state="detached")
    asked = newest_request(studio_page)
    assert asked["prompt"] == "a green velvet sofa"
    assert asked["mask"] is not None
    for painted in newest(studio_page, 2):
        pixels = np.asarray(painted.convert("RGB"))
        same = (pixels == room).all(axis=-1)
        assert same[:8].all()
        assert same[-8:].all()
        assert not same.all()


def test_a_picture_of_another_tool_is_dropped_and_painted_again(browser: Browser, studio_page: Server) -> None:
    page = opened(browser, studio_page)
    drop(page, ".paint", png(Image.new("RGB", (32, 32), "navy"), A1111_TEXT))
    has_value(page.locator("#prompt"), "a lighthouse at dusk")
    assert page.input_value("#seed") == "1234567"
    assert page.input_value("#steps") == "6"
    assert page.input_value("#guidance") == "6.5"
    assert page.input_value("#negative") == "blurry"
    assert page.eval_on_selector("#sampler", "menu => menu.value") == "dpmpp_2m"
    assert page.eval_on_selector("#schedule", "menu => menu.value") == "karras"
    page.click("#prompt")
    page.keyboard.press("Control+Enter")
    page.locator("#job-state").wait_for(state="attached")
    page.locator("#job-state").wait_for(state="detached")
    asked = newest_request(studio_page)
    assert (asked["sampler"], asked["schedule"], asked["clip_skip"]) == ("dpmpp_2m", "karras", 2)
    assert asked["hires"]["scale"] == 2
    assert asked["seed"] == 1234567
    assert newest(studio_page)[0].size == (64, 64)
