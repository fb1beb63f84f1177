"""Networks that take turns in memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json
from functools import partial
from pathlib import Path

import torch
from torch import nn

from gouache.models.turns import Turns, awake

LAYERS, WIDTH = 300, 256  # matrices of 256 KB: small enough for the C library to keep their memory for itself

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def read(network):
    for layer in network:
        layer.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH).fill_(1.0))

with torch.device("meta"):
    large = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    small = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
Turns({one: partial(read, one) for one in (large, small)}, torch.device("cpu"), torch.float32)
before = resident()
awake(large)
kept = torch.zeros(1000)  # above the network's memory, which then is not the last that was taken
during = resident()
total = float(awake(small)[0].weight.detach().sum())
print(json.dumps({
    "weights": LAYERS * WIDTH * WIDTH * 4,
    "during": during - before,
    "after": resident() - before,
    "read": total == WIDTH * WIDTH,
    "asleep": large[0].weight.is_meta,
    "kept": not kept.any(),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_network_whose_turn_is_over_gives_its_memory_back_to_the_system() -> None:
    """In a process of its own, in which no other test has left memory to take again."""
    found = json.loads(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)
    assert found["during"] > 0.9 * found["weights"]
    assert found["after"] < 0.2 * found["weights"]
    assert found["read"]
    assert found["asleep"]
    assert found["kept"]
