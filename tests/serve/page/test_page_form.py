"""The form in a real browser: every field of a request is on the Paint page, can be set, and says what is wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tests.serve.conftest import CHROMIUM, until

from gouache.pipeline.request import Request
from gouache.serve.api.request_fields import describe, flattened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page
    from tests.serve.conftest import Server

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(900),
]
NAMES = "[...document.querySelectorAll('[data-path]')].map((one) => one.dataset.path)"
FORM = """async (groups) => {
  const base = document.querySelector("script[src$='app/main.js']").src.replace("app/main.js", "");
  const { html, render, signal } = await import(base + "app/preact.js");
  const { Form } = await import(base + "ui/form.js");
  const place = document.querySelector("main");
  place.replaceChildren();
  globalThis.request = signal({});
  const give = (changed) => { request.value = changed; };
  render(html`<${() => html`<${Form} groups=${groups} value=${request.value} onChange=${give} />`} />`, place);
}"""
"""A form alone, in the frame of the page."""


class FormPage:
    """The Paint page with all of its settings opened."""

    def __init__(self, browser: Browser, server: Server, locale: str) -> None:
        self.server = server
        context = browser.new_context(locale=locale, viewport={"width": 1280, "height": 900})
        self.page: Page = context.new_page()
        self.page.set_default_timeout(90_000)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(f"{server.url}/paint")
        self.page.wait_for_selector("#prompt")
        self.page.click("#more")
        self.page.wait_for_selector(".paint-group")

    def open_groups(self) -> None:
        """Every group, and what the model has no use for."""
        self.click_all(".paint-group:not([open]) > summary")
        until(self.page, "document.querySelectorAll('.paint-group:not([open])').length === 0")
        self.page.wait_for_selector('[data-path="safety"]')
        self.click_all(".form-unusable:not([open]) > summary")

    def click_all(self, selector: str) -> None:
        """Click everything that matches now."""
        self.page.eval_on_selector_all(
            selector,
            """async (all) => {
              for (const one of all) { one.click(); await new Promise((done) => { setTimeout(done, 30); }); }
            }""",
        )

    def row(self, path: str) -> Locator:
        """A field's place."""
        return self.page.locator(f'[data-path="{path}"]')

    def input(self, path: str) -> Locator:
        """Where its value is typed or chosen."""
        return self.row(path).locator("input:not([type=range]), select, textarea").first

    def paint(self) -> dict[str, Any]:
        """Press the button; gives what was handed in."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/v1/jobs")) as answered:
            self.page.click("#paint")
        return dict(answered.value.json())


@pytest.fixture
def open_form(browser: Browser, studio_page: Server) -> Iterator[Any]:
    opened: list[FormPage] = []

    def open_page(locale: str = "en-US") -> FormPage:
        opened.append(FormPage(browser, studio_page, locale))
        return opened[-1]

    yield open_page
    for one in opened:
        assert one.faults == []
        one.page.context.close()


def test_every_field_of_a_request_is_on_the_paint_page(open_form: Any) -> None:
    form = open_form()
    page = form.page
    form.open_groups()
    page.fill("#prompt", "a fox")
    of_form = set(page.evaluate(NAMES))
    of_view = set(page.evaluate("[...document.querySelectorAll('[data-field]')].map((one) => one.dataset.field)"))
    if page.locator("#height").count():
        of_view.add("height")
    assert of_form | of_view == set(Request.model_fields)
    # And every one inside of groups and lists, once they are turned on.
    form.click_all(".form-switch input")
    form.click_all(".form-add")
    page.wait_for_selector('[data-path="regions[0].box"]')
    found = {path.replace("[0]", "[]") for path in page.evaluate(NAMES)}
    wanted = {field.path for field in flattened(describe().fields)}
    assert wanted - found <= of_view | {"width", "height"}
    assert found <= wanted
    # Each is named by a label or a heading, and none is empty.
    assert (
        page.evaluate(
            """[...document.querySelectorAll('[data-path]')].filter((row) => {
          const name = row.querySelector(":scope > .form-head :is(label, .label)");
          return !name || !name.textContent.trim() || name.textContent.includes("_");
        }).map((row) => row.dataset.path)"""
        )
        == []
    )


@pytest.mark.slow
def test_unusual_settings_are_painted_with_and_found_again(open_form: Any) -> None:
    form = open_form()
    page, server = form.page, form.server
    form.open_groups()
    page.fill("#prompt", "a fox")
    form.input("eta").fill("0.5")
    form.row("guidance_rescale").locator("input[type=range]").fill("0.3")
    form.input("seamless").select_option("both")
    form.input("determinism").select_option("portable")
    form.input("subseed").fill(str(2**63 - 3))
    form.input("subseed_strength").fill("0.25")
    form.row("freeu").locator(".form-switch input").check()
    form.input("freeu.b1").fill("1.2")
    form.input("guidance_interval").fill("0.1, 9")
    job = form.paint()
    assert "error" not in job or job["error"] is None, job
    assert server.wait(job["id"]).state == "done"
    request = server.studio.jobs.get(job["id"]).parsed()
    assert (request.eta, request.guidance_rescale, request.seamless) == (0.5, 0.3, "both")
    assert (request.determinism, request.subseed, request.subseed_strength) == ("portable", 2**63 - 3, 0.25)
    assert request.freeu is not None
    assert request.freeu.b1 == 1.2
    assert request.guidance_interval == (0.1, 9.0)
    assert not {"mask", "hires", "seed"} & set(job["request"]) or job["request"]["mask"] is None
    # Back to the default, one by one: the mark goes, and the request no longer has it.
    row = form.row("eta")
    assert "changed" in (row.get_attribute("class") or "")
    row.locator(".form-reset").click()
    assert "changed" not in (row.get_attribute("class") or "")
    page.wait_for_timeout(700)
    page.reload()
    page.wait_for_selector('[data-path="seamless"]')
    assert form.input("seamless").input_value() == "both"
    assert form.input("subseed").input_value() == str(2**63 - 3)
    assert form.input("eta").input_value() == ""


@pytest.mark.slow
def test_what_the_server_refuses_is_said_at_its_field_in_chinese(open_form: Any) -> None:
    form = open_form("zh-CN")
    page = form.page
    form.open_groups()
    page.fill("#prompt", "狐狸")
    # Out of range: said at once, and again by what the server answers.
    form.input("eta").fill("11")
    assert form.row("eta").locator(".wrong-text").inner_text() == "Eta应在 0 到 10 之间。"
    refused = form.paint()
    assert refused["error"]["param"] == "request.eta"
    page.locator('[data-path="eta"] [role=alert]').wait_for()
    assert form.row("eta").locator("[role=alert]").inner_text() == "Eta应在 0 到 10 之间。"
    assert form.input("eta").get_attribute("aria-invalid") == "true"
    form.input("eta").fill("")
    assert form.row("eta").locator(".wrong-text").count() == 0
    # A rule about two fields, and a value inside of a group.
    form.row("mask").locator(".form-switch input").check()
    form.paint()
    assert form.row("mask").locator("[role=alert]").first.inner_text() == "局部重绘需要一张起始图。"
    form.row("mask").locator(".form-switch input").uncheck()
    form.row("regions").locator(".form-add").click()
    form.row("regions[0].box").locator("input").nth(0).fill("0.9")
    form.paint()
    page.locator('[data-path^="regions"] [role=alert]').first.wait_for()
    assert "左应小于右" in page.locator('[data-path^="regions"] [role=alert]').first.inner_text()


@pytest.mark.slow
def test_a_seed_is_never_rounded(open_form: Any) -> None:
    form = open_form()
    form.open_groups()
    form.page.fill("#prompt", "a fox")
    form.input("subseed").fill("99999999999999999999")
    said = form.row("subseed").locator(".wrong-text")
    assert said.inner_text() == "Variation seed must be 0 to 9223372036854775807."
    sent = []
    form.page.on("request", lambda request: sent.append(request.post_data) if "/v1/jobs" in request.url else None)
    assert form.paint()["error"]["param"] == "request.subseed"
    assert any("99999999999999999999" in (body or "") for body in sent)
    form.input("subseed").fill("9007199254740993")  # 2^53 + 1: as a JavaScript number it would be ...992.
    assert said.count() == 0
    assert form.server.studio.jobs.get(form.paint()["id"]).parsed().subseed == 2**53 + 1
    form.input("subseed").fill("")
    assert form.server.studio.jobs.get(form.paint()["id"]).parsed().subseed is None


@pytest.mark.slow
def test_a_picture_is_sent_and_shown(open_form: Any) -> None:
    form = open_form()
    form.open_groups()
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "orange").save(buffer, "PNG")
    file: Any = {"name": "start.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    form.row("init_image").locator("input[type=file]").set_input_files(file)
    form.row("init_image").locator("img").wait_for()
    form.page.fill("#prompt", "a fox")
    job = form.paint()
    assert form.server.wait(job["id"]).state == "done"
    assert str(form.server.studio.jobs.get(job["id"]).parsed().init_image).startswith("sha256:")
    form.row("init_image").locator(".form-picture-remove").click()
    form.row("init_image").locator(".drop-zone").wait_for()
    bad: Any = {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"}
    form.row("init_image").locator("input[type=file]").set_input_files(bad)
    form.row("init_image").locator("[role=alert]").wait_for()
    assert "picture" in form.row("init_image").locator("[role=alert]").inner_text()


@pytest.mark.slow
def test_a_long_list_is_searched_by_keys(open_form: Any) -> None:
    page = open_form().page
    page.evaluate(FORM, ["sampling"])
    box = page.locator('[data-path="sampler"] [role=combobox]')
    box.click()
    box.fill("2m karras")
    box.fill("dpm++ 2m")
    assert page.locator('[data-path="sampler"] [role=option]').count() >= 2
    box.press("ArrowDown")
    box.press("Enter")
    assert page.evaluate("request.value.sampler").startswith("dpmpp_2m")
    assert box.get_attribute("aria-expanded") == "false"
    box.click()
    box.press("Escape")
    assert page.locator('[data-path="sampler"] [role=listbox]').is_hidden()
    assert page.evaluate("request.value.sampler").startswith("dpmpp_2m")
    box.fill("DPM++ 2M Karras")  # Another tool's name for sampler and schedule together is kept as it is written.
    box.press("Enter")
    box.press("Tab")
    page.locator('[data-path="sampler"] .form-reset').click()
    assert page.evaluate("'sampler' in request.value") is False
