"""What a training step costs, and what the machine could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in one call (a multiply-add counts as two)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@lru_cache
def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32, *, size: int = 1024, tries: int = 4) -> float:
    """The machine's best speed in a square matrix product, in FLOP a second: the fastest of a few tries, made once."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
