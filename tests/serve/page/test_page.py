"""The page in a real Chromium: what a user does in every tab, in both languages, wide and on a phone.

`GOUACHE_SCREENSHOTS=DIR python -m pytest tests/serve/page/test_page.py -m "slow or not slow"` keeps pictures
of every state.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server

    from gouache.serve.queue.job import Job

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
SECONDS = 120_000
VISIBLE = (Path(__file__).parent / "page_texts.js").read_text(encoding="utf-8")
CONTRAST = (Path(__file__).parent / "page_contrast.js").read_text(encoding="utf-8")
CLOSED_BY_LEAVING = re.compile(r"^AbortError: signal is aborted|Connection errored out")
PAINT, EDIT, GALLERY, MODELS, TRAIN = range(5)
PROMPT = "<img src=x onerror=alert(1)> {{fox}} ${alert(2)} `red`"
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
    pytest.mark.timeout(900),
]


def open_page(
    browser: Browser, server: Server, *, locale: str = "en-US", width: int = 1280, dark: bool = False
) -> tuple[Page, list[str]]:
    """A fresh tab on the page, and the list of its errors and of requests to other hosts."""
    scheme: Any = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale, color_scheme=scheme)
    page = context.new_page()
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


def wait_for_status(page: Page, text: str, where: str = "#paint-status") -> None:
    page.locator(where, has_text=text).wait_for()


def wait_for_prompt(page: Page, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#prompt textarea').value === text", arg=text)


def keep(page: Page, name: str) -> None:
    """Store a screenshot where a run asks for artefacts."""
    folder = os.environ.get("GOUACHE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def tab(page: Page, number: int) -> None:
    page.locator("#tabs button[role=tab]").nth(number).click()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def long_job(server: Server) -> str:
    from gouache.pipeline.request import Request

    request = Request(prompt="a long one", seed=1, num_inference_steps=150, width=256, height=256)
    return server.studio.submit(request, owner="local", source="page")[0].id


def test_paint_search_delete_and_restore(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page)
    page.locator("#paint-stage", has_text="Nothing painted yet").wait_for()
    keep(page, "paint-empty")
    page.fill("#prompt textarea", PROMPT)
    page.keyboard.press("Control+Enter")
    wait_for_status(page, "Done")
    page.locator("#paint-stage img").first.wait_for()
    keep(page, "paint-full")

    tab(page, GALLERY)
    page.fill("#search textarea, #search input", "FOX")
    page.keyboard.press("Enter")
    page.locator("#pictures [data-pick]").first.click()
    page.locator("#chosen img").wait_for()
    page.locator("#chosen dd", has_text=PROMPT).wait_for()
    keep(page, "gallery-full")
    page.click("#delete")
    page.locator("#pictures [data-pick]").wait_for(state="detached")
    page.click("#undo")
    page.locator("#pictures [data-pick]").first.click()
    page.locator("#chosen img").wait_for()
    page.click("#use-settings")
    page.locator("#prompt textarea").wait_for()
    assert page.input_value("#prompt textarea") == PROMPT
    assert int(page.input_value("#seed input")) >= 0
    assert not faults


@pytest.mark.slow
def test_reload_cancel_and_a_second_tab(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page)
    job = long_job(studio_page)
    wait_for_status(page, "Painting")
    page.fill("#prompt textarea", "half a thought")
    page.locator("#negative textarea, #negative input").focus()
    page.wait_for_timeout(700)
    reload(page, faults)
    wait_for_status(page, "Painting")
    page.locator("#paint-stage .g-busy img").wait_for()
    keep(page, "paint-busy")
    wait_for_prompt(page, "half a thought")
    second, second_faults = open_page(browser, studio_page, locale="zh-CN", width=390)
    wait_for_status(second, "生成中")
    keep(second, "phone-paint-busy")
    wait_for_prompt(second, "half a thought")
    assert fits(second)
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Escape")
    wait_for_status(page, "Cancelled")
    wait_for_status(second, "已取消")
    assert studio_page.studio.jobs.get(job).state == "cancelled"
    assert faults == second_faults == []


def reload(page: Page, faults: list[str]) -> None:
    """Load the page anew. Faults that the leaving document reports of its own closed connections are not kept."""
    before = len(faults)
    page.reload()
    page.locator("#prompt textarea").wait_for()
    faults[before:] = [fault for fault in faults[before:] if not CLOSED_BY_LEAVING.search(fault)]


def new_job(server: Server, *, after: str) -> Job:
    """The job that a click hands in, once the server has it."""
    until = time.monotonic() + SECONDS / 1000
    while time.monotonic() < until:
        newest = server.studio.jobs.listing(limit=1)
        if newest and newest[0].id != after:
            return newest[0]
        time.sleep(0.05)
    raise TimeoutError("no new job")


def load_canvas(page: Page, file: Path) -> None:
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(2500)  # The canvas says nothing when its drawing program is ready.
    page.locator("#canvas input[type=file]").first.set_input_files(str(file))
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(2500)


@pytest.mark.slow
def test_edit_with_a_mask_and_with_a_dragged_frame(browser: Browser, studio_page: Server, tmp_path: Path) -> None:
    page, faults = open_page(browser, studio_page)
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "start.png")
    tab(page, EDIT)
    keep(page, "edit-empty")
    page.click("#edit-button")
    page.get_by_text("Load an image first.").wait_for()
    load_canvas(page, tmp_path / "start.png")
    page.locator("#canvas button[aria-label*=rush], #canvas button[title*=rush]").first.click()
    box: Any = page.locator("#canvas canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.fill("#edit-prompt textarea", "a blue door")
    page.wait_for_timeout(800)
    page.click("#edit-button")
    wait_for_status(page, "Done", "#edit-status")
    job = studio_page.studio.jobs.listing(limit=1)[0]
    start = studio_page.studio.file_store.attachment(job.parsed().init_image or "")
    assert Image.open(io.BytesIO(start)).size == (64, 64)
    request = job.parsed()
    assert (request.prompt, request.mask is not None, request.outpaint) == ("a blue door", True, None)

    page.click("#outpaint button")
    page.locator("#frame .g-frame").wait_for()
    handle: Any = page.locator("#frame [data-side=right]").bounding_box()
    page.mouse.move(handle["x"] + 14, handle["y"] + 14)
    page.mouse.down()
    page.mouse.move(handle["x"] + 40, handle["y"] + 14, steps=4)
    page.mouse.up()
    grown = int(page.input_value("#outpaint-right input"))
    assert grown > 0
    assert grown % 8 == 0
    page.fill("#outpaint-top input", "16")
    page.locator("#frame output", has_text=f"{64 + grown} × 80").wait_for()
    keep(page, "edit-full")
    page.click("#edit-button")
    second = new_job(studio_page, after=job.id)
    studio_page.wait(second.id)
    wait_for_status(page, f"seed {second.parsed().seed}", "#edit-status")
    outpaint = second.parsed().outpaint
    assert outpaint is not None
    assert (outpaint.left, outpaint.right, outpaint.top, outpaint.bottom) == (0, grown, 16, 0)
    assert faults == []


@pytest.mark.slow
def test_models_are_looked_at_chosen_and_not_fetched_offline(browser: Browser, studio_page: Server) -> None:
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    studio = studio_page.studio
    write_model(bundle_to_write(untrained_bundle()), studio.settings.data / "models" / "tiny", "gouache")
    page, faults = open_page(browser, studio_page)
    tab(page, MODELS)
    page.click("#refresh-models")
    page.locator("#model-list [data-pick=tiny]").click()
    page.locator("#model-detail", has_text="Stable Diffusion 1.x").wait_for()
    page.click("#make-default")
    page.locator("#model-list [data-pick=tiny]", has_text="default").wait_for()
    assert studio.default_model("local") == "tiny"
    page.fill("#pull-name textarea, #pull-name input", "painter/tiny")
    page.click("#pull-button")
    page.locator("#pull-state .g-bad", has_text="GOUACHE_OFFLINE is set").wait_for()
    keep(page, "models-error")
    assert fits(page)
    assert faults == []


@pytest.mark.slow
def test_training_is_started_shows_its_error_and_is_for_administrators(
    browser: Browser, studio_page: Server, tmp_path: Path
) -> None:
    page, faults = open_page(browser, studio_page)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one.png")
    (tmp_path / "metadata.csv").write_text("file_name,nothing\none.png,x\n")
    tab(page, TRAIN)
    page.locator("#run-list", has_text="No runs yet").wait_for()
    keep(page, "train-empty")
    page.fill("#upload-to textarea, #upload-to input", "cats")
    files = [str(tmp_path / "one.png"), str(tmp_path / "metadata.csv")]
    page.locator("#upload-pictures input[type=file]").set_input_files(files)
    page.locator("#upload-note", has_text="cats: 1 images").wait_for()
    page.locator("#train-stage label").nth(2).click()
    page.fill("#run-name textarea, #run-name input", "mine")
    page.click("#train-start")
    page.locator("#run-state .g-bad", has_text="expected columns file_name and text").wait_for()
    keep(page, "train-error")
    reload(page, faults)
    tab(page, TRAIN)
    page.locator("#run-state .g-bad", has_text="expected columns file_name and text").wait_for()
    page.click("#run-delete")
    page.locator("#run-list", has_text="No runs yet").wait_for()
    assert faults == []

    studio_page.studio.accounts.add_token("ada", "a-token-that-is-long-enough")
    reload(page, faults)
    tab(page, TRAIN)
    page.locator("#train-refused", has_text="Administrators only").wait_for()
    assert not page.locator("#train-start").is_visible()


@pytest.mark.slow
def test_the_gallery_is_searched_by_meaning(browser: Browser, studio_page: Server) -> None:
    from gouache.pipeline.request import Request

    studio = studio_page.studio
    for seed, prompt in enumerate(("a slice of pizza", "a sailing boat on the sea", "a grey cat asleep")):
        studio_page.wait(studio.submit(Request(prompt=prompt, seed=seed), owner="local", source="page")[0].id)
    page, faults = open_page(browser, studio_page)
    tab(page, GALLERY)
    page.locator("#pictures [data-pick]").nth(2).wait_for()
    page.locator("#search-by label").nth(1).click()
    page.fill("#search textarea, #search input", "something to eat")
    page.keyboard.press("Enter")
    page.locator("#found", has_text="prompts").wait_for()
    page.locator("#pictures [data-pick]").first.click()
    page.locator("#chosen dd", has_text="a slice of pizza").wait_for()
    keep(page, "gallery-meaning")
    assert faults == []


@pytest.mark.slow
def test_a_style_of_the_model_goes_along_and_stays(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page)
    page.locator("#style label", has_text="3d").click()
    page.fill("#prompt textarea", "a fox")
    page.keyboard.press("Control+Enter")
    job = new_job(studio_page, after="")
    assert (job.parsed().prompt, job.parsed().style) == ("a fox", "3d")
    wait_for_status(page, "Done")
    reload(page, faults)
    page.locator("#style label.selected", has_text="3d").wait_for()
    assert faults == []


@pytest.mark.slow
def test_a_failure_is_told(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page)
    page.fill("#prompt textarea", "a fox <lora:none:1>")
    page.keyboard.press("Control+Enter")
    page.locator("#paint-status .g-bad", has_text="no such LoRA").wait_for()
    keep(page, "paint-error")
    assert fits(page)
    assert faults == []


@pytest.mark.slow
@pytest.mark.usefixtures("adapters")
def test_a_click_on_an_adapter_puts_it_into_the_prompt(browser: Browser, studio_page: Server) -> None:
    page, faults = open_page(browser, studio_page, locale="zh-CN", width=390)
    page.fill("#prompt textarea", "a fox")
    for name, prompt in (("ink", "a fox <lora:ink:0.8>"), ("zog", "a fox <lora:ink:0.8> zog")):
        tab(page, MODELS)
        page.locator(f"#adapter-list [data-pick={name}]").wait_for()
        keep(page, "phone-models-adapters")
        page.locator(f"#adapter-list [data-pick={name}]").click()
        page.locator("#prompt textarea").wait_for()
        page.wait_for_function(f"document.querySelector('#prompt textarea').value === '{prompt}'")
    assert fits(page)
    assert faults == []


@pytest.mark.slow
@pytest.mark.usefixtures("adapters", "stopped_run")
@pytest.mark.parametrize(("locale", "width", "dark"), [("zh-CN", 390, False), ("en-US", 1280, True)])
def test_a_full_studio_is_readable(
    browser: Browser, studio_page: Server, *, locale: str, width: int, dark: bool
) -> None:
    from gouache.pipeline.request import Request

    for seed, prompt in enumerate((PROMPT, "赤狐 " * 60, "x" * 300, "a fox")):
        request = Request(prompt=prompt, seed=seed, count=1 + seed)
        studio_page.wait(studio_page.studio.submit(request, owner="local", source="page")[0].id)
    page, faults = open_page(browser, studio_page, locale=locale, width=width, dark=dark)
    for number, name in enumerate(("paint", "edit", "gallery", "models", "train")):
        tab(page, number)
        page.wait_for_timeout(2000)
        if number == GALLERY:
            page.locator("#pictures [data-pick]").nth(4).click()
            page.locator("#chosen img").wait_for()
        if number == TRAIN:
            page.locator("#run-chart svg").wait_for()
            page.locator("#run-samples img").first.wait_for()
        keep(page, f"full-{name}-{width}{'-dark' if dark else ''}")
        assert fits(page), name
        assert page.evaluate(CONTRAST) == [], name
    assert faults == []


# Words that stand in both languages: names, units, and what the user wrote.
NAMES = re.compile(
    r"gouache|pocket|tiny|DPM|SD|SHA-?256|Stable Diffusion|Hugging Face|Ctrl\+Enter|Esc|LoRA|loras|embeddings|"
    r"owner/name|CompVis/stable-diffusion-v1-4|fp16|\.txt|Euler|not in this build: untrained weights stand in|local|"
    r"noto|twemoji|flat"
)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_tab_in_chinese_on_a_phone_fits_and_reads(browser: Browser, studio_page: Server, *, dark: bool) -> None:
    from gouache.pipeline.request import Request

    studio_page.studio.submit(Request(prompt="赤狐", seed=1), owner="local", source="page")
    page, faults = open_page(browser, studio_page, locale="zh-CN", width=390, dark=dark)
    wait_for_status(page, "完成")
    for number, name in enumerate(("paint", "edit", "gallery", "models", "train")):
        tab(page, number)
        page.wait_for_timeout(1500)
        for opener in page.locator("button.label-wrap:visible").all():
            opener.click()
        page.wait_for_timeout(800)
        keep(page, f"phone-{name}{'-dark' if dark else ''}")
        assert fits(page), name
        english = [text for text in visible_texts(page) if re.search(r"[A-Za-z]{3}", NAMES.sub("", text))]
        assert english == [], name
        assert page.evaluate(CONTRAST) == [], name
    assert faults == []


def visible_texts(page: Page) -> list[str]:
    texts: list[str] = page.evaluate(VISIBLE)
    return texts
