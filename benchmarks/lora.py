"""A LoRA of Stable Diffusion 1.5 at 512 pixels, batch 1: gouache's stage `lora`, and diffusers' example script.

The peer is the loop of diffusers' `train_text_to_image_lora.py`, written anew: peft's LoRA on to_q, to_k, to_v and
to_out.0, accelerate, AdamW, latents and text states made before. Same random weights' shapes, same rank, same layers,
same precision: bf16 where the processor has it, else fp32. The two take turns, each in a process of its own. Seconds of
a step are given by the clock and by processor time; the peak is the process's largest resident memory.
Run: python benchmarks/lora.py [--small] [--rounds 2] [--steps 3] [--threads 2] [--checkpointing]
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

RANK, TOKENS, WIDTH = 4, 77, 768
LAYERS = ("*to_q", "*to_k", "*to_v", "*to_out_0")
WARM_UP = 1
FULL = {"channels": (320, 640, 1280, 1280), "side": 64, "layers": 2}
SMALL = {"channels": (64, 128, 256, 256), "side": 16, "layers": 1}
MOST_MEMORY, MOST_TIME = 8.0, 0.8
"""What is asked of gouache: GB, and its share of the peer's seconds a step."""


def ours(sizes: dict[str, Any], precision: str, steps: int, *, checkpointing: bool) -> dict[str, float]:
    """Steps of `gouache train lora`'s own loop, on random latents and text states."""
    import torch
    from PIL import Image

    from gouache.data.buckets import Bucket
    from gouache.data.packed import pack_pictures
    from gouache.data.readers import ReadReport
    from gouache.models.bundle import ModelBundle
    from gouache.models.configs import DenoiserConfig, TextEncoderConfig, UNetConfig, VAEConfig
    from gouache.models.text.clip import TextEncoder
    from gouache.models.text.stack import TextStack
    from gouache.models.unet import UNet
    from gouache.models.vae import AutoencoderKL
    from gouache.nn.layers import channels_last
    from gouache.training.batches.store import Encoders
    from gouache.training.batches.tuning_set import Texts, tuning_sets
    from gouache.training.config import DataConfig
    from gouache.training.loop import make_accelerator, train
    from gouache.training.stage_tables import LoraStage
    from gouache.training.stages.lora import LoraTraining

    pixels = 8 * sizes["side"]
    unet = UNet(
        UNetConfig(
            channels=sizes["channels"],
            layers_per_level=sizes["layers"],
            transformer_layers=(1, 1, 1, 0),
            heads=(8, 8, 8, 8),
            context_width=WIDTH,
        )
    )
    # A tiny autoencoder: pictures are encoded before the first step, and the real one's 0.3 GB are given back.
    vae = AutoencoderKL(VAEConfig(channels=(16, 16, 16, 16), layers_per_level=1, norm_groups=8))
    text = TextStack.of_clip([TextEncoder(TextEncoderConfig(width=WIDTH, inner_width=3072, layers=12, heads=12))])
    bundle = ModelBundle(
        family="sd1", unet=channels_last(unet), vae=vae, text=text, denoiser_config=DenoiserConfig()
    ).eval()
    loop = {"batch_size": 1, "images": WARM_UP + steps, "precision": precision, "validate_images": 10**9}
    config = LoraStage.from_dict(
        {"start": "sd15", "rank": RANK, "layers": LAYERS, "loop": loop, "gradient_checkpointing": checkpointing}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine").mkdir()
        for i in range(2):
            Image.new("RGB", (pixels, pixels), (200, 100 * i, 0)).save(folder / "mine" / f"{i}.png")
            (folder / "mine" / f"{i}.txt").write_text(f"picture {i}")
        list(pack_pictures(folder / "mine", folder / "set", [Bucket(pixels, pixels)], ReadReport()))
        encoders = Encoders(vae, text, "random")
        events = tuning_sets(folder / "set", folder / "run", encoders, DataConfig(size=pixels), 1)
        while True:
            try:
                next(events)
            except StopIteration as end:
                shown, held_out = end.value
                break

        class Stage(LoraTraining):
            """Without the validation that ends every run, which is no part of a step."""

            def validate(self, network: Any) -> dict[str, float]:
                """No figures."""
                del network
                return {"score": 0.0}

            def samples(self, network: Any) -> None:
                """No pictures."""
                del network

        stage = Stage(config, bundle, shown, held_out, Texts(text, encoders.pooled))
        watch, marks = Watch(), []
        for _ in train(stage, config, folder / "run" / "lora", accelerator=make_accelerator(config)):
            marks.append(watch.now())
            if len(marks) == WARM_UP + steps - 1:
                break  # the last step is followed by a checkpoint
    del torch
    return figures(marks)


def diffusers(sizes: dict[str, Any], precision: str, steps: int, *, checkpointing: bool) -> dict[str, float]:
    """The same by diffusers, peft and accelerate, as the example script does it."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig

    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    cross, plain = ("CrossAttnDownBlock2D",) * 3, ("DownBlock2D",)
    unet = UNet2DConditionModel(
        block_out_channels=sizes["channels"],
        layers_per_block=sizes["layers"],
        down_block_types=cross + plain,
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )
    unet.requires_grad_(False)
    unet.to(accelerator.device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    if precision == "bf16":
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    weights = torch.bfloat16 if precision == "bf16" else torch.float32
    latents = torch.randn(1, 4, sizes["side"], sizes["side"], dtype=weights)
    states = torch.randn(1, TOKENS, WIDTH, dtype=weights)
    watch, marks = Watch(), []
    unet.train()
    for _ in range(WARM_UP + steps - 1):
        with accelerator.accumulate(unet):
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (1,)).long()
            noisy = scheduler.add_noise(latents, noise, t)
            prediction = unet(noisy, t, states, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        marks.append(watch.now())
    return figures(marks)


class Watch:
    """Seconds by the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def now(self) -> tuple[float, float]:
        """Both."""
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def figures(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of the steps behind the warm-up, and the peak in GB."""
    steps = [
        (after[0] - before[0], after[1] - before[1])
        for before, after in zip(marks[WARM_UP - 1 :], marks[WARM_UP:], strict=False)
    ]
    return {
        "seconds": statistics.median(step[0] for step in steps),
        "processor_seconds": statistics.median(step[1] for step in steps),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def tell(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run one side (`--side`), or both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--side", choices=("ours", "diffusers"))
    given = parser.parse_args()
    sizes = SMALL if given.small else FULL
    if given.side:
        import torch

        from gouache.training.loop import computes_bf16

        torch.set_num_threads(given.threads)
        precision = given.precision
        if precision == "auto":
            precision = "bf16" if computes_bf16() else "fp32"
        side = {"ours": ours, "diffusers": diffusers}[given.side]
        result = side(sizes, precision, given.steps, checkpointing=given.checkpointing)
        sys.stdout.write(json.dumps({**result, "precision": precision}) + "\n")
        return
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "diffusers": []}
    for number in range(given.rounds):
        for side_name in ("ours", "diffusers") if number % 2 == 0 else ("diffusers", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side_name]
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "ACCELERATE_USE_CPU": "true"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[side_name].append(json.loads(done.stdout.splitlines()[-1]))
            tell(f"{side_name} {results[side_name][-1]}")
    best = {
        name: {key: min(run[key] for run in runs) for key in ("seconds", "processor_seconds", "peak_gb")}
        for name, runs in results.items()
    }
    for key in ("seconds", "processor_seconds", "peak_gb"):
        mine, theirs = best["ours"][key], best["diffusers"][key]
        tell(f"{key}: ours {mine:.2f}, diffusers {theirs:.2f}, ratio {mine / theirs:.2f}")
    tell(f"asked: peak at most {MOST_MEMORY} GB, seconds at most {MOST_TIME} of diffusers'")


if __name__ == "__main__":
    main()
