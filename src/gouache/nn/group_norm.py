"""Group normalisation with the SiLU behind it, quick to train in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gouache.nn.layers import silu

VECTOR = 16
"""torch's own kernel is quick where the channels of a group fill whole vectors."""
BLOCK = 400_000
"""Numbers worked on at a time, so that what is written in one pass is still in the cache for the next."""


class GroupNorm(nn.GroupNorm):
    """torch's group norm (Wu & He 2018, arXiv:1803.08494, equation 1), with an optional SiLU behind it.

    Training in bfloat16 on a CPU, torch's kernel is slow where a group's channels don't fill a vector, and more so in
    the backward pass. There, its fp32 kernels are used on a few pictures at a time instead.
    """

    def forward(self, input: Tensor, *, activate: bool = False) -> Tensor:  # noqa: A002 - torch's own name
        """input [B, C, h, w] -> [B, C, h, w]; `activate`: followed by SiLU."""
        if _own_is_faster(input, self.num_channels // self.num_groups):
            out: Tensor = _GroupNormSilu.apply(input, self.weight, self.bias, self.num_groups, self.eps, activate)  # type: ignore[no-untyped-call]
            return out
        normed = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return silu(normed) if activate else normed


def _own_is_faster(x: Tensor, group_width: int) -> bool:
    return (
        x.is_cpu
        and x.dtype == torch.bfloat16
        and (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and group_width % VECTOR != 0
        and not torch.compiler.is_compiling()
    )


class _GroupNormSilu(torch.autograd.Function):
    """torch's fp32 kernels on blocks of a bfloat16 map; what they need again is made again from the map itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activate: bool) -> Tensor:
        out, means, scales = torch.empty_like(x), [], []
        for part in _blocks(x):
            values = x[part].float()
            normed, mean, scale = torch.native_group_norm(
                values, weight.float(), bias.float(), *_sizes(values), groups, eps
            )
            out[part] = F.silu(normed, inplace=True) if activate else normed
            means.append(mean)
            scales.append(scale)
        ctx.save_for_backward(x, weight, bias, torch.cat(means), torch.cat(scales))
        ctx.groups, ctx.activate = groups, activate
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, bias, means, scales = ctx.saved_tensors
        above, out = gradients[0].contiguous(memory_format=torch.channels_last), torch.empty_like(x)
        to_weight, to_bias = (torch.zeros_like(own, dtype=torch.float32) for own in (weight, bias))
        for part in _blocks(x):
            values, given, mean, scale = x[part].float(), above[part].float(), means[part], scales[part]
            if ctx.activate:
                gain = _by_channel(scale, weight) * weight  # [b, C]
                offset = bias - _by_channel(mean, weight) * gain
                normed = torch.addcmul(offset[:, :, None, None], values, gain[:, :, None, None])
                given = torch.ops.aten.silu_backward(given, normed)
            to_x, own_weight, own_bias = torch.ops.aten.native_group_norm_backward(
                given, values, mean, scale, weight.float(), *_sizes(values), ctx.groups, [True, True, True]
            )
            out[part] = to_x
            to_weight += own_weight
            to_bias += own_bias
        return out, to_weight.to(weight.dtype), to_bias.to(bias.dtype), None, None, None


def _blocks(x: Tensor) -> list[slice]:
    """Rows of the batch [B, C, h, w], as many at a time as fit into the cache."""
    rows = max(1, BLOCK // x[0].numel())
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Pictures, channels and pixels, as torch's kernels want them."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _by_channel(values: Tensor, weight: Tensor) -> Tensor:
    """What each group has, for each of its channels: [B, groups] -> [B, C]."""
    return values.repeat_interleave(len(weight) // values.shape[1], dim=1)
