"""What cheaper steps save and what they change: each saving side by side with the full picture, in one process.

The pocket model paints the prompts below with `--prior-start-sigma 0 --guidance 4`, by its own sampler at 20 steps and
by DDIM at 50. Rows: of all network calls; GFLOP: of the U-Net, counted by torch; seconds: of the processor, the whole
picture; PSNR and SSIM: to the picture without savings, on white, means over the prompts and the worst. The variants
take turns prompt by prompt, so that what else the machine does falls on all of them alike.

With --sd15 a U-Net of Stable Diffusion 1.5's shapes and random weights evaluates one step at 64 x 64 latents (512 x 512
pixels) in full and as the options leave it, and the published decoder and TAESD's decode them. Random weights say
nothing about pictures: that table has no quality in it.

Run: python benchmarks/fast.py [--prompts N] [--settings NAME ...] [--sd15 [--side N]]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from gouache.models.caching.block_cache import BlockCache, BlockCall, block_call
from gouache.models.caching.deep_cache import DeepCache, DeepCall, deep_call
from gouache.models.caching.rows import CachedRow
from gouache.models.configs import UNetConfig, VAEConfig
from gouache.models.perturbation import changes_of
from gouache.models.tiny_vae import TinyDecoder
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Prior, Request
from gouache.training.evaluation.suite import ssim

PROMPTS = ("a red apple", "a fox, 3d style", "two blue cups", "a green tree, flat style", "a sailing boat", "a clock")
DENSE: Mapping[str, object] = {"sampler": "ddim", "schedule": "uniform", "num_inference_steps": 50}
COMMON: Mapping[str, Mapping[str, object]] = {
    "full": {},
    "guidance_interval 0.28 to 80": {"guidance_interval": (0.28, 80.0)},
    "cfg_cache 2": {"cfg_cache": {}},
    "cfg_cache 2, start 0": {"cfg_cache": {"start": 0.0}},
    "deep_cache 3, branch 0": {"deep_cache": {"interval": 3}},
    "deep_cache 3, branch 2": {"deep_cache": {"interval": 3, "branch": 2}},
    "block_cache 0.05": {"block_cache": {"threshold": 0.05}},
    "block_cache 0.1": {"block_cache": {"threshold": 0.1}},
    "block_cache 0.2": {"block_cache": {"threshold": 0.2}},
    "token_merging 0.5": {"token_merging": 0.5},
    "half of the steps": {},
    "fast": {"fast": True},
}
BOTH: Mapping[str, object] = {"deep_cache": {"interval": 3}, "cfg_cache": {"interval": 3, "start": 0.0}}
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "dpmpp_2m karras, 20 steps": {"num_inference_steps": 20},
    "ddim uniform, 50 steps": DENSE,
}


@dataclass
class Measured:
    """Of one variant, one number for each prompt."""

    seconds: list[float] = field(default_factory=list)
    gflop: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)


def on_white(image: Image.Image) -> NDArray[np.float64]:
    """[H,W,3] in 0..255."""
    pixels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def psnr(picture: NDArray[np.float64], full: NDArray[np.float64]) -> float:
    """In dB."""
    error = float(((picture - full) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def likeness(picture: NDArray[np.float64], full: NDArray[np.float64]) -> float:
    """SSIM, 1 = alike."""
    first, second = (torch.from_numpy(one / 127.5 - 1).permute(2, 0, 1)[None].float() for one in (picture, full))
    return float(ssim(first, second).mean())


Shape = tuple[int, ...]


def flop_counter() -> FlopCounterMode:
    """torch's counter, which doesn't know the fused attention of CPUs by itself."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def products(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={attention: products})


