"""Peak memory of a whole picture at the published shapes of Stable Diffusion, by what is done meanwhile.

    python benchmarks/memory.py --family sd1 --dtypes float32 bfloat16 auto
    python benchmarks/memory.py --family sdxl --dtypes bfloat16 --sequential --vae-tiling

Random weights are written once, in float16, as diffusers lays them out: 2.1 GB for Stable Diffusion 1.5, 7 GB for SDXL.
Each row is a process of its own; the peak is of all its memory, pages of the files among it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gouache import Pipeline, Request
from gouache.checkpoints.formats.header import TensorInfo
from gouache.checkpoints.networks import build_on_meta
from gouache.checkpoints.save import ModelToWrite, NetworkToWrite, write_model
from gouache.config import Config
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.family import FAMILIES
from gouache.pipeline.generate.generation import Progress

BIG_G = {"width": 1280, "inner_width": 5120, "layers": 32, "heads": 20, "activation": "gelu", "pad_id": 0}
PENULTIMATE = {"skip_layers": 1, "final_norm": False}
PARTS: dict[str, dict[str, Config]] = {
    "sd1": {"unet": UNetConfig(), "vae": VAEConfig(), "text_encoder": TextEncoderConfig()},
    "sdxl": {
        "unet": UNetConfig(
            channels=(320, 640, 1280),
            transformer_layers=(0, 2, 10),
            middle_transformer_layers=10,
            heads=(5, 10, 20),
            context_width=2048,
            linear_projection=True,
            pooled_width=2816,
        ),
        "vae": VAEConfig(scale=FAMILIES["sdxl"].latent_scale),
        "text_encoder": TextEncoderConfig.from_dict(PENULTIMATE),
        "text_encoder_2": TextEncoderConfig.from_dict({**BIG_G, **PENULTIMATE, "projection_width": 1280}),
    },
}
"""Family -> its networks at full size."""
REQUEST: dict[str, Any] = {"prompt": "a red fox in the snow", "seed": 1, "guidance_scale": 5.0, "sampler": "euler"}


def random_network(config: Config) -> NetworkToWrite:
    """Numbers that keep the size of what passes through; one row of random numbers for all rows of a matrix, since
    billions of draws would take minutes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()}

    def tensor_of(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) < 2:
            return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
        row = torch.randn(shape[1:], generator=torch.Generator().manual_seed(0)) * row_scale(shape)
        return row.half().expand(shape)

    return NetworkToWrite(config, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, tensor_of)


def row_scale(shape: tuple[int, ...]) -> float:
    """The deviation that keeps a sum over a row at one."""
    return float(torch.Size(shape[1:]).numel() ** -0.5)


def write_random(family: str, folder: Path) -> Path:
    """The model's folder."""
    size = FAMILIES[family].size
    defaults = GenerationDefaults(
        width=size, height=size, num_inference_steps=20, guidance_scale=5.0, sampler="euler", schedule="karras"
    )
    networks = {name: random_network(config) for name, config in PARTS[family].items()}
    model = ModelToWrite(family, "base", family, DenoiserConfig(), defaults, networks)
    return write_model(model, folder / family, "diffusers")


def reset_peak() -> None:
    """Let the peak begin at what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """MB since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def measure(path: str, given: argparse.Namespace, dtype: str) -> dict[str, float]:
    """In the child: load and paint one picture; MB at the peak and seconds of every part."""
    found: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        found[name], found[f"{name} s"] = peak(), time.perf_counter() - started
        sys.stderr.write(f"{name}: {found[name]:.0f} MB\n")
        reset_peak()
        started = time.perf_counter()

    lap("imports")
    pipeline = Pipeline.load(path, device="cpu", dtype=dtype, sequential=given.sequential)
    lap("load")
    request = Request(
        prompt="a fox", seed=1, num_inference_steps=2, vae_tiling=given.vae_tiling, width=given.size, height=given.size
    )
    for event in pipeline.run(request):
        lap(f"step {event.step}" if isinstance(event, Progress) else "decode")
    return found


def main() -> None:
    """Write the weights, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=PARTS, default="sd1")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, help="pixels of a picture's side; default: the family's")
    parser.add_argument("--steps", type=int, default=1, help="network calls on a batch of two")
    parser.add_argument("--sequential", action="store_true", help="one network in memory at a time")
    parser.add_argument("--vae-tiling", action="store_true", help="decode in tiles")
    parser.add_argument("--folder", type=Path, help="where the weights are kept; default: a temporary folder")
    parser.add_argument("--child", nargs=2, metavar=("PATH", "DTYPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(measure(given.child[0], given, given.child[1])) + "\n")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        path = folder / given.family if (folder / given.family).exists() else write_random(given.family, folder)
        for dtype in given.dtypes:
            command = [sys.executable, *sys.argv, "--child", str(path), dtype]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
            parts = [name for name in found if not name.endswith(" s")]
            told = ", ".join(f"{name} {found[name]:.0f} MB {found[f'{name} s']:.1f} s" for name in parts)
            sys.stdout.write(f"{dtype}: peak {max(found[name] for name in parts):.0f} MB; {told}\n")


if __name__ == "__main__":
    main()
