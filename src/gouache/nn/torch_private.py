"""The private parts of torch that are used, each with the public call that takes its place in a torch without it.

Private names change without notice, so whether one is there is looked up here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@cache
def has_one_dnn() -> bool:
    """Whether this build of torch carries oneDNN and its operator for linear layers on plain tensors."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def cpu_capabilities() -> Mapping[str, object]:
    """What torch says of the processor, by the names of its instructions; nothing, where it can't tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask() if ask is not None else {}


def one_dnn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias by oneDNN, for fp32 on a CPU; by torch's own choice of library where oneDNN isn't there."""
    if not has_one_dnn():
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def not_compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep a function out of compiled graphs.

    The public `torch.compiler.disable` imports the compiler when the function is defined: a second and 80 MB for those
    who only paint. Torch's own lazy form waits for the first call.
    """
    try:
        from torch._compile import _disable_dynamo
    except ImportError:
        disabled: Callable[Arguments, Result] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled
    return _disable_dynamo(function)


def lerp_all_(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    """averages += weight * (values - averages), in place; in one kernel for all tensors where torch has it."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(list(averages), list(values), weight)
        return
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, weight)
