"""The Queue view and the one stream of news, in a real Chromium."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.serve.conftest import CHROMIUM
from tests.serve.page.test_page_whole import open_view, violations
from tests.serve.served import Process, submit

from gouache.pipeline.request import Request
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from tests.serve.conftest import Server, StartServer

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.timeout(300),
]


def add(studio: Studio, prompt: str, **fields: Any) -> str:
    request = Request(prompt=prompt, seed=1, **{"num_inference_steps": 4, **fields})
    return studio.submit(request, owner="local", source="v1")[0].id


def order(studio: Studio) -> list[str]:
    """The prompts of the jobs that wait, as the server would run them."""
    return [studio.jobs.get(place.id).parsed().prompt for place in studio.order.places("local")]


def shown(page: Page) -> list[str]:
    """The prompts that the page lists as waiting."""
    return page.locator(".queue-job.waiting .queue-title").all_inner_texts()


def until(said: Any, seconds: float = 90) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def drag(page: Page, row: int, to: int) -> None:
    """Drag one waiting job by its handle to the place of another."""
    handle = page.locator(".queue-job.waiting .queue-handle")
    start, end = handle.nth(row).bounding_box(), handle.nth(to).bounding_box()
    assert start is not None
    assert end is not None
    x = start["x"] + start["width"] / 2
    page.mouse.move(x, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(x, (start["y"] + end["y"]) / 2, steps=4)
    page.mouse.move(x, end["y"] + end["height"] / 2 + (8 if to > row else -8), steps=4)
    page.mouse.up()


def test_jobs_are_paused_ordered_cancelled_seen_to_run_and_retried(browser: Browser, studio_page: Server) -> None:
    studio = studio_page.studio
    page, faults = open_view(browser, studio_page, "queue")
    page.click("#queue-pause")
    page.locator(".queue-paused").wait_for()
    with httpx.Client(base_url=studio_page.url) as client:
        for name in ("one", "two", "three", "four"):
            body = {"request": {"prompt": name, "seed": 1, "num_inference_steps": 60, "width": 32, "height": 32}}
            assert client.post("/v1/jobs", json=body).status_code == 202
    until(lambda: shown(page) == ["one", "two", "three", "four"])
    drag(page, 2, 0)
    assert shown(page) == ["three", "one", "two", "four"]
    until(lambda: order(studio) == ["three", "one", "two", "four"])
    handle = page.get_by_role("button", name="Place 1.")
    handle.press("ArrowDown")
    until(lambda: order(studio) == ["one", "three", "two", "four"])
    assert page.evaluate("document.activeElement.closest('li').querySelector('.queue-title').innerText") == "three"
    page.keyboard.press("End")
    until(lambda: order(studio) == ["one", "two", "four", "three"])
    page.get_by_role("button", name="Earlier: four").click()
    until(lambda: order(studio) == ["one", "four", "two", "three"])
    assert page.evaluate("document.activeElement.title") == "Earlier: four"
    page.get_by_role("button", name="Cancel: two").click()
    page.locator(".queue-job.ended.cancelled", has_text="two").wait_for()
    page.reload()
    page.locator(".queue-paused").wait_for()
    assert shown(page) == ["one", "four", "three"]
    assert violations(page) == []
    page.click("#queue-pause")
    page.locator(".queue-job.running", has_text="one").wait_for()
    page.locator(".queue-job.running img[src^='data:image/jpeg']").wait_for()
    assert "%" in page.title()
    page.click("#queue-cancel-all")
    page.get_by_role("dialog").get_by_role("button", name="Cancel them").click()
    page.locator(".queue-job.ended.done", has_text="one").wait_for()
    assert order(studio) == []
    page.locator(".queue-job.ended.cancelled", has_text="three").get_by_role("button", name="Retry").click()
    done = page.locator(".queue-job.ended.done", has_text="three")
    done.wait_for()
    until(lambda: done.locator("img").evaluate("image => image.naturalWidth") > 0)
    done.locator("a").first.click()
    page.wait_for_url("**/gallery/*-0000")
    assert faults == []


@pytest.mark.slow
def test_a_failed_job_says_why_in_the_pages_language(browser: Browser, start_server: StartServer) -> None:
    from gouache.errors import WorkerError

    server = start_server(page=True, workers=0)
    page, _ = open_view(browser, server, "queue", locale="zh-CN", width=390)
    job_id = add(server.studio, "太大的图")
    page.locator(".queue-job.waiting", has_text="太大的图").wait_for()
    job = server.studio.leases.claim("w", 60)
    assert job is not None
    error = WorkerError("memory", given="not enough", expected="room for the pictures")
    server.studio.leases.fail(job, error.to_dict())
    server.studio.notifier.notify(job_id)
    failed = page.locator(".queue-job.ended.failed")
    failed.wait_for()
    assert "内存不足" in failed.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []
    failed.get_by_role("button", name="重试").click()
    page.locator(".queue-job.waiting", has_text="太大的图").wait_for()
    assert server.studio.jobs.get(job_id).state == "queued"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A server with a page in a process of its own, on one port in every life."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Process(tmp_path / "data", page=True, port=port, workers=0)
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_is_noticed_without_a_reload(browser: Browser, process: Process) -> None:
    page = browser.new_page()
    page.goto(f"{process.url}/queue")
    submit(process, "before")
    page.locator(".queue-job.waiting", has_text="before").wait_for()
    page.evaluate("window.stillHere = true")
    process.kill()
    page.locator("#offline").wait_for()
    process.jobs.cancel(process.jobs.listing()[0].id)
    process.start()
    page.locator("#offline").wait_for(state="detached")
    # What happened while nobody told is told now.
    page.locator(".queue-job.ended.cancelled", has_text="before").wait_for()
    submit(process, "after")
    page.locator(".queue-job.waiting", has_text="after").wait_for()
    assert page.evaluate("window.stillHere")


def idle_requests(browser: Browser, server: Server, seconds: float) -> list[str]:
    """Requests of an open page that nobody touches, from a while after it was loaded."""
    page, _ = open_view(browser, server, "queue")
    page.wait_for_timeout(2000)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.wait_for_timeout(1000 * seconds)
    return seen


def test_an_idle_page_asks_for_nothing(browser: Browser, start_server: StartServer) -> None:
    assert idle_requests(browser, start_server(page=True, workers=0), 5) == []


@pytest.mark.slow
def test_an_idle_page_asks_for_nothing_in_two_minutes(browser: Browser, start_server: StartServer) -> None:
    assert idle_requests(browser, start_server(page=True, workers=0), 120) == []


HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.mark.slow
def test_a_hidden_tab_has_no_previews_drawn_and_tells_of_a_long_jobs_end(
    browser: Browser, start_server: StartServer
) -> None:
    server = start_server(page=True, workers=0)
    studio = server.studio
    page, faults = open_view(browser, server, "queue")
    page.context.grant_permissions(["notifications"], origin=server.url)
    page.evaluate(
        """() => {
          window.told = [];
          window.Notification = class { static permission = "granted"; static requestPermission = async () => "granted";
            constructor(title, more) { told.push([title, more.body]); } };
        }"""
    )
    page.click("#queue-notify")
    page.locator("#queue-notify[aria-pressed=true]").wait_for()
    quick, slow = add(studio, "quick"), add(studio, "slow")
    page.locator(".queue-job.waiting").nth(1).wait_for()

    def wants() -> list[bool]:
        return [stream.previews for stream in studio.feed._streams.values()]

    assert wants() == [True]
    page.evaluate(HIDE, True)
    until(lambda: wants() == [False])
    for job_id, seconds in ((quick, 1.0), (slow, 30.0)):
        job = studio.leases.claim("w", 60)
        assert job is not None
        with studio.database.write() as connection:
            studio.leases.finish(connection, job)
            connection.exec_driver_sql(f"UPDATE jobs SET started = finished - {seconds} WHERE id = '{job_id}'")
        studio.notifier.notify(job_id)
    until(lambda: page.evaluate("told.length > 0"))
    page.wait_for_timeout(300)
    assert page.evaluate("told") == [["Your image is ready", "slow"]]
    page.evaluate(HIDE, False)
    until(lambda: wants() == [True])
    assert faults == []


@pytest.mark.slow
def test_of_many_hidden_tabs_one_goes_on_listening_and_none_without_a_job(
    browser: Browser, start_server: StartServer
) -> None:
    server = start_server(page=True, workers=0)
    add(server.studio, "waits")
    context, pages = browser.new_context(), []
    for _ in range(4):
        pages.append(context.new_page())
        pages[-1].clock.install()
        pages[-1].goto(f"{server.url}/queue")
        pages[-1].locator(".queue-job.waiting").wait_for()
    streams = server.studio.feed._streams
    assert len(streams) == 4
    for page in pages[1:]:
        page.evaluate(HIDE, True)
    for page in pages[1:]:
        page.clock.fast_forward(61_000)
    until(lambda: sorted(stream.previews for stream in streams.values()) == [False, True])
    server.studio.cancel_waiting("local")
    pages[0].locator(".queue-job.ended.cancelled").wait_for()

    def nobody_listens_hidden() -> bool:
        for page in pages[1:]:
            page.clock.fast_forward(61_000)
            page.wait_for_timeout(1000)
        return len(streams) == 1

    until(nobody_listens_hidden, 60)
    pages[2].evaluate(HIDE, False)
    pages[2].locator(".queue-job.ended.cancelled").wait_for()
    context.close()
