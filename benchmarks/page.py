"""Figures of the web page in Chromium: first load, feedback, previews, strokes, idle requests.

    python benchmarks/page.py                          # this checkout, two to three minutes
    python benchmarks/page.py --beside OLD_CHECKOUT    # another checkout in the same run, taking turns

The studio is `gouache serve` as users start it, on an empty folder, with the shipped model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PROMPT = "textarea#prompt, #prompt textarea"
BUTTON = "#paint-button, #paint"
SIDE = 768
MOVES = 60
IDLE_SECONDS = 60.0
# Tells when the first thing changes after a click on the button, and when the first finished picture is drawn.
WATCH = """
(button) => {
  const seen = (window.seen = {});
  const known = new Set([...document.images].map((image) => image.src));
  const now = () => performance.timeOrigin + performance.now();
  const look = new MutationObserver(() => {
    seen.change ??= now();
    for (const image of document.querySelectorAll("img")) {
      if (!image.src.includes("/v1/pictures/") || known.has(image.src)) continue;
      known.add(image.src);
      image.decode().then(() => { seen.picture ??= now(); }, () => {});
    }
    for (const image of document.querySelectorAll("img[src^='data:image/jpeg'], img[src*='preview']")) {
      if (seen.previews?.includes(image.src)) continue;
      (seen.previews ??= []).push(image.src);
      (seen.previewTimes ??= []).push(now());
    }
  });
  document.querySelector(button).addEventListener("click", () => {
    seen.click = now();
    look.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  }, { capture: true, once: true });
}
"""


@contextlib.contextmanager
def served(checkout: Path) -> Iterator[str]:
    """The studio of a checkout on an empty folder; gives its address once its worker is ready."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "GOUACHE_OFFLINE": "1"}
        command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", folder, "--threads", "1"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            url = process.stdout.readline().strip()
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                        break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def opened(browser: Browser) -> tuple[Page, CDPSession, list[float]]:
    """A tab with an empty cache, its protocol, and the bytes of each answer that it fetched."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US").new_page()
    page.set_default_timeout(120_000)
    protocol = page.context.new_cdp_session(page)
    protocol.send("Network.enable")
    protocol.send("Performance.enable")
    fetched: list[float] = []
    protocol.on("Network.loadingFinished", lambda event: fetched.append(event["encodedDataLength"]))
    return page, protocol, fetched


def first_load(browser: Browser, url: str) -> dict[str, float]:
    """Requests and bytes of a tab in which nobody does anything, and seconds until the prompt holds what is written."""
    page, _, fetched = opened(browser)
    started: list[str] = []
    page.on("request", lambda request: started.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"{url}/")
    page.locator(PROMPT).first.wait_for()
    page.wait_for_timeout(2000)
    page.context.close()
    page, _, _ = opened(browser)
    begun = time.perf_counter()
    page.goto(f"{url}/", wait_until="commit")
    page.locator(PROMPT).first.fill("a red apple")
    seconds = time.perf_counter() - begun
    page.context.close()
    return {"load requests": len(started), "load kB": sum(fetched) / 1000, "load s": seconds}


def painting(browser: Browser, url: str) -> dict[str, float]:
    """Seconds from the click to the first change, from a preview's to its being drawn, and from the job's end to the
    finished picture; what the server tells at which time is read by another client of its own."""
    page, _, _ = opened(browser)
    page.goto(f"{url}/")
    page.locator(PROMPT).first.fill("a red apple")
    page.wait_for_timeout(1500)
    button = page.locator(BUTTON).first
    page.evaluate(WATCH, BUTTON)
    known = {job["id"] for job in httpx.get(f"{url}/v1/jobs", timeout=30).json()["jobs"]}
    button.click()
    job = None
    steps: list[float] = []
    while job is None:
        listed = httpx.get(f"{url}/v1/jobs", timeout=30).json()["jobs"]
        job = next((one["id"] for one in listed if one["id"] not in known), None)
    done = 0.0
    with httpx.stream("GET", f"{url}/v1/jobs/{job}/events?previews=true", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: preview"):
                steps.append(time.time() * 1000)
            if line == "event: done":
                done = time.time() * 1000
    # `wait_for_function` would compile its text in the page, which the policy forbids.
    for _ in range(600):
        if page.evaluate("window.seen.picture"):
            break
        page.wait_for_timeout(100)
    seen: dict[str, Any] = page.evaluate("window.seen")
    page.context.close()
    drawn = seen.get("previewTimes", [])
    late = [min((after - told for after in drawn if after > told - 50), default=float("nan")) for told in steps]
    return {
        "feedback s": (seen["change"] - seen["click"]) / 1000,
        "preview s": statistics.median(late) / 1000 if late else float("nan"),
        "picture s": (seen["picture"] - done) / 1000,
    }


def stroke(browser: Browser, url: str, file: Path) -> dict[str, float]:
    """Milliseconds of the page's main thread for one move of a brush over a picture of 768 pixels."""
    page, protocol, _ = opened(browser)
    page.goto(f"{url}/")
    page.locator("#nav-edit, #tabs button[role=tab]:nth-of-type(2)").first.click()
    page.locator("#edit-input, #canvas input[type=file]").first.set_input_files(file)
    canvas = page.locator("#canvas canvas, .view-edit canvas").last
    canvas.wait_for()
    page.wait_for_timeout(3000)
    brush = page.locator("#canvas button[aria-label*=rush], #canvas button[title*=rush]")
    if brush.count():
        brush.first.click()
    box = canvas.bounding_box()
    if box is None:
        raise RuntimeError("the canvas is not shown")
    left, top = box["x"] + box["width"] / 2 - 90, box["y"] + min(box["height"], 500) / 2 - 30
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 2, top + 2)
    page.wait_for_timeout(500)

    def busy() -> float:
        metrics = protocol.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    before, begun = busy(), time.perf_counter()
    for move in range(MOVES):
        page.mouse.move(left + 3 * move, top + 20 * (move % 4))
    wall = time.perf_counter() - begun
    spent = busy() - before
    page.mouse.up()
    page.context.close()
    return {"stroke ms": 1000 * spent / MOVES, "stroke wall ms": 1000 * wall / MOVES}


