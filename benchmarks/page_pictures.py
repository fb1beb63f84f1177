"""Takes the README's pictures of the page: serves a studio on an empty folder, paints, and looks at it in Chromium.

    python benchmarks/page_pictures.py docs/pictures

Paints with the shipped model; `--model FOLDER` takes another, `--dark` the dark colours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

PROMPTS = (
    "a red apple, 3d style",
    "a sleeping cat, noto style",
    "a rocket, flat style",
    "a blue butterfly, 3d style",
    "a strawberry cake, noto style",
    "a green frog, twemoji style",
    "a hot air balloon, 3d style",
    "a yellow duck, flat style",
    "a snowy mountain, noto style",
    "a purple octopus, 3d style",
    "a slice of watermelon, twemoji style",
)
LAST = "a red fox in the snow"
WIDTH, HEIGHT = 1280, 860
SECONDS = 600.0


@contextlib.contextmanager
def studio(data: Path, model: Path | None) -> Iterator[str]:
    """A server on a free port; gives its address."""
    options = [] if model is None else ["--models", str(model.parent), "--model", model.name]
    command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--data", str(data), *options]
    environment = os.environ | {"GOUACHE_DATA": str(data)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        if process.stdout is None:
            raise OSError("the server has no output")
        address = process.stdout.readline().strip()
        _wait_for(address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_for(address: str) -> None:
    """The address is printed before the server answers there."""
    until = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{address}/healthz").raise_for_status()
            return
        except httpx.ConnectError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def painted(client: httpx.Client, prompt: str, *, seed: int, count: int = 1) -> list[str]:
    """Paint and wait; gives the pictures' ids."""
    request = {"prompt": prompt, "seed": seed, "count": count}
    job = client.post("/v1/jobs", json={"request": request}).raise_for_status().json()
    until = time.monotonic() + SECONDS
    while job["state"] not in ("done", "failed", "cancelled"):
        if time.monotonic() > until:
            raise TimeoutError(f"{prompt} is {job['state']} after {SECONDS:.0f} s")
        time.sleep(0.2)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    if job["state"] != "done":
        raise RuntimeError(f"{prompt}: {job['error']}")
    return list(job["pictures"])


def look(page: Page, address: str, shown: str, folder: Path) -> None:
    """Three pictures: Paint with its newest job, the gallery, Edit with a picture on which a mask is brushed."""
    page.goto(f"{address}/paint")
    page.locator(".paint-thumb[data-picture]").nth(5).wait_for()
    page.fill("#prompt", LAST)
    page.wait_for_timeout(2500)
    page.screenshot(path=str(folder / "paint.png"))
    page.goto(f"{address}/gallery")
    page.locator(".gallery-cell img").nth(5).wait_for()
    page.wait_for_timeout(2500)
    page.screenshot(path=str(folder / "gallery.png"))
    page.goto(f"{address}/edit/{shown}")
    page.locator(".edit-layer").first.wait_for()
    page.fill("#edit-prompt", "with a party hat")
    page.wait_for_timeout(1500)
    box = page.locator("#edit-stage").bounding_box()
    if box is None:
        raise RuntimeError("the canvas is not shown")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    page.mouse.move(x - 60, y)
    page.mouse.down()
    page.mouse.move(x + 60, y - 10, steps=12)
    page.mouse.up()
    page.wait_for_timeout(1500)
    page.screenshot(path=str(folder / "edit.png"))


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="Take the README's pictures of the page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as data, studio(Path(data), options.model) as address, sync_playwright() as play:
        with httpx.Client(base_url=address, timeout=60) as client:
            pictures = [painted(client, prompt, seed=7 + i)[0] for i, prompt in enumerate(PROMPTS)]
            client.patch(f"/v1/pictures/{pictures[3]}", json={"starred": True, "tags": ["favourite", "blue"]})
            shown = painted(client, LAST, seed=42, count=4)[0]
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="dark" if options.dark else "light",
            locale="en-US",
        )
        page.set_default_timeout(120_000)
        look(page, address, shown, options.folder)
        browser.close()


if __name__ == "__main__":
    main()