class Counter:
    """Rows and floating-point operations of a network's calls."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.rows, self.unet = 0, unet

    def of(self, pipeline: Pipeline, request: Request) -> tuple[int, float]:
        """Of one picture, the U-Net alone."""
        rows: list[int] = []
        total, counter = [0], flop_counter()

        def before(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows.append(len(inputs[0]))
            total[0] -= counter.get_total_flops()

        def after(*_: object) -> None:
            total[0] += counter.get_total_flops()

        handles = [self.unet.register_forward_pre_hook(before), self.unet.register_forward_hook(after)]
        with counter:
            pipeline.paint(request)
        for handle in handles:
            handle.remove()
        return sum(rows), total[0] / 1e9


def measure(pipeline: Pipeline, setting: Mapping[str, object], prompts: int) -> dict[str, Measured]:
    """Every variant on every prompt."""
    variants = {**COMMON, **({"deep_cache 3 and cfg_cache 3": BOTH} if setting is DENSE else {})}
    found = {name: Measured() for name in variants}
    counter = Counter(pipeline.bundle.unet)
    for seed, prompt in enumerate(PROMPTS[:prompts]):
        base = Request(prompt=prompt, seed=seed, guidance_scale=4.0, prior=Prior(start_sigma=0.0)).replace(setting)
        full = on_white(pipeline.paint(base)[0].image)
        for name, changes in variants.items():
            request = base.replace(changes)
            if name == "half of the steps":
                request = base.replace({"num_inference_steps": (base.num_inference_steps or 2) // 2})
            started = time.process_time()
            picture = on_white(pipeline.paint(request)[0].image)
            one = found[name]
            one.seconds.append(time.process_time() - started)
            one.psnr.append(psnr(picture, full))
            one.ssim.append(likeness(picture, full))
            if seed == 0:
                rows, gflop = counter.of(pipeline, request)
                one.rows.append(rows)
                one.gflop.append(gflop)
    return found


def table(found: Mapping[str, Measured]) -> str:
    """As Markdown."""
    lines = [
        "| variant | rows | GFLOP | processor seconds | PSNR, dB | worst | SSIM |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        quality = f"{np.mean(one.psnr):.1f} | {min(one.psnr):.1f} | {np.mean(one.ssim):.3f}"
        quality = "the same | | " if math.isinf(min(one.psnr)) else quality
        lines.append(f"| {name} | {one.rows[0]} | {one.gflop[0]:.1f} | {np.mean(one.seconds):.2f} | {quality} |")
    return "\n".join(lines)


Call = Callable[[], object]
ROUNDS = 2
"""Of each evaluation at Stable Diffusion's shapes, of which the faster counts."""


@torch.no_grad()
def measured(call: Call) -> tuple[float, float]:
    """GFLOP, and the processor's seconds."""
    seconds, counter = [], flop_counter()
    for _ in range(ROUNDS):
        with counter:
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
    return counter.get_total_flops() / 1e9, min(seconds)


def evaluations(unet: UNet, side: int) -> Iterator[tuple[str, Call]]:
    """One evaluation of one row at side x side latents, in full and as each saving leaves it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, side, side, generator=generator)
    context = torch.randn(1, 77, unet.config.context_width, generator=generator)

    def evaluated(*, merging: float = 0.0, **kept: DeepCall | BlockCall | None) -> object:
        changes = changes_of(unet, (), None, merging=merging)
        return unet(x, torch.tensor(400.0), context, changes=changes, **kept)

    yield "in full", evaluated
    for branch in (0, 2, 5):
        deep = DeepCache(3, branch)
        evaluated(deep=deep_call([CachedRow(deep, ("prompt",), 1)], torch.tensor(2.0)))
        later = deep_call([CachedRow(deep, ("prompt",), 2)], torch.tensor(1.0))
        yield f"deep_cache, branch {branch}", partial(evaluated, deep=later)
    block = BlockCache(0.1)
    evaluated(block_cache=block_call([CachedRow(block, ("prompt",), 1)], torch.tensor(2.0)))
    reused = block_call([CachedRow(block, ("prompt",), 2)], torch.tensor(1.0))
    yield "block_cache, reused", partial(evaluated, block_cache=reused)
    for ratio in (0.25, 0.5, 0.75):
        yield f"token_merging {ratio:g}", partial(evaluated, merging=ratio)


def decodings(side: int) -> Iterator[tuple[str, Call]]:
    """Side x side latents by the published decoder and by TAESD's."""
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    whole = AutoencoderKL(VAEConfig(channels=(128, 256, 512, 512))).eval()
    yield "the published decoder", lambda: whole.decode(latents)
    tiny = TinyDecoder(4, 3, 64, (3, 3, 3, 1)).eval()
    yield "a tiny decoder (TAESD)", lambda: tiny(latents)


@torch.no_grad()
def shapes_of_sd15(side: int) -> Iterator[str]:
    """Evaluations and decodings at Stable Diffusion 1.5's shapes, as lines of Markdown."""
    yield from ("| | GFLOP | of full | processor seconds |", "|---|--:|--:|--:|")
    for kind in (evaluations(UNet(UNetConfig()).eval(), side), decodings(side)):
        whole = 0.0
        for name, call in kind:
            gflop, seconds = measured(call)
            whole = whole or gflop
            yield f"| {name} | {gflop:.1f} | {gflop / whole:.3f} | {seconds:.2f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="which tables")
    parser.add_argument("--sd15", action="store_true", help="evaluations at Stable Diffusion 1.5's shapes instead")
    parser.add_argument("--side", type=int, default=64, help="of the latents, with --sd15")
    given = parser.parse_args()
    if given.sd15:
        for line in shapes_of_sd15(given.side):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        return
    pipeline = Pipeline.load()
    for name in given.settings:
        sys.stdout.write(f"{name}\n\n{table(measure(pipeline, SETTINGS[name], given.prompts))}\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