def idle(browser: Browser, url: str) -> dict[str, float]:
    """Requests in a minute in which nobody does anything."""
    page, _, _ = opened(browser)
    page.goto(f"{url}/")
    page.locator(PROMPT).first.wait_for()
    page.wait_for_timeout(3000)
    started: list[str] = []
    page.on("request", lambda request: started.append(request.url))
    page.wait_for_timeout(IDLE_SECONDS * 1000)
    page.context.close()
    return {"idle requests a minute": len(started) * 60 / IDLE_SECONDS}


def measured(browser: Browser, url: str, file: Path, rounds: int) -> dict[str, float]:
    """Every figure; the median of the rounds where they scatter."""
    first_load(browser, url)  # The server's own first reply compiles and compresses what later ones find.
    loads = [first_load(browser, url) for _ in range(rounds)]
    paints = [painting(browser, url) for _ in range(rounds)]
    strokes = [stroke(browser, url, file) for _ in range(rounds)]
    figures: dict[str, float] = {}
    for runs in (loads, paints, strokes):
        figures |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return figures | idle(browser, url)


def main() -> None:
    """Measure, print a table, and store it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="another checkout of gouache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("needs Chromium; on Debian: apt-get install chromium")
    checkouts = {"this checkout": Path(__file__).parents[1]}
    if given.beside:
        checkouts = {"beside": given.beside.resolve()} | checkouts
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "picture.png"
        Image.effect_noise((SIDE, SIDE), 40).convert("RGB").save(file)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, checkout in checkouts.items():
            with served(checkout) as url:
                figures[name] = measured(browser, url, file, given.rounds)
        browser.close()
    rows = list(next(iter(figures.values())))
    lines = ["| figure | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    lines += [f"| {row} | " + " | ".join(f"{one[row]:.3g}" for one in figures.values()) + " |" for row in rows]
    print("\n".join(lines))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
