"""Linear layers that use the faster of torch's two matrix libraries on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST_ROWS = 32
"""Below this many rows it does not pay to bring the weights into oneDNN's order."""


class Linear(nn.Linear):
    """torch's linear layer, computed by oneDNN where the tensors are fp32 on a CPU.

    torch hands fp32 matrix products on a CPU to MKL, which on some processors reaches less than half of what oneDNN,
    torch's library for convolutions, does. Both are exact up to rounding.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """input [..., in_features] -> [..., out_features]."""
        if _one_dnn_fits(input, self.weight):
            out: Tensor
            if torch.is_grad_enabled():
                out = _OneDnnLinear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            else:
                out = _one_dnn(input, self.weight, self.bias)
            return out
        return F.linear(input, self.weight, self.bias)


class _OneDnnLinear(torch.autograd.Function):
    """The result and both gradients by oneDNN, which brings the second operand into its own order in any case."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        above = gradients[0].contiguous()
        rows = above.flatten(0, -2)  # [N, out_features]
        wanted = ctx.needs_input_grad
        return (
            _one_dnn(above, weight.t(), None) if wanted[0] else None,
            _outer(rows, x.flatten(0, -2)) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """left^T right: [N, O], [N, K] -> [O, K]. The first operand must lie in rows, so the narrower one is turned."""
    if left.shape[1] <= right.shape[1]:
        return _one_dnn(left.t().contiguous(), right.t(), None)
    return _one_dnn(right.t().contiguous(), left.t(), None).t()


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _one_dnn_fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
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
