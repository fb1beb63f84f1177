"""The Gallery view in a real Chromium, by its default paths: search, select, viewer, settings that come back, phone."""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw, PngImagePlugin
from tests.serve.conftest import CHROMIUM, until

from gouache.pipeline.output.metadata import OWN, encode_picture
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe, package_versions
from gouache.pipeline.request import Request
from gouache.serve.store.gallery import row_of
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page
    from tests.serve.conftest import Server, StartServer

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(900),
]
PROMPTS = ("a red fox in the snow", "an owl at night", "a cat under a tree")
SEED = 2**62 + 12345
"""Beyond JavaScript's exact numbers."""


def picture(number: int) -> Image.Image:
    made = Image.new("RGB", (96, 96), (40 * number % 256, 90, 200 - 30 * number % 200))
    ImageDraw.Draw(made).ellipse((10 + number, 20, 60, 70), fill=(240, 200, 20 * number % 256))
    return made


def listed(studio: Studio, number: int, *, owner: str = "local") -> str:
    """A finished picture, as a worker lists it; gives its id."""
    asked = Request.from_dict({"prompt": PROMPTS[number % 3], "seed": SEED + number, "width": 96, "height": 96})
    job, _ = studio.jobs.submit(asked, owner=owner, source="v1")
    held = studio.leases.claim("w", 60)
    assert held is not None
    machine = Machine(device="cpu", dtype="float32", processor="x", threads=1)
    resolved = asked.replace({"model": "pocket", "sampler": ("euler", "dpmpp_2m")[number % 2], "schedule": "karras"})
    recipe = Recipe(
        request=resolved.replace({"num_inference_steps": 8}),
        model=ModelRef(name="pocket", family="pocket"),
        machine=machine,
        versions=package_versions(),
    )
    data = encode_picture(picture(number), "png", {OWN: recipe.to_json()})
    name = f"{job.id}-0000.png"
    studio.file_store.keep("pictures", name, data)
    with studio.database.write() as connection:
        studio.leases.add_picture(connection, row_of(held, 0, name, data, (96, 96), recipe))
        assert studio.leases.finish(connection, held)
    studio.notifier.notify(job.id)
    return studio.pictures.of_job(job.id)[0].id


class Gallery:
    """The view with some pictures, the newest first in `ids`."""

    def __init__(self, server: Server, context: BrowserContext, count: int) -> None:
        self.server, self.studio = server, server.studio
        self.ids = [listed(server.studio, number) for number in range(count)][::-1]
        self.faults: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.open("/gallery")

    def open(self, path: str) -> None:
        self.page.goto(self.server.url + path)

    def cell(self, number: int) -> Any:
        return self.page.locator(f'[data-id="{self.ids[number]}"]')

    def shows(self, *numbers: int) -> None:
        """Wait until exactly these pictures are in the grid, in this order."""
        wanted = [self.ids[number] for number in numbers]
        until(
            self.page,
            "ids => JSON.stringify([...document.querySelectorAll('.gallery-cell')].map(one => one.dataset.id)) === ids",
            arg=str(wanted).replace("'", '"').replace(", ", ","),
        )


