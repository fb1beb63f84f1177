"""Element-wise operations that reuse memory where no gradient is recorded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), any shape. Overwrites `x` when no gradient is recorded: pass a value nobody else holds."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Tensor, other: Tensor) -> Tensor:
    """x + other, `other` broadcastable to `x`. Overwrites `x` when no gradient is recorded and the dtypes agree."""
    if torch.is_grad_enabled() or x.dtype != other.dtype:
        return x + other
    return x.add_(other)
