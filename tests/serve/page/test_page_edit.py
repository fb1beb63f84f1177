"""The Edit view in a real browser: what is outside the mask and the frame's growth stays bit for bit what it was."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.serve.conftest import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page
    from tests.serve.conftest import Server

Pixels = NDArray[np.uint8]
SESSION = "/views/edit/session.js"
STAGE = "/views/edit/stage.js"
FRAME_MILLISECONDS = 16.0


def noise(width: int = 64, height: int = 64, seed: int = 1) -> bytes:
    """A picture in which no two neighbours are alike, so that a pixel that moved is seen."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


class Canvas:
    """The view with a picture on it, driven as a user does, and its pixels."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda line: self.problems.append(line.text) if line.type == "error" else None)

    def open(self, path: str = "/edit") -> Canvas:
        self.page.goto(self.server.url + path)
        self.page.wait_for_selector("#edit-drop, .edit-layer")
        return self

    def load(self, data: bytes) -> Canvas:
        file = {"name": "noise.png", "mimeType": "image/png", "buffer": data}
        self.page.set_input_files("#edit-input", file)  # type: ignore[arg-type]
        self.page.wait_for_selector(".edit-layer")
        return self

    def value(self, source: str, module: str = SESSION) -> Any:
        """What an expression of the module `m` gives; the page itself runs no text, so the debugger does."""
        address = self.page.eval_on_selector(f'link[href$="{module}"]', "link => link.href")
        return self.page.evaluate(f"import({address!r}).then((m) => ({source}))")

    def pixels(self) -> Pixels:
        """The picture as it would be saved."""
        source = """(() => { const c = m.drawing.flat();
          const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
          let text = ''; for (const byte of data) text += String.fromCharCode(byte);
          return [c.width, c.height, btoa(text)]; })()"""
        width, height, data = self.value(source)
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)

    def mask(self) -> Pixels:
        """Everything brushed, one byte a pixel."""
        source = "(() => { const b = m.drawing.brushed(); return b && [m.drawing.width, m.drawing.height, [...b]]; })()"
        found = self.value(source)
        assert found is not None
        return np.array(found[2], np.uint8).reshape(found[1], found[0])

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the picture is on the screen."""
        left, top, scale = self.page.evaluate(
            """() => { const m = new DOMMatrix(getComputedStyle(document.querySelector('.edit-board')).transform);
            const box = document.querySelector('#edit-stage').getBoundingClientRect();
            return [box.left + m.e, box.top + m.f, m.a]; }"""
        )
        return left + x * scale, top + y * scale

    def stroke(self, start: tuple[float, float], end: tuple[float, float], steps: int = 6) -> None:
        """Drag the mouse over the picture."""
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=steps)
        self.page.mouse.up()

    def set(self, **values: float) -> None:
        """Move sliders."""
        for name, value in values.items():
            self.page.locator(f"#edit-{name}").fill(str(value))

    def quick(self) -> None:
        """As few steps as a picture takes."""
        self.value("m.change({ more: { num_inference_steps: 2 } })")

    def generate(self) -> dict[str, Any]:
        """Paint, keep the candidate; gives the job's request."""
        self.page.click("#edit-generate")
        self.page.click("#edit-accept", timeout=60_000)
        self.page.wait_for_selector("#edit-accept", state="detached")
        job = self.server.studio.jobs.listing(limit=1)[0]
        return job.parsed().model_dump(mode="json")


@pytest.fixture
def canvas(studio_page: Server, browser: Browser) -> Iterator[Canvas]:
    page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-GB")
    made = Canvas(page, studio_page).open()
    yield made
    assert not made.problems


def same(one: Pixels, other: Pixels, where: NDArray[np.bool_]) -> bool:
    return bool(np.array_equal(one[where], other[where]))


def test_a_mask_is_painted_anew_and_all_else_stays_bit_for_bit(canvas: Canvas) -> None:
    canvas.load(noise()).quick()
    canvas.set(size=16, hardness=1, blur=0)
    canvas.stroke((20, 20), (44, 30))
    before, mask = canvas.pixels(), canvas.mask()
    assert mask[20, 20] == 255
    assert mask[50, 50] == 0
    request = canvas.generate()
    assert request["mask"]["image"].startswith("sha256:")
    assert request["strength"] == 0.75
    after = canvas.pixels()
    assert same(before, after, mask == 0)
    assert not same(before, after, mask > 0)
    # What is on the canvas is what the server painted, also under the soft edge.
    newest = canvas.server.studio.pictures.search(limit=1)[0]
    stored = Image.open(canvas.server.studio.settings.data / "pictures" / newest.file).convert("RGBA")
    assert np.array_equal(np.asarray(stored), after)


