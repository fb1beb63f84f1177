"""Seconds per guided step and per decode with full Stable Diffusion 1.5 shapes, at 512x512 by default, and peak memory.

Ours by torch beside diffusers (eager) and, if asked for, ours by the other engines (`ours-openvino`,
`ours-openvino-int8`, `ours-compile`) and diffusers' translated by OpenVINO (`openvino`): random weights, on the CPU, in
fp32 or, where `BF16` says so, in bf16. Every measurement runs in a
process of its own, the programs take turns, and the median over all rounds is printed with the whole process's peak
memory. A guided step is one network call on a batch of two (with and without the prompt) and their combination.

    python benchmarks/sd15.py --rounds 3
    python benchmarks/sd15.py --peers ours diffusers openvino --steps 2 --json
    OMP_NUM_THREADS=1 python benchmarks/sd15.py --rounds 1 --size 256 --dtypes float32 bfloat16
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PEERS = ("ours", "ours-openvino", "ours-openvino-int8", "ours-compile", "diffusers", "openvino")
BF16 = ("ours", "ours-compile", "diffusers", "openvino")
TASKS = ("step", "decode")
GUIDANCE_SCALE = 7.5

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Inputs:
    """What the networks are given.

    Attributes:
        size: pixels of a picture's side.
        dtype: number format of weights and inputs.
    """

    size: int
    dtype: torch.dtype

    def latents(self) -> Tensor:
        """Noisy latents of one picture. [1, 4, size / 8, size / 8]"""
        side = self.size // 8
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)).to(self.dtype)

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """The latents, their timestep, and the contexts of the prompt and of the empty prompt."""
        context = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(1))
        return self.latents(), torch.tensor(500.0), context.to(self.dtype)


def guided(inputs: Inputs, network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """One guided step's worth of network."""
    latents, timestep, context = inputs.all()
    conditional, unconditional = network(latents.expand(2, -1, -1, -1), timestep.expand(2), context).chunk(2)
    return unconditional + GUIDANCE_SCALE * (conditional - unconditional)


def ours(task: str, inputs: Inputs) -> Run:
    """gouache's own networks."""
    from gouache.models.unet import UNet, UNetConfig
    from gouache.models.vae import AutoencoderKL, VAEConfig
    from gouache.nn.layers import channels_last

    if task == "step":
        unet = channels_last(UNet(UNetConfig())).to(inputs.dtype).eval()
        return lambda: guided(inputs, unet)
    vae = channels_last(AutoencoderKL(VAEConfig())).to(inputs.dtype).eval()
    return lambda: vae.decode(inputs.latents())


def ours_compiled(task: str, inputs: Inputs) -> Run:
    """gouache's U-Net by its engine compile, which leaves the decoder to torch. The first call, untimed, compiles."""
    from gouache.models.unet import UNet, UNetConfig
    from gouache.nn.layers import channels_last
    from gouache.pipeline.engine.compiling import Compiled
    from gouache.pipeline.engine.networks import EngineUNet

    if task == "decode":
        return ours(task, inputs)
    network = channels_last(UNet(UNetConfig())).to(inputs.dtype).eval().requires_grad_(False)
    unet = EngineUNet(network, Compiled(network, []))
    return lambda: guided(inputs, unet)


def ours_int8(task: str, inputs: Inputs) -> Run:
    """gouache's networks by its engine openvino-int8, calibrated on two draws of noise, which its speed doesn't
    depend on; a process's peak includes that."""
    return ours_openvino(task, inputs, eight_bit=True)


def ours_openvino(task: str, inputs: Inputs, *, eight_bit: bool = False) -> Run:
    """gouache's networks by its engine openvino; a process's peak includes translating where no graph is kept yet."""
    from gouache.models.unet import UNet, UNetConfig
    from gouache.models.vae import AutoencoderKL, VAEConfig
    from gouache.nn.layers import channels_last
    from gouache.pipeline.engine import int8, networks
    from gouache.pipeline.engine.networks import EngineDecoder, EngineUNet, Runner, with_decoder

    def quantized(*given: Any) -> Any:
        latents, timestep, context = inputs.all()
        sample = [latents.expand(2, -1, -1, -1), timestep.expand(2), context]
        return int8.quantized(networks.graph_of(*given), [sample, [2 * sample[0], *sample[1:]]])

    if task == "step":
        network = channels_last(UNet(UNetConfig())).eval().requires_grad_(False)
        runner = Runner(network, lenient=False, notes=[], make=quantized if eight_bit else None)
        unet = EngineUNet(network, runner)
        return lambda: guided(inputs, unet)
    vae = channels_last(AutoencoderKL(VAEConfig())).eval().requires_grad_(False)
    runner = Runner(vae.decoder, lenient=False, notes=[])
    compiled = with_decoder(vae, EngineDecoder(vae.decoder, runner))
    return lambda: compiled.decode(inputs.latents())


def diffusers_unet() -> torch.nn.Module:
    """The same shapes from diffusers."""
    from diffusers import UNet2DConditionModel

    unet: torch.nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    return unet


class DiffusersDecoder(torch.nn.Module):
    """The decoder of diffusers' autoencoder, of the same shapes: normalised latents to a picture."""

    def __init__(self) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ).eval()

    def forward(self, latents: Tensor) -> Tensor:
        """latents [1, 4, h, w] -> picture [1, 3, 8 h, 8 w]."""
        picture: Tensor = self.vae.decode(latents / 0.18215, return_dict=False)[0]
        return picture


