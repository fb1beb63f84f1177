"""Group normalisation with the SiLU behind it, quick to train in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gouache.nn.elementwise import silu

VECTOR = 16
"""torch's own kernel is quick where the channels of a group fill whole vectors."""
BLOCK = 400_000
"""Numbers worked on at a time, so that what is written in one pass is still in the cache for the next."""


class GroupNorm(nn.GroupNorm):
    """torch's group norm (Wu & He 2018, arXiv:1803.08494, equation 1), with an optional SiLU behind it.

    Training in bfloat16 on a CPU, torch's kernel is slow where a group's channels don't fill a vector, and more so in
    the backward pass. There, statistics and the affine map are taken over the channels-last layout instead, in fp32.
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
    """Both passes as per-channel affine maps: z = x * gain + offset, and its gradient a dz + p x + q."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activate: bool) -> Tensor:
        tokens = _tokens(x)  # [B, N, C]
        out, means, scales = torch.empty_like(tokens), [], []
        for part in _blocks(tokens):
            values = tokens[part].float()
            mean = _group_mean(values.mean(1), groups)  # [b, C]
            square = _group_mean((values * values).mean(1), groups)
            scale = (square - mean * mean).clamp_min_(0).add_(eps).rsqrt_()
            gain = scale * weight
            values.mul_(gain[:, None]).add_((bias - mean * gain)[:, None])
            out[part] = F.silu(values, inplace=True) if activate else values
            means.append(mean)
            scales.append(scale)
        ctx.save_for_backward(x, weight, bias, torch.cat(means), torch.cat(scales))
        ctx.groups, ctx.activate = groups, activate
        return _pixels(out, x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, bias, means, scales = ctx.saved_tensors
        tokens, above = _tokens(x), _tokens(gradients[0])
        out = torch.empty_like(tokens)
        to_weight, to_bias = torch.zeros_like(means[0]), torch.zeros_like(means[0])
        for part in _blocks(tokens):
            values, given, mean, scale = tokens[part].float(), above[part].float(), means[part], scales[part]
            gain = scale * weight
            if ctx.activate:
                normed = torch.addcmul((bias - mean * gain)[:, None], values, gain[:, None])
                given = torch.ops.aten.silu_backward(given, normed)
            total, count = given.sum(1), tokens.shape[1]
            along = ((given * values).sum(1) - mean * total) * scale  # sum of dz * x_hat, [b, C]
            to_weight += along.sum(0)
            to_bias += total.sum(0)
            slope = -scale * scale * _group_mean(along * weight, ctx.groups) / count
            level = -scale * _group_mean(total * weight, ctx.groups) / count - slope * mean
            values.mul_(slope[:, None]).add_(level[:, None])
            out[part] = values.addcmul_(given, gain[:, None])
        return _pixels(out, x), to_weight.to(weight.dtype), to_bias.to(bias.dtype), None, None, None


def _blocks(tokens: Tensor) -> list[slice]:
    """Rows of the batch [B, N, C], as many at a time as fit into the cache."""
    rows = max(1, BLOCK // tokens[0].numel())
    return [slice(start, start + rows) for start in range(0, len(tokens), rows)]


def _group_mean(values: Tensor, groups: int) -> Tensor:
    """Means over the channels of each group, repeated for each of its channels: [B, C] -> [B, C]."""
    width = values.shape[1] // groups
    return values.reshape(len(values), groups, width).mean(2).repeat_interleave(width, dim=1)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # no copy of what is channels-last


def _pixels(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.reshape(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