@pytest.mark.slow
def test_steps_are_undone_and_done_again(canvas: Canvas) -> None:
    canvas.load(noise())
    page = canvas.page
    canvas.set(size=10, hardness=1)
    canvas.stroke((10, 10), (30, 10))
    first = canvas.mask()
    canvas.stroke((10, 40), (50, 40))
    second = canvas.mask()
    page.keyboard.press("Control+z")
    assert np.array_equal(canvas.mask(), first)
    page.keyboard.press("Control+Shift+z")
    assert np.array_equal(canvas.mask(), second)
    page.keyboard.press("e")
    canvas.stroke((10, 40), (50, 40))
    # Of the edge's half-covered pixels a half is left.
    erased = canvas.mask()
    assert erased[32:].max() < 128
    assert not erased[37:43, 10:50].any()
    assert np.array_equal(erased[:32], first[:32])
    page.click("#edit-mask-invert")
    assert np.array_equal(canvas.mask(), 255 - erased)
    page.click("#edit-mask-grow")
    assert (canvas.mask() >= 255 - erased).all()
    for _ in range(3):
        page.click("#edit-undo")
    assert np.array_equal(canvas.mask(), second)
    plain = canvas.pixels()
    page.keyboard.press("p")
    canvas.stroke((5, 60), (60, 60))
    assert not np.array_equal(canvas.pixels(), plain)
    page.get_by_role("button", name="Delete layer").click()
    assert np.array_equal(canvas.pixels(), plain)
    page.keyboard.press("Control+z")
    assert not np.array_equal(canvas.pixels(), plain)


@pytest.mark.slow
def test_the_frames_edge_is_dragged_and_what_it_adds_is_painted(canvas: Canvas) -> None:
    canvas.load(noise()).quick()
    canvas.set(overlap=8)
    drag_right_edge(canvas, 24)
    assert canvas.value("m.drawing.frame") == {"left": 0, "top": 0, "right": 24, "bottom": 0}
    assert canvas.page.inner_text("#edit-frame-size") == "88 × 64"
    before = canvas.pixels()
    request = canvas.generate()
    assert request["outpaint"]["right"] == 24
    after = canvas.pixels()
    assert after.shape == (64, 88, 4)
    # The engine's seam has a soft edge of its own, about three times the blur wide.
    kept = 64 - 8 - 14
    assert np.array_equal(after[:, :kept], before[:, :kept])
    assert after[:, 64:, 3].all()
    canvas.page.click("#edit-undo")
    assert np.array_equal(canvas.pixels(), before)


def drag_right_edge(canvas: Canvas, pixels: int) -> None:
    canvas.page.keyboard.press("f")
    canvas.page.wait_for_selector(".edit-overlay canvas")
    width, height = canvas.value("[m.drawing.width, m.drawing.height]")
    canvas.page.mouse.move(*canvas.place(width, height / 2))
    canvas.page.mouse.down()
    canvas.page.mouse.move(*canvas.place(width + pixels / 2, height / 2), steps=3)
    canvas.page.mouse.move(*canvas.place(width + pixels, height / 2), steps=3)
    canvas.page.mouse.up()


def test_a_mask_and_a_dragged_frame_are_both_painted_and_nothing_else(canvas: Canvas) -> None:
    canvas.load(noise()).quick()
    canvas.set(size=16, hardness=1, blur=0, overlap=0)
    canvas.stroke((16, 16), (16, 40))
    before, mask = canvas.pixels(), canvas.mask()
    drag_right_edge(canvas, 16)
    request = canvas.generate()
    assert request["outpaint"] is None
    assert request["strength"] == 1
    after = canvas.pixels()
    assert after.shape == (64, 80, 4)
    old = after[:, :64]
    assert same(before, old, mask == 0)
    assert not same(before, old, mask > 0)
    # Nothing of the added part is the border that was repeated as its ground.
    assert not np.array_equal(after[:, 64:], np.repeat(before[:, 63:], 16, axis=1))


@pytest.mark.slow
def test_a_reload_restores_layers_masks_and_the_unsent_prompt(canvas: Canvas) -> None:
    canvas.load(noise())
    page = canvas.page
    canvas.set(size=12, hardness=0.3)
    canvas.stroke((10, 10), (50, 50))
    page.keyboard.press("p")
    canvas.stroke((50, 10), (10, 50))
    page.fill("#edit-prompt", "a lighthouse")
    pixels, mask = canvas.pixels(), canvas.mask()
    canvas.value("m.settled()")
    page.reload()
    page.wait_for_selector(".edit-layer")
    assert page.input_value("#edit-prompt") == "a lighthouse"
    assert np.array_equal(canvas.mask(), mask)
    assert np.array_equal(canvas.pixels(), pixels)
    assert page.locator(".edit-layer").count() == 3


@pytest.fixture
def phone(studio_page: Server, browser: Browser) -> Iterator[Canvas]:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, locale="en-GB"
    )
    made = Canvas(context.new_page(), studio_page).open()
    yield made
    assert not made.problems


def touch(devtools: CDPSession, kind: str, *points: tuple[float, float]) -> None:
    listed = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
    devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": listed})


