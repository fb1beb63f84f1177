"""A cold start, in a new process each time, and what loading a large file costs.

    python benchmarks/start.py [--rounds 5]   # beside diffusers: import, load a tiny Stable Diffusion folder, one step
    python benchmarks/start.py --paint        # `gouache paint` of the shipped model, and what it is made of
    python benchmarks/start.py --file MODEL   # loading MODEL from the page cache, beside `cat MODEL > /dev/null`

Seconds by the clock, and of the processor: of a process and all its threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

OURS = """
from gouache import Pipeline, Request
Pipeline.load({folder!r}).paint(Request(prompt="a cat", seed=1, num_inference_steps=1, width=64, height=64))
"""
THEIRS = """
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r}, safety_checker=None, requires_safety_checker=False)
pipe("a cat", num_inference_steps=1, width=64, height=64)
"""
LAPS = """
import json, sys, time
laps = {}
wall, busy = time.perf_counter(), 0.0
def lap(name):
    global wall, busy
    laps[name] = (time.perf_counter() - wall, time.process_time() - busy)
    wall, busy = time.perf_counter(), time.process_time()
"""
PAINT = """
lap("Python")
import torch; lap("import torch")
import gouache.cli.main, gouache.cli.paint, gouache.pipeline.pipeline; lap("import gouache")
pipeline = gouache.pipeline.pipeline.Pipeline.load(); lap("load")
request = gouache.cli.paint.Request(prompt="a red fox in the snow", seed=1)
pipeline.paint(request)[0].encode("png"); lap("paint")
pipeline.paint(request)[0].encode("png"); lap("paint again")
print(json.dumps(laps))
"""
FILE = """
import gouache.cli.main, gouache.cli.paint, gouache.pipeline.pipeline; lap("imports")
gouache.pipeline.pipeline.Pipeline.load({file!r}, dtype={dtype!r}); lap("load")
print(json.dumps(laps))
"""
Laps = dict[str, tuple[float, float]]
"""What was done -> seconds by the clock, of the processor."""


def run(command: Sequence[str]) -> tuple[str, tuple[float, float]]:
    """What a command prints, and its seconds."""
    started, before = time.perf_counter(), os.times()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    after = os.times()
    busy = after.children_user - before.children_user + after.children_system - before.children_system
    return out, (time.perf_counter() - started, busy)


def python(code: str) -> list[str]:
    """A command that runs some code."""
    return [sys.executable, "-W", "ignore", "-c", code]


def tiny_folder(folder: Path) -> Path:
    """A diffusers folder of a tiny SD 1.x model with random weights."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    return write_model(bundle_to_write(untrained_bundle()), folder / "tiny", "diffusers")


def beside_diffusers() -> Laps:
    """One round of the tiny model."""
    with tempfile.TemporaryDirectory() as place:
        folder = str(tiny_folder(Path(place)))
        codes = {"gouache": OURS, "diffusers": THEIRS}
        return {name: run(python(code.format(folder=folder)))[1] for name, code in codes.items()}


def default_command() -> Laps:
    """One round of the command that everybody tries first, and of its parts in a process of their own."""
    with tempfile.TemporaryDirectory() as place:
        picture = str(Path(place) / "fox.png")
        whole = run([sys.executable, "-m", "gouache", "paint", "a red fox in the snow", "-o", picture])[1]
    return {"gouache paint": whole, **json.loads(run(python(LAPS + PAINT))[0])}


def large_file(file: Path, dtype: str | None) -> Laps:
    """One round of a file that was read before."""
    cat = run(["sh", "-c", 'cat "$1" > /dev/null', "sh", str(file)])[1]
    laps = json.loads(run(python(LAPS + FILE.format(file=str(file), dtype=dtype)))[0])
    return {"cat": cat, **laps}


def table(rounds: Sequence[Mapping[str, Sequence[float]]], base: str) -> str:
    """Medians over all rounds but the first, which warms the disk's cache."""
    lines = [f"| | seconds | from | to | of {base} | processor seconds |", "|---|--:|--:|--:|--:|--:|"]
    counted = rounds[1:]
    whole = statistics.median(one[base][0] for one in counted)
    for name in counted[0]:
        seconds, busy = [one[name][0] for one in counted], statistics.median(one[name][1] for one in counted)
        middle = statistics.median(seconds)
        lines.append(
            f"| {name} | {middle:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {middle / whole:.2f} | {busy:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paint", action="store_true", help="the shipped model by the default command")
    parser.add_argument("--file", type=Path, help="a large model to load")
    parser.add_argument("--dtype", help="as that of gouache paint, for --file")
    given = parser.parse_args()

    def measured() -> tuple[Laps, str]:
        if given.file is not None:
            return large_file(given.file, given.dtype), "cat"
        return (default_command(), "gouache paint") if given.paint else (beside_diffusers(), "diffusers")

    rounds = [measured() for _ in range(given.rounds + 1)]
    sys.stdout.write(table([laps for laps, _ in rounds], rounds[0][1]) + "\n")


if __name__ == "__main__":
    main()
