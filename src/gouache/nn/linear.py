"""Linear layers that use the faster of torch's two matrix libraries on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 32
"""Below this many rows it does not pay to bring the weights into oneDNN's order."""


class Linear(nn.Linear):
    """torch's linear layer, computed by oneDNN where no gradient is wanted and the tensors are fp32 on a CPU.

    torch hands fp32 matrix products on a CPU to MKL, which on some processors reaches less than half of what oneDNN,
    torch's library for convolutions, does. Both are exact up to rounding.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """input [..., in_features] -> [..., out_features]."""
        if _one_dnn_fits(input, self.weight):
            out: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(input, self.weight, self.bias)


def _one_dnn_fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and _HAS_ONE_DNN
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _has_one_dnn() -> bool:
    """Whether this build of torch carries oneDNN and the operator that takes plain tensors."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONE_DNN = _has_one_dnn()