@pytest.mark.slow
def test_a_finger_paints_and_two_zoom(phone: Canvas) -> None:
    phone.load(noise())
    devtools = phone.page.context.new_cdp_session(phone.page)
    phone.set(size=8, hardness=1)
    touch(devtools, "touchStart", phone.place(16, 32))
    for x in (24, 32, 40, 48):
        touch(devtools, "touchMove", phone.place(x, 32))
    touch(devtools, "touchEnd")
    mask = phone.mask()
    assert mask[32, 16:48].all()
    assert not mask[10].any()
    zoom = phone.value("m.zoom.value")
    touch(devtools, "touchStart", phone.place(24, 10))
    touch(devtools, "touchStart", phone.place(24, 10), phone.place(40, 10))
    first, second = phone.place(20, 10), phone.place(44, 10)
    touch(devtools, "touchMove", first, second)
    touch(devtools, "touchEnd")
    assert phone.value("m.zoom.value") == pytest.approx(zoom * 1.5, rel=0.02)
    assert np.array_equal(phone.mask(), mask)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    small = phone.page.eval_on_selector_all(
        ".edit button:not([hidden]), .edit summary",
        """all => all.filter(one => one.offsetParent && one.getBoundingClientRect().height < 40)
          .map(one => one.id || one.className)""",
    )
    assert small == []


def stroke_milliseconds(canvas: Canvas, moves: int = 60) -> dict[str, float]:
    """What one move of a stroke costs: in its handler, and all of the main thread's work for it.

    Args:
        canvas: with a picture on it and the brush in hand.
        moves: how many.

    Returns:
        `handler`, the median in ms; `main_thread`, the mean of its processor time in ms, with style, layout, paint and
        the browser's events.
    """
    devtools = canvas.page.context.new_cdp_session(canvas.page)
    # Processor time: what other processes of the machine take is not the page's.
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def task_seconds() -> float:
        found = devtools.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in found if one["name"] == "TaskDuration"))

    width, height = canvas.value("[m.drawing.width, m.drawing.height]")
    canvas.page.mouse.move(*canvas.place(width * 0.2, height * 0.2))
    canvas.page.mouse.down()
    canvas.value("m.strokeTimes.splice(0)", STAGE)
    left, top = canvas.place(0, 0)
    right, bottom = canvas.place(width, height)
    begun = task_seconds()
    for k in range(moves):
        share = 0.2 + 0.6 * k / moves
        height_share = 0.5 + 0.3 * float(np.sin(12 * share))
        canvas.page.mouse.move(left + (right - left) * share, top + (bottom - top) * height_share)
    spent = task_seconds() - begun
    times = canvas.value("m.strokeTimes.slice()", STAGE)
    canvas.page.mouse.up()
    return {"handler": statistics.median(times), "main_thread": 1000 * spent / moves}


@pytest.mark.slow
def test_a_move_of_the_brush_fits_into_a_frame(canvas: Canvas) -> None:
    canvas.load(noise(768, 768))
    canvas.set(size=80, hardness=0.5)
    spent = stroke_milliseconds(canvas)
    assert spent["handler"] <= FRAME_MILLISECONDS
    assert spent["main_thread"] <= FRAME_MILLISECONDS


@pytest.mark.slow
def test_a_mask_with_words_is_a_region(canvas: Canvas) -> None:
    canvas.load(noise()).quick()
    canvas.set(size=16, hardness=1)
    canvas.stroke((16, 16), (30, 16))
    canvas.page.fill(".edit-region", "a blue cup")
    canvas.page.fill("#edit-prompt", "a table")
    request = canvas.generate()
    assert [region["prompt"] for region in request["regions"]] == ["a blue cup"]
    assert request["prompt"] == "a table"


@pytest.mark.slow
def test_a_picture_of_the_gallery_is_opened_edited_and_kept(canvas: Canvas) -> None:
    canvas.load(noise()).quick()
    canvas.generate()
    parent = canvas.server.studio.pictures.search(limit=1)[0]
    canvas.open(f"/edit/{parent.id}")
    until(canvas.page, "location.pathname === '/edit'")
    until(canvas.page, "document.querySelectorAll('.edit-layer').length === 1")
    canvas.set(size=20, hardness=1)
    canvas.page.keyboard.press("p")
    canvas.stroke((10, 10), (50, 10))
    shown = canvas.pixels()
    canvas.page.get_by_role("button", name="More actions").click()
    canvas.page.get_by_role("menuitem", name="Save to the gallery").click()
    canvas.page.get_by_text("Saved to the gallery.").wait_for()
    kept = canvas.server.studio.pictures.search(limit=1)[0]
    assert kept.id != parent.id
    assert kept.parsed().notes[-1] == f"edited by hand from {parent.id}"
    stored = Image.open(canvas.server.studio.settings.data / "pictures" / kept.file).convert("RGBA")
    assert np.array_equal(np.asarray(stored), shown)


@pytest.mark.slow
def test_a_preprocessors_picture_is_seen_before_anything_is_painted(canvas: Canvas) -> None:
    canvas.load(noise())
    canvas.page.click("#edit-controls summary")
    canvas.page.click("#edit-add-control")
    preview = canvas.page.wait_for_selector(".edit-control-preview")
    assert preview is not None
    until(canvas.page, "document.querySelector('.edit-control-preview').naturalWidth === 64")
