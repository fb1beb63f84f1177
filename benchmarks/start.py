"""A cold start side by side: import, load a tiny Stable Diffusion folder, one sampling step; a new process each time.

Run: python benchmarks/start.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
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
PEERS = {"ours": OURS, "diffusers": THEIRS}


def tiny_folder(folder: Path) -> Path:
    """A diffusers folder of a tiny SD 1.x model with random weights."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    return write_model(bundle_to_write(untrained_bundle()), folder / "tiny", "diffusers")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as place:
        folder = tiny_folder(Path(place))
        for _ in range(rounds + 1):
            for name, code in PEERS.items():
                started = time.perf_counter()
                command = [sys.executable, "-W", "ignore", "-c", code.format(folder=str(folder))]
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    # The first round warms the disk's cache and does not count.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        spread = f"from {min(seconds[name][1:]):.2f} to {max(seconds[name][1:]):.2f}"
        sys.stdout.write(f"{name:10} {median:6.2f} s ({spread}), {median / medians['diffusers']:.2f} of diffusers\n")


if __name__ == "__main__":
    main()