@pytest.fixture
def server(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    return start_server(page=True, workers=0)


@pytest.fixture
def gallery(server: Server, browser: Browser) -> Gallery:
    return Gallery(server, browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US"), 6)


def test_searching_filtering_and_what_is_new(gallery: Gallery) -> None:
    page = gallery.page
    gallery.shows(0, 1, 2, 3, 4, 5)
    page.locator("#search").fill("FOX snow")
    gallery.shows(2, 5)
    assert "q=FOX+snow" in page.url
    page.reload()
    gallery.shows(2, 5)
    page.locator("#search").fill("")
    gallery.shows(0, 1, 2, 3, 4, 5)
    page.locator("#filters").click()
    page.locator("#filter-sampler option[value=euler]").wait_for(state="attached")
    page.locator("#filter-sampler").select_option("euler")
    gallery.shows(1, 3, 5)
    page.locator("#filter-seed").fill(str(SEED + 2))
    page.locator("#filter-seed").press("Enter")
    gallery.shows(3)
    page.locator("#reset-filters").click()
    gallery.shows(0, 1, 2, 3, 4, 5)
    gallery.ids.insert(0, listed(gallery.studio, 6))
    gallery.shows(0, 1, 2, 3, 4, 5, 6)  # Told by the event stream.
    page.locator("#search").fill("nothing of the kind")
    page.locator("#none-found").wait_for()
    assert gallery.faults == []


@pytest.mark.slow
def test_many_are_selected_marked_packed_and_deleted_with_a_way_back(gallery: Gallery) -> None:
    page, ids = gallery.page, gallery.ids
    gallery.shows(0, 1, 2, 3, 4, 5)
    gallery.cell(1).locator("a").click(modifiers=["ControlOrMeta"])
    gallery.cell(3).locator("a").click(modifiers=["Shift"])
    assert page.locator("#selected").inner_text().strip() == "3 selected"
    page.locator("#bulk-star").click()
    until(page, "() => document.querySelectorAll('.gallery-starred').length === 3")
    page.locator("#bulk-tag").click()
    page.locator("#new-tags").fill("winter, cold")
    page.locator("#tags-save").click()
    until(page, "() => !document.querySelector('dialog')")
    page.wait_for_timeout(200)
    assert gallery.studio.pictures.tags_of(ids[1]) == ["cold", "winter"]
    with page.expect_download() as download:
        page.locator("#bulk-zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == 3
    page.locator("#bulk-delete").click()
    gallery.shows(0, 4, 5)
    page.get_by_role("button", name="Undo").click()
    gallery.shows(0, 1, 2, 3, 4, 5)
    page.locator("#only-starred").click()
    gallery.shows(1, 2, 3)
    page.locator("#all-pictures").click()
    gallery.shows(0, 1, 2, 3, 4, 5)
    page.keyboard.press("ControlOrMeta+a")
    until(page, "() => document.querySelector('#selected').innerText.includes('6')")
    page.keyboard.press("Escape")
    page.locator("#selected").wait_for(state="detached")
    assert gallery.faults == []


@pytest.mark.slow
def test_pictures_are_dragged_onto_a_board(gallery: Gallery) -> None:
    page = gallery.page
    page.locator("#add-board").click()
    page.locator("#board-name").fill("Foxes")
    page.locator("#board-save").click()
    board = page.locator(".gallery-place", has_text="Foxes")
    board.wait_for()
    until(page, "() => !document.querySelector('dialog')")
    gallery.cell(2).locator("a").drag_to(board)
    page.locator(".gallery-place", has_text=re.compile(r"Foxes\s*1")).wait_for()
    board.locator("button").click()
    gallery.shows(2)
    page.locator("#rename-board").click()
    page.locator("#board-name").fill("Red foxes")
    page.locator("#board-save").click()
    page.locator(".gallery-place", has_text="Red foxes").wait_for()
    page.locator("#delete-board").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete board").click()
    gallery.shows(0, 1, 2, 3, 4, 5)
    assert gallery.studio.pictures.boards("local") == {}
    assert gallery.faults == []


def kept(page: Page, name: str = "paint") -> dict[str, Any]:
    """What the Paint view holds, as the server keeps it."""
    page.wait_for_timeout(900)
    return dict(page.request.get(page.url.split("/gallery")[0].split("/paint")[0] + "/v1/page").json()["state"][name])


@pytest.mark.slow
def test_the_viewer_leads_through_the_list_and_gives_settings_back(gallery: Gallery) -> None:
    page, ids = gallery.page, gallery.ids
    gallery.cell(1).locator("a").click()
    page.wait_for_url(f"**/gallery/{ids[1]}")
    page.locator("#value-seed").wait_for()
    assert page.locator("#value-seed").inner_text() == str(SEED + 4)
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    page.wait_for_url(f"**/gallery/{ids[2]}")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/gallery/{ids[1]}")
    page.locator("#viewer-before").click()
    page.wait_for_url(f"**/gallery/{ids[0]}")
    page.reload()
    page.locator("#value-seed").wait_for()
    page.locator("#stage").hover()
    before = page.locator("#zoom").inner_text()
    page.mouse.wheel(0, -500)
    until(page, "before => document.querySelector('#zoom').innerText !== before", arg=before)
    page.keyboard.press("0")
    until(page, "before => document.querySelector('#zoom').innerText === before", arg=before)
    page.locator("#use-num_inference_steps").click()
    assert kept(page) == {"prompt": "", "num_inference_steps": 8}
    page.locator("#star").click()
    until(page, "() => document.querySelector('#star').ariaPressed === 'true'")
    page.locator(".gallery-raw summary").click()
    page.locator(".gallery-raw pre").wait_for()
    assert str(SEED + 5) in page.locator(".gallery-raw pre").inner_text()
    page.locator("#use-settings").click()
    page.wait_for_url("**/paint")
    assert kept(page) | {"prompt": ""} == {"prompt": "", "seed": SEED + 5, "width": 96, "height": 96, "model": "pocket"}
    page.go_back()
    page.wait_for_url(f"**/gallery/{ids[0]}")
    page.locator("#delete").click()
    page.wait_for_url(f"**/gallery/{ids[1]}")
    page.locator("#viewer-close").click()
    gallery.shows(1, 2, 3, 4, 5)
    assert gallery.faults == []


@pytest.mark.slow
def test_two_are_compared(gallery: Gallery) -> None:
    page, ids = gallery.page, gallery.ids
    for number in (0, 1):
        gallery.cell(number).locator(".gallery-tick").click()
    page.locator("#bulk-compare").click()
    page.wait_for_url(f"**/gallery/compare/{ids[0]}/{ids[1]}")
    page.locator("tbody tr").first.wait_for()
    told = {row.split("\t")[0] for row in page.locator("tbody").inner_text().splitlines()}
    assert told >= {"Prompt", "Seed", "Sampler"}
    page.locator("#compare-slider").fill("20")
    assert "80%" in str(page.locator(".gallery-pair img").nth(1).evaluate("one => one.style.clipPath"))
    page.keyboard.press("Escape")
    gallery.shows(0, 1, 2, 3, 4, 5)
    assert gallery.faults == []


DROP = """async ({bytes, name, type}) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
  document.querySelector("main").dispatchEvent(drop);
}"""


@pytest.mark.slow
def test_a_dropped_file_gives_its_settings_and_never_replaces_the_page(gallery: Gallery) -> None:
    page = gallery.page
    gallery.shows(0, 1, 2, 3, 4, 5)
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a green pear\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6, Seed: 77, Size: 512x512, "
        "Clip skip: 2, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent, Model: nowhere",
    )
    for info in (None, text):
        buffer = io.BytesIO()
        picture(3).save(buffer, "PNG", pnginfo=info)
        page.evaluate(DROP, {"bytes": list(buffer.getvalue()), "name": "pear.png", "type": "image/png"})
        if info is None:
            page.get_by_text("pear.png holds no settings").wait_for()
            assert page.url.endswith("/gallery")
    page.wait_for_url("**/paint")
    found = kept(page)
    assert found["prompt"] == "a green pear"
    assert (found["sampler"], found["schedule"], found["clip_skip"], found["seed"]) == ("dpmpp_2m", "karras", 2, 77)
    assert found["hires"] == {"strength": 0.5, "upscaler": "latent"} or found["hires"] == {"strength": 0.5}
    assert "model" not in found
    assert page.locator(".toast").filter(has_text=re.compile("model: not on this server")).count() == 1
    assert gallery.faults == []


@pytest.mark.slow
def test_on_a_phone_a_long_press_selects_and_a_swipe_turns_the_page(server: Server, browser: Browser) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, locale="zh-CN"
    )
    gallery = Gallery(server, context, 4)
    page = gallery.page
    gallery.shows(0, 1, 2, 3)
    box = gallery.cell(1).bounding_box()
    assert box is not None
    assert box["width"] >= 100
    touch = context.new_cdp_session(page)
    point = {"x": box["x"] + 60, "y": box["y"] + 70}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    page.locator("#selected").wait_for()
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(200)
    assert page.url.endswith("/gallery")
    gallery.cell(2).locator("a").tap()
    until(page, "() => document.querySelectorAll('.gallery-cell.chosen').length === 2")
    page.locator("#clear-selection").tap()
    gallery.cell(1).locator("a").tap()
    page.wait_for_url(f"**/gallery/{gallery.ids[1]}")
    page.locator("#value-seed").wait_for()
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": 300, "y": 300}]})
    for x in (240, 180, 120):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": 300}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_url(f"**/gallery/{gallery.ids[2]}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        "[...document.querySelectorAll('main button, main a.button, main select')].filter(one => one.offsetWidth)"
        ".map(one => [one.id || one.ariaLabel || one.className, one.offsetHeight]).filter(([, height]) => height < 39)"
    )
    assert small == []
    assert gallery.faults == []


