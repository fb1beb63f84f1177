"""Networks that take turns in memory: each is read when it is used, and given back when the next one is.

A model of several large networks then needs the memory of its largest alone: Stable Diffusion 3's T5 is larger than
the network that paints, and is used once a prompt.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Turns:
    """Which of several networks is in memory; the others have no numbers.

    Args:
        readers: for each network what gives it its numbers.
        device: where they go.
        dtype: the type of their numbers.
    """

    def __init__(
        self, readers: Mapping[nn.Module, Callable[[], None]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device, self.dtype = device, dtype
        self._readers = dict(readers)
        self._awake: nn.Module | None = None
        for network in readers:
            network.turns = self  # type: ignore[assignment]

    def take(self, network: nn.Module) -> None:
        """It is this network's turn."""
        if network is self._awake:
            return
        if self._awake is not None:
            self._awake.to("meta")
            give_back()
        self._awake = network
        self._readers[network]()
        give_back()  # what reading took for a while


def give_back() -> None:
    """Return freed memory to the system, which glibc alone would keep for itself: of networks, gigabytes."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def turns_of(network: nn.Module) -> Turns | None:
    """The turns that a network takes part in; None for one that stays in memory."""
    found = getattr(network, "turns", None)
    return found if isinstance(found, Turns) else None


def awake(network: Network) -> Network:
    """The network itself, with its numbers."""
    turns = turns_of(network)
    if turns is not None:
        turns.take(network)
    return network
