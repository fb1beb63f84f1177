"""The order in which convolution weights lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network) -> Network:
    """Lay every convolution's weights channels-last, in place; returns the network itself.

    Feature maps then keep that order from the first convolution on, and going from pixels to tokens costs no copy.
    The numbers change by rounding only.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return network
