"""Processor milliseconds of one attention in bfloat16 at Stable Diffusion 1.5's shapes, by several ways.

A batch of two, random numbers. The ways take turns; the best run of each is printed, since other programs on the
machine only ever make one slower.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --runs 7
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 2
SHAPES = {
    "self, 4096 pixels": (8, 4096, 4096, 40),
    "self, 1024": (8, 1024, 1024, 80),
    "self, 256": (8, 256, 256, 160),
    "self, 64": (8, 64, 64, 160),
    "text, 4096 pixels": (8, 4096, 77, 40),
    "text, 1024": (8, 1024, 77, 80),
    "text, 256": (8, 256, 77, 160),
    "text, 64": (8, 64, 77, 160),
    "decoder, 4096": (1, 4096, 4096, 512),
}
"""Heads, queries, keys and the size of a head."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def through_fp32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused kernel in float32, on converted numbers."""
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def in_blocks(rows: int, *, by_head: bool) -> Way:
    """Two matrix products with a softmax between them, for some queries at a time; one head at a time if asked for."""

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (q.narrow(-2, at, min(rows, q.shape[-2] - at)) for at in range(0, q.shape[-2], rows))
        return torch.cat([(part @ k.transpose(-1, -2)).softmax(-1) @ v for part in parts], -2)

    def way(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        if not by_head:
            return block(q, k, v)
        heads = zip(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), strict=True)
        return torch.stack([block(*one) for one in heads]).view(q.shape)

    return way


WAYS: dict[str, Way] = {
    "torch's kernel": F.scaled_dot_product_attention,
    "the same in fp32": through_fp32,
    "products, 512 queries": in_blocks(512, by_head=False),
    "products, 512 queries of a head": in_blocks(512, by_head=True),
}


def drawn(heads: int, rows: int, size: int, seed: int) -> Tensor:
    """As a projection leaves it: [B, heads, rows, size], the heads beside each other in memory."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, rows, heads, size, generator=generator).bfloat16().transpose(1, 2)


def measure(shape: tuple[int, int, int, int], runs: int) -> dict[str, float]:
    """The best of so many runs of each way, in milliseconds of the processor."""
    heads, queries, keys, size = shape
    given = (drawn(heads, queries, size, 0), drawn(heads, keys, size, 1), drawn(heads, keys, size, 2))
    best = dict.fromkeys(WAYS, float("inf"))
    for run in range(runs + 1):
        for name, way in WAYS.items():
            start = time.process_time()
            way(*given)
            if run:  # the first warms up
                best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    sys.stdout.write(f"| attention | {' | '.join(WAYS)} |\n|---|{'--:|' * len(WAYS)}\n")
    with torch.inference_mode():
        for name, shape in SHAPES.items():
            figures = " | ".join(f"{value:.1f}" for value in measure(shape, given.runs).values())
            sys.stdout.write(f"| {name} | {figures} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