FRAMES = """() => new Promise((done) => {
  const took = [];
  let [last, at] = [performance.now(), scrollY];
  const step = (now) => {
    took.push(now - last);
    last = now;
    at -= 400;
    scrollTo(0, at);
    if (took.length < 90) requestAnimationFrame(step); else done(took.slice(5));
  };
  requestAnimationFrame(step);
})"""


@pytest.mark.slow
def test_thousands_of_pictures_keep_few_in_the_document(server: Server, browser: Browser) -> None:
    from gouache.serve.store.tables import jobs, pictures

    first = listed(server.studio, 0)
    database = server.studio.database
    row, job = (database.row(table.select()) for table in (pictures, jobs))
    assert row is not None
    assert job is not None
    plain, base = dict(row._mapping), dict(job._mapping)
    del plain["seq"], base["seq"]
    many = range(1, 5000)
    with database.write() as connection:
        connection.execute(jobs.insert(), [base | {"id": f"{k:032x}", "idempotency_key": None} for k in many])
        connection.execute(
            pictures.insert(),
            [plain | {"id": f"{k:032x}-0000", "job": f"{k:032x}", "file": f"{k:032x}-0000.png"} for k in many],
        )
    thumbnail = server.studio.thumbnail(server.studio.pictures.get(first))
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.route("**/thumbnail", lambda route: route.fulfill(body=thumbnail, content_type="image/webp"))
    page.goto(f"{server.url}/gallery")
    page.locator("#found").filter(has_text="5000").wait_for()
    most = 0
    while page.locator(f'[data-id="{first}"]').count() == 0:
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_timeout(60)
        most = max(most, page.locator(".gallery-cell").count())
    assert most < 120
    frames = sorted(page.evaluate(FRAMES))
    assert frames[len(frames) // 2] < 100, frames
