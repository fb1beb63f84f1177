"""The Paint view in a real browser, by the ways that a user takes: words in, pictures out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tests.serve.conftest import CHROMIUM, FLAGS, TINY_WORKER, Server, make_settings

from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

    from gouache.serve.queue.job import Job

WAIT = 120_000
LARGEST = str(2**63 - 1)


class PaintView:
    """The view, driven by its keys and labels; what was painted before in the same studio is none of its business."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.problems: list[str] = []
        self._earlier = {job.id for job in self._jobs()}
        server.studio.set_options("local", {f"page.{name}": "{}" for name in ("paint", "paint_options")})
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.set_default_timeout(WAIT)

    def _jobs(self) -> list[Job]:
        return self.server.studio.jobs.listing(owner="local", states=(), limit=200, before=None)

    def open(self, path: str = "/paint") -> PaintView:
        self.page.goto(self.server.url + path)
        self.page.wait_for_selector("#prompt")
        # What the server knows of fields and the model is there, and the last pictures.
        self.page.wait_for_selector("#sampler option:nth-child(3)", state="attached")
        self.page.wait_for_selector("[data-picture], #first-steps")
        return self

    def paint(self, prompt: str, seed: str = "7") -> PaintView:
        """Write, paint by keys, and wait for the picture."""
        self.page.fill("#seed", seed)
        self.page.fill("#prompt", prompt)
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_selector("#job-state")
        self.page.wait_for_selector("#picture")
        return self

    def jobs(self) -> list[Job]:
        """What was handed in since, the oldest first."""
        return [job for job in reversed(self._jobs()) if job.id not in self._earlier]

    def requests(self) -> list[dict[str, Any]]:
        """The same as it was asked for."""
        return [job.parsed().model_dump() for job in self.jobs()]

    def newest(self) -> str:
        """Id of the first picture in the strip."""
        return str(self.page.get_attribute("[data-picture]", "data-picture"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One studio for all tests here: to start one takes longer than to paint in it."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOUACHE_OFFLINE", "1")
        patch.setenv("GOUACHE_MODELS", str(folder / "models"))
        started = Server(Studio(make_settings(folder, page=True), TINY_WORKER)).start()
        yield started
        started.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def paint_view(studio: Server, chromium: Browser) -> Iterator[PaintView]:
    context = chromium.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
    view = PaintView(context.new_page(), studio)
    yield view
    context.close()
    assert not view.problems


def test_words_become_a_picture_and_a_reload_finds_both(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "雪地里的红狐狸")
    page.fill("#seed", LARGEST)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#job-state", timeout=5000)
    page.wait_for_selector("#picture img")
    assert page.inner_text("#seed-of") == LARGEST
    assert page.eval_on_selector("#picture img", "image => image.complete && image.naturalWidth === 32")
    page.reload()
    page.wait_for_selector("#picture img")
    assert page.input_value("#prompt") == "雪地里的红狐狸"
    assert page.input_value("#seed") == LARGEST
    [request] = paint_view.requests()
    assert (request["prompt"], request["seed"]) == ("雪地里的红狐狸", int(LARGEST))


@pytest.mark.slow
def test_the_press_of_paint_is_answered_before_the_server_is(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "a boat")
    held: list[Route] = []
    page.route("**/v1/jobs", lambda route: held.append(route))
    page.click("#paint")
    page.wait_for_selector("#job-state")
    page.wait_for_selector(".paint-count")
    page.click("#paint")
    page.wait_for_selector(".paint-strip li:nth-child(2) .sending")
    assert paint_view.requests() == []
    for route in held:
        route.continue_()
    page.wait_for_selector(".paint-thumb.sending", state="detached")
    page.wait_for_selector("#picture")
    assert len(paint_view.requests()) == 2


@pytest.mark.slow
def test_weights_change_by_keys_and_undo_takes_them_back(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.click("#prompt")
    page.keyboard.type("a red fox, <lora:ink:1> snow")

    def at(text: str, key: str) -> str:
        page.eval_on_selector(
            "#prompt",
            "(field, text) => { const k = field.value.indexOf(text) + 1; field.setSelectionRange(k, k); }",
            text,
        )
        page.keyboard.press(f"Control+{key}")
        return page.input_value("#prompt")

    assert at("red", "ArrowUp") == "a (red:1.1) fox, <lora:ink:1> snow"
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#prompt") == "a (red:1.2) fox, <lora:ink:1> snow"
    assert at("ink", "ArrowDown") == "a (red:1.2) fox, <lora:ink:0.95> snow"
    assert at("red", "ArrowDown") == "a (red:1.1) fox, <lora:ink:0.95> snow"
    page.keyboard.press("Control+ArrowDown")
    assert page.input_value("#prompt") == "a red fox, <lora:ink:0.95> snow"
    page.eval_on_selector("#prompt", "field => field.setSelectionRange(2, 9)")
    page.keyboard.press("Control+ArrowDown")
    assert page.input_value("#prompt") == "a (red fox:0.9), <lora:ink:0.95> snow"
    page.fill("#prompt", "")
    page.keyboard.type("红狐狸，雪")
    assert at("狐", "ArrowUp") == "(红狐狸:1.1)，雪"
    page.keyboard.press("Control+z")
    assert page.input_value("#prompt") == "红狐狸，雪"


@pytest.mark.slow
def test_names_are_completed_and_escape_closes_the_list_alone(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.click("#prompt")
    page.keyboard.type("a fox twemo")
    page.wait_for_selector("[role=option]")
    assert page.get_attribute("#prompt", "aria-activedescendant") is None
    page.keyboard.press("Escape")
    page.wait_for_selector("[role=option]", state="detached")
    page.keyboard.type("j")
    page.wait_for_selector("[role=option]")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#prompt", "aria-activedescendant") == page.get_attribute("[role=option]", "id")
    page.keyboard.press("Enter")
    page.wait_for_selector(".segmented button[aria-pressed=true] >> text=twemoji")
    assert page.input_value("#prompt") == "a fox "
    page.keyboard.type("<lora:ink:1>")
    page.wait_for_selector(".paint-networks input")
    page.eval_on_selector(
        ".paint-networks input", "i => { i.value = 0.5; i.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    assert page.input_value("#prompt") == "a fox <lora:ink:0.5>"


def test_a_seed_is_exact_or_refused_with_a_sentence(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "a boat")
    for wrong in ("99999999999999999999", "1.5", "seven", "-7"):
        page.fill("#seed", wrong)
        assert LARGEST in page.inner_text("#seed-wrong")
        page.keyboard.press("Control+Enter")
        assert page.evaluate("document.activeElement.id") == "seed"
    assert paint_view.requests() == []
    page.fill("#seed", "")
    page.wait_for_selector("#seed-wrong", state="detached")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#job-state")
    page.wait_for_selector("#picture")
    first = page.inner_text("#seed-of")
    assert first not in ("0", "")
    page.click("#seed-last")
    assert page.input_value("#seed") == first
    page.click("#seed-random")
    assert page.input_value("#seed") == ""
    assert [str(request["seed"]) for request in paint_view.requests()] == [first]


def test_what_the_server_refuses_is_said_at_the_field(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "a boat")
    page.fill("#steps", "5000")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#steps-wrong")
    assert "150" in page.inner_text("#steps-wrong")
    assert paint_view.requests() == []
    page.fill("#steps", "3")
    page.wait_for_selector("#steps-wrong", state="detached")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#job-state")
    page.wait_for_selector("#picture")
    assert paint_view.requests()[0]["num_inference_steps"] == 3


@pytest.mark.slow
def test_escape_leaves_the_list_then_the_enlarged_picture_and_then_stops_the_painting(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#count", "4")
    page.fill("#prompt", "a boat")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".paint-cell")
    assert len(page.query_selector_all(".paint-cell")) == 4
    page.click(".paint-cell >> nth=2")
    page.wait_for_selector("#picture")
    assert page.inner_text("#to-grid").strip() == "3 / 4"
    page.click("#picture")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    page.keyboard.press("Escape")
    page.wait_for_selector(".paint-cell")
    page.fill("#steps", "150")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#cancel")
    page.wait_for_selector(".paint-thumb.sending", state="detached")
    page.keyboard.press("Escape")
    page.wait_for_selector("#cancel", state="detached")
    states = {
        job.state for job in paint_view.server.studio.jobs.listing(owner="local", states=(), limit=9, before=None)
    }
    assert states == {"done", "cancelled"}


@pytest.mark.slow
def test_what_can_be_done_with_a_picture(paint_view: PaintView) -> None:
    page = paint_view.open().paint("a boat").page
    first = paint_view.newest()
    page.click("#do-vary")
    page.wait_for_selector(".paint-cell")
    vary = paint_view.requests()[-1]
    assert (vary["seed"], vary["count"], vary["prompt"]) == (7, 4, "a boat")
    assert vary["subseed_strength"] > 0
    page.click(f"[data-picture='{first}']")
    page.wait_for_selector("#picture")
    assert page.inner_text("#seed-of") == "7"
    page.click("#do-upscale")
    page.wait_for_selector("#job-state", state="detached")
    page.wait_for_selector(".paint-facts >> text=64 × 64")
    assert paint_view.requests()[-1]["upscale"]["factor"] == 2
    page.click("#do-again")
    page.wait_for_selector("#job-state")
    page.wait_for_selector("#seed-of")
    assert page.inner_text("#seed-of") != "7"
    again = paint_view.requests()[-1]
    assert (str(again["seed"]), again["prompt"]) == (page.inner_text("#seed-of"), "a boat")
    page.click("#do-compare")
    page.wait_for_selector(".paint-compare input")
    page.keyboard.press("Escape")
    page.wait_for_selector(".paint-compare", state="detached")
    assert re.fullmatch(r"/edit/\w+-\d+", page.get_attribute("#do-edit", "href") or "")


@pytest.mark.slow
def test_a_picture_is_starred_deleted_and_brought_back(paint_view: PaintView) -> None:
    page = paint_view.open().paint("a boat").page
    picture = paint_view.newest()
    page.click("#do-star")
    page.wait_for_selector("#do-star[aria-pressed=true]")
    page.reload()
    page.wait_for_selector("#do-star[aria-pressed=true]")
    page.click("#do-delete")
    page.wait_for_selector(f"[data-picture='{picture}']", state="detached")
    page.click(".toast >> text=Undo")
    page.wait_for_selector(f"[data-picture='{picture}']")
    assert paint_view.newest() == picture


@pytest.mark.slow
def test_a_dropped_picture_fills_the_form_or_is_painted_from(paint_view: PaintView) -> None:
    page = paint_view.open().paint("a boat", seed="11").page
    own = page.evaluate_handle(
        """async (id) => { const blob = await (await fetch(`/v1/pictures/${id}/file`)).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], 'own.png', { type: 'image/png' })); return data; }""",
        paint_view.newest(),
    )
    page.fill("#prompt", "something else")
    page.fill("#seed", "")
    page.dispatch_event(".paint", "drop", {"dataTransfer": own})
    page.wait_for_selector(".toast")
    assert page.input_value("#prompt") == "a boat"
    assert page.input_value("#seed") == "11"
    page.click(".toast >> text=Undo")
    assert page.input_value("#prompt") == "something else"
    plain = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(plain, "PNG")
    other = page.evaluate_handle(
        """(bytes) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'plain.png', { type: 'image/png' })); return data; }""",
        list(plain.getvalue()),
    )
    page.dispatch_event(".paint", "drop", {"dataTransfer": other})
    page.click("#use-init_image")
    page.wait_for_selector(".paint-input")
    assert page.input_value("#prompt") == "something else"
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#job-state", state="attached")
    page.wait_for_selector("#job-state", state="detached")
    assert paint_view.requests()[-1]["init_image"].startswith("sha256:")


@pytest.mark.slow
def test_presets_keep_settings(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "a boat")
    page.fill("#steps", "3")
    page.click("#presets")
    page.fill("#preset-name", "quick boats")
    page.click("#preset-save")
    page.wait_for_selector(".paint-preset")
    page.keyboard.press("Escape")
    page.click("#reset")
    assert page.input_value("#steps") == ""
    page.click("#presets")
    page.click(".paint-preset .paint-row")
    assert page.input_value("#steps") == "3"


@pytest.mark.slow
def test_on_a_phone_the_picture_is_above_and_the_button_at_the_thumb(studio: Server, chromium: Browser) -> None:
    context = chromium.new_context(locale="zh-CN", viewport={"width": 390, "height": 844}, has_touch=True)
    view = PaintView(context.new_page(), studio).open()
    page = view.page
    assert page.inner_text("#paint").strip() == "生成"
    view.paint("a boat")
    page.wait_for_selector("#picture")
    places = page.evaluate(
        """() => Object.fromEntries(['picture', 'prompt', 'paint', 'nav-paint', 'steps'].map((id) => {
          const box = document.getElementById(id).getBoundingClientRect();
          return [id, [box.top, box.bottom, box.height]]; }))"""
    )
    assert places["picture"][1] < places["prompt"][0] < places["paint"][0] < places["nav-paint"][0] < 844
    assert places["paint"][2] >= 40
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    after = page.evaluate("document.getElementById('paint').getBoundingClientRect().top")
    assert after == pytest.approx(places["paint"][0], abs=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
    assert not view.problems


@pytest.mark.slow
def test_what_stands_on_an_axis(paint_view: PaintView) -> None:
    page = paint_view.open().page
    paint = page.eval_on_selector('link[href$="/views/paint/paint.js"]', "link => link.href")
    address = paint.replace("paint.js", "grid_values.js")

    def read(source: str) -> Any:
        return page.evaluate(f"import({address!r}).then((m) => JSON.parse(JSON.stringify({source})))")

    assert read("m.valuesOf({ kind: 'integer' }, '1, 3-9 (+2), 10-1 [4]')") == [1, 3, 5, 7, 9, 10, 7, 4, 1]
    assert read("m.valuesOf({ kind: 'number' }, '0.5-1.0 (+0.25)')") == [0.5, 0.75, 1]
    assert read("m.valuesOf({ kind: 'integer' }, '5-3')") == [5, 4, 3]
    assert read(f"m.valuesOf({{ kind: 'seed' }}, '{LARGEST}').map(String)") == [LARGEST]
    assert read("m.valuesOf({ kind: 'replace' }, 'a, \"b, c\", d')") == ["a", "b, c", "d"]
    choices = "[{ value: 'euler', label: 'Euler' }]"
    assert read(f"m.valuesOf({{ kind: 'choice', choices: {choices} }}, 'EULER')") == ["euler"]
    refused = "try { m.valuesOf({ kind: 'integer' }, '1, x'); return ''; } catch (e) { return e.message; }"
    assert "x" in read(f"(() => {{ {refused} }})()")
    assert [one["prompt"] for one in read("m.matrix('a|b|c')")] == ["a", "a, b", "a, c", "a, b, c"]
    axes = "[{ kind: 'replace', values: ['red', 'blue'] }, { name: 'seed', values: [1, 2] }]"
    cells = read(f"m.plot({{ prompt: 'red fox' }}, {axes})")
    assert [(one["request"]["prompt"], one["request"]["seed"], one["at"]) for one in cells] == [
        ("red fox", 1, [0, 0, 0]),
        ("blue fox", 1, [1, 0, 0]),
        ("red fox", 2, [0, 1, 0]),
        ("blue fox", 2, [1, 1, 0]),
    ]
    line = '--prompt "a cat" --steps 20 --sampler_name DPM++ 2M --width 64'
    expected = {"prompt": "a cat", "num_inference_steps": 20, "sampler": "DPM++ 2M", "width": 64}
    assert read(f"m.lineOf({line!r})") == expected


@pytest.mark.slow
def test_a_plot_fills_in_is_saved_and_found_again(paint_view: PaintView) -> None:
    page = paint_view.open().page
    page.fill("#prompt", "a red boat")
    page.click("#grids")
    page.select_option("#axis-X", "seed")
    page.fill("#values-X", "1-2")
    page.select_option("#axis-Y", "prompt_replace")
    page.fill("#values-Y", "red, blue")
    assert page.inner_text("#grid-count") == "4 images"
    page.click("#grid-start")
    page.wait_for_selector("#grid-state >> text=4 of 4", timeout=2 * WAIT)
    assert len(page.query_selector_all(".paint-grid-cell img")) == 4
    assert "/paint/grid/" in page.url
    with page.expect_download() as download:
        page.click("#grid-save")
    with Image.open(download.value.path()) as sheet:
        assert sheet.width > 2 * 32
        assert sheet.height > 2 * 32
    assert [(one["prompt"], one["seed"]) for one in paint_view.requests()] == [
        ("a red boat", 1),
        ("a red boat", 2),
        ("a blue boat", 1),
        ("a blue boat", 2),
    ]
    page.reload()
    page.wait_for_selector("#grid-state >> text=4 of 4")
    assert len(page.query_selector_all(".paint-grid-cell img")) == 4
    assert len(page.query_selector_all(".paint-grid th[scope=row]")) == 2
