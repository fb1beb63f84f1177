"""Training throughput side by side: gouache's denoiser stage, and diffusers' U-Net class in a plain accelerate script.

Same shapes, same batch, same optimizer, same precision; the two take turns, each in a process of its own. Speed is
given by the clock and by processor seconds; the latter is fair on a machine that does other things too.
Run: python benchmarks/train.py [--precision bf16] [--rounds 3] [--threads 1] [--steps 12]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE, CHANNELS, CONTEXT, LENGTH = 16, 8, 384, 24
WIDTHS, HEADS, GROUPS = (96, 160, 224), (3, 5, 7), 16
BATCH, WARM_UP = 32, 3


def ours(precision: str, count: int) -> dict[str, float]:
    """Images a second of `gouache train denoiser`'s own loop, on random latents."""
    import torch

    from gouache.training.batches.encoded import TextStates
    from gouache.training.loop import count_flops, matrix_peak, train
    from gouache.training.stage_tables import DenoiserStage
    from gouache.training.stages.denoiser import DenoiserTraining

    class Random:
        """Random latents and text states."""

        def __init__(self) -> None:
            self.rows = torch.randn(256, CHANNELS, SIDE, SIDE)
            context, mask = torch.randn(256, LENGTH, CONTEXT), torch.ones(256, LENGTH).bool()
            self.states = TextStates(context, mask, torch.randn(256, 8))
            self.empty = TextStates(torch.zeros(1, 2, CONTEXT), torch.ones(1, 2).bool(), torch.zeros(1, 8))

        def __len__(self) -> int:
            return 256

        def latents(self, numbers: Any) -> torch.Tensor:
            """Rows by number."""
            return self.rows[list(numbers)]

        def text(self, numbers: Any) -> TextStates:
            """Text states by number."""
            n = list(numbers)
            return TextStates(self.states.context[n], self.states.mask[n], self.states.pooled[n])

        def captions(self, numbers: Any) -> list[str]:
            """No captions."""
            return ["" for _ in numbers]

    network = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "channels": WIDTHS,
        "layers_per_level": 1,
        "heads": HEADS,
        "transformer_layers": (0, 1, 1),
        "context_width": CONTEXT,
        "norm_groups": GROUPS,
    }
    loop = {"batch_size": BATCH, "images": BATCH * (WARM_UP + count), "log_images": 10**9, "validate_images": 10**9}
    config = DenoiserStage.from_dict({"network": network, "loop": {**loop, "precision": precision}})
    stage = DenoiserTraining(config, Random(), Random(), None, None, 0)
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        steps = train(stage, config, Path(folder))
        for progress in steps:
            marks.append(now())
            if progress.images_seen >= loop["images"] - BATCH:
                break
        steps.close()  # type: ignore[attr-defined]
    speeds = speeds_of(marks)
    batch = stage.batch(range(1))
    with torch.no_grad():
        flops = 3 * count_flops(lambda: stage(batch))
    share = speeds["images_per_second"] * flops / matrix_peak(torch.device("cpu"))
    return {**speeds, "share_of_fp32_matrix_peak": share}


def theirs(precision: str, count: int) -> dict[str, float]:
    """Images a second of diffusers' U-Net, its scheduler, accelerate and AdamW."""
    import torch
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=HEADS,
        cross_attention_dim=CONTEXT,
        norm_num_groups=GROUPS,
    )
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.01)
    model, optimizer = accelerator.prepare(unet, optimizer)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    latents, context = torch.randn(256, CHANNELS, SIDE, SIDE), torch.randn(256, LENGTH, CONTEXT)
    marks: list[tuple[float, float]] = []
    for step in range(WARM_UP + count):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % 256
        x0, noise, t = latents[rows], torch.randn(BATCH, CHANNELS, SIDE, SIDE), torch.randint(1000, (BATCH,))
        prediction = model(scheduler.add_noise(x0, noise, t), t, context[rows]).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), scheduler.get_velocity(x0, noise, t))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(now())
    return speeds_of(marks)


def now() -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    return time.perf_counter(), time.process_time()


def speeds_of(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Images a second after the warm-up, by the clock and by processor time; `marks` are the ends of the steps."""
    images = BATCH * (len(marks) - WARM_UP)
    wall, processor = (end - start for end, start in zip(marks[-1], marks[WARM_UP - 1], strict=True))
    return {"images_per_second": images / wall, "images_per_processor_second": images / processor}


def measured(peer: str, options: argparse.Namespace) -> dict[str, float]:
    """One peer in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, "--child", peer, "--precision", options.precision]
    command += ["--threads", str(options.threads), "--steps", str(options.steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", choices=("ours", "theirs"))
    options = parser.parse_args()
    if options.child:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        figures = {"ours": ours, "theirs": theirs}[options.child](options.precision, options.steps)
        figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(json.dumps(figures))
        return
    rounds = [{peer: measured(peer, options) for peer in ("ours", "theirs")} for _ in range(options.rounds)]
    lines = []
    for peer in ("ours", "theirs"):
        speeds = [r[peer]["images_per_second"] for r in rounds]
        memory = max(r[peer]["peak_mib"] for r in rounds)
        spread = f"from {min(speeds):.1f} to {max(speeds):.1f}"
        lines.append(f"{peer:7} {statistics.median(speeds):7.1f} images/s ({spread}), {memory:.0f} MiB")
    for clock in ("images_per_second", "images_per_processor_second"):
        ratios = [r["ours"][clock] / r["theirs"][clock] for r in rounds]
        spread = f"pair by pair from {min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"ratio   {statistics.median(ratios):7.2f} of {clock.replace('_', ' ')} ({spread})")
    shares = [r["ours"]["share_of_fp32_matrix_peak"] for r in rounds]
    lines.append(f"ours runs at {statistics.median(shares):.2f} of the peak of an fp32 matrix product")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