def diffusers(task: str, inputs: Inputs) -> Run:
    """diffusers' networks, eager, as they come."""
    if task == "step":
        unet = diffusers_unet().to(inputs.dtype)
        return lambda: guided(inputs, lambda x, timestep, context: unet(x, timestep, context, return_dict=False)[0])
    decoder = DiffusersDecoder().to(inputs.dtype)
    return lambda: decoder(inputs.latents())


def openvino(task: str, inputs: Inputs) -> Run:
    """diffusers' networks, translated and compiled by OpenVINO; in bf16 from weights in fp32, as OpenVINO offers it."""
    import openvino as ov

    hint = {"INFERENCE_PRECISION_HINT": "f32" if inputs.dtype == torch.float32 else "bf16"}
    inputs = replace(inputs, dtype=torch.float32)

    if task == "step":
        latents, timestep, context = inputs.all()
        example = (latents.expand(2, -1, -1, -1), timestep.expand(2), context)
        network = ov.compile_model(ov.convert_model(diffusers_unet(), example_input=example), "CPU", hint)
        return lambda: guided(inputs, lambda *given: torch.from_numpy(network([part.numpy() for part in given])[0]))
    decoder = ov.compile_model(ov.convert_model(DiffusersDecoder(), example_input=inputs.latents()), "CPU", hint)
    return lambda: torch.from_numpy(decoder([inputs.latents().numpy()])[0])


def measure(peer: str, task: str, inputs: Inputs, steps: int) -> dict[str, list[float] | float]:
    """In the child: build, warm up once, time `steps` runs; seconds, processor seconds, and peak memory in MB."""
    build = {
        "ours": ours,
        "ours-openvino": ours_openvino,
        "ours-openvino-int8": ours_int8,
        "ours-compile": ours_compiled,
        "diffusers": diffusers,
        "openvino": openvino,
    }[peer]
    with torch.inference_mode():
        run = build(task, inputs)
        run()
        seconds, processor = [], []
        for _ in range(steps):
            wall, busy = time.perf_counter(), time.process_time()
            run()
            seconds.append(time.perf_counter() - wall)
            processor.append(time.process_time() - busy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "processor": processor, "peak_mb": peak}


def spawn(peer: str, task: str, dtype: str, size: int, steps: int) -> dict[str, list[float] | float]:
    """Measure in a process of its own."""
    told = ["--child", peer, task, "--dtypes", dtype, "--size", str(size), "--steps", str(steps)]
    command = [sys.executable, str(Path(__file__)), *told]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, list[float] | float] = json.loads(out.strip().splitlines()[-1])
    return result


def compare(
    peers: list[str], dtypes: list[str], tasks: list[str], size: int, rounds: int, steps: int
) -> list[dict[str, str | float]]:
    """Take turns over all rounds; one row for each task, peer and number format that it computes in."""
    rows: list[dict[str, str | float]] = []
    for task in tasks:
        results: dict[tuple[str, str], list[dict[str, list[float] | float]]] = {
            (peer, dtype): [] for dtype in dtypes for peer in peers if dtype == "float32" or peer in BF16
        }
        for _ in range(rounds):
            for (peer, dtype), parts in results.items():
                parts.append(spawn(peer, task, dtype, size, steps))
        for (peer, dtype), parts in results.items():
            rows.append({"task": task, "peer": peer, "dtype": dtype, **summary(parts)})
    return rows


def summary(parts: list[dict[str, list[float] | float]]) -> dict[str, float]:
    """Medians of the times, and the largest peak."""
    seconds, processor, peaks = [], [], []
    for part in parts:
        assert isinstance(part["seconds"], list), "a child reports a list of seconds"
        assert isinstance(part["processor"], list), "a child reports a list of processor seconds"
        assert isinstance(part["peak_mb"], float), "a child reports one peak"
        seconds += part["seconds"]
        processor += part["processor"]
        peaks.append(part["peak_mb"])
    return {
        "seconds": statistics.median(seconds),
        "processor_seconds": statistics.median(processor),
        "peak_mb": max(peaks),
    }


def table(rows: list[dict[str, str | float]]) -> str:
    """A Markdown table with each peer's time as a share of diffusers' in the same number format."""
    lines = [
        "| task | peer | dtype | seconds | of diffusers | processor seconds | of diffusers | peak MB |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    base = {(row["task"], row["dtype"]): row for row in rows if row["peer"] == "diffusers"}
    for row in rows:
        cells = [str(row["task"]), str(row["peer"]), str(row["dtype"])]
        for figure in ("seconds", "processor_seconds"):
            other = base.get((row["task"], row["dtype"]))
            cells += [f"{row[figure]:.2f}", "" if other is None else f"{float(row[figure]) / float(other[figure]):.2f}"]
        lines.append(f"| {' | '.join(cells)} | {row['peak_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["ours", "diffusers"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--size", type=int, default=512, help="pixels of a picture's side, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed runs in each process, after one warm-up")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("PEER", "TASK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        peer, task = given.child
        inputs = Inputs(given.size, DTYPES[given.dtypes[0]])
        sys.stdout.write(json.dumps(measure(peer, task, inputs, given.steps)) + "\n")
        return
    rows = compare(given.peers, given.dtypes, given.tasks, given.size, given.rounds, given.steps)
    sys.stdout.write((json.dumps(rows) if given.json else table(rows)) + "\n")


if __name__ == "__main__":
    main()
