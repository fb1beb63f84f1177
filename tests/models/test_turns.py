"""Networks that take turns in memory."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gouache.models.turns import Turns, awake

LAYERS, WIDTH = 300, 256
"""Matrices of 256 KB: small enough for the C library to keep their memory for itself, 75 MB together."""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def read(network: nn.Sequential) -> None:
    for layer in network:
        layer.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH).fill_(1.0))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_network_whose_turn_is_over_gives_its_memory_back_to_the_system() -> None:
    with torch.device("meta"):
        large = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        small = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    Turns({one: partial(read, one) for one in (large, small)}, torch.device("cpu"), torch.float32)
    before = resident()
    assert awake(large) is large
    kept = torch.zeros(1000)  # above the network's memory, which then is not the last that was taken
    during = resident()
    first = awake(small)[0]
    assert isinstance(first, nn.Linear)
    assert float(first.weight.detach().sum()) == WIDTH * WIDTH
    after, weights = resident(), LAYERS * WIDTH * WIDTH * 4
    assert during - before > 0.9 * weights
    assert after - before < 0.2 * weights
    assert large[0].weight.is_meta
    assert not kept.any()
