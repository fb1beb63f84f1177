"""Small layers.

Linear layers that use the faster of torch's two matrix libraries on a CPU, dropout that draws from a generator of its
own, sinusoidal embeddings, element-wise operations that reuse memory, and group normalisation with the SiLU behind it,
quick to train in bfloat16 on a CPU.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gouache.errors import InvalidInput
from gouache.nn.torch_private import has_one_dnn, not_compiled, one_dnn_linear

LaidOut = TypeVar("LaidOut", bound=nn.Module)


def channels_last(network: LaidOut) -> LaidOut:
    """Lay every convolution's weights channels-last, in place; returns the network itself.

    Feature maps then keep that order from the first convolution on, and going from pixels to tokens costs no copy.
    The numbers change by rounding only.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return network


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), any shape. Overwrites `x` when no gradient is recorded: pass a value nobody else holds."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Tensor, other: Tensor) -> Tensor:
    """x + other, `other` broadcastable to `x`. Overwrites `x` when no gradient is recorded and the dtypes agree."""
    if torch.is_grad_enabled() or x.dtype != other.dtype:
        return x + other
    return x.add_(other)


LEVELS = 2**16
"""A number is kept or not by 16 random bits, so the share is exact to 0.00002."""


class Dropout(nn.Module):
    """Sets a share of numbers to zero and scales up the rest (Srivastava et al. 2014), while training.

    Unlike torch's, the mask comes from a generator that the training loop seeds for every step: a resumed run draws
    the same masks as the uninterrupted one.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise InvalidInput("dropout", given=share, expected="a share from 0 to below 1")
        self.share = share
        self._words = _Words(0)

    def seed(self, seed: int) -> None:
        """Start a new sequence of masks."""
        self._words = _Words(seed)

    def forward(self, x: Tensor) -> Tensor:
        if self.share == 0 or not self.training:
            return x
        factors: Tensor = self._factors(x)
        return x * factors

    # A graph would bake one draw of the generator in.
    @not_compiled
    def _factors(self, x: Tensor) -> Tensor:
        """0 where a number is dropped, else 1 / (1 - share). The shape and type of `x`"""
        kept = self._words.draw(x.numel(), x.device) >= round(self.share * LEVELS) - LEVELS // 2
        return kept.view(x.shape).to(x.dtype).div_(1 - self.share)


class _Words:
    """An endless row of random 16-bit integers. On a CPU by SFC64, ten times as fast as torch's Mersenne twister."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numpy: np.random.SFC64 | None = None
        self._torch: torch.Generator | None = None

    def draw(self, count: int, device: torch.device) -> Tensor:
        """The next `count` integers from -2^15 to 2^15 - 1. [count]"""
        if device.type == "cpu":
            if self._numpy is None:
                self._numpy = np.random.SFC64(self._seed)
            return torch.from_numpy(self._numpy.random_raw(-(-count // 4)).view(np.int16))[:count]
        if self._torch is None:
            self._torch = torch.Generator(device).manual_seed(self._seed)
        limit = LEVELS // 2
        return torch.randint(-limit, limit, (count,), generator=self._torch, device=device, dtype=torch.int16)


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
                out = one_dnn_linear(input, self.weight, self.bias)
            return out
        return F.linear(input, self.weight, self.bias)


class _OneDnnLinear(torch.autograd.Function):
    """The result and both gradients by oneDNN, which brings the second operand into its own order in any case."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return one_dnn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        above = gradients[0].contiguous()
        rows = above.flatten(0, -2)  # [N, out_features]
        wanted = ctx.needs_input_grad
        return (
            one_dnn_linear(above, weight.t(), None) if wanted[0] else None,
            _outer(rows, x.flatten(0, -2)) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """left^T right: [N, O], [N, K] -> [O, K]. The first operand must lie in rows, so the narrower one is turned."""
    if left.shape[1] <= right.shape[1]:
        return one_dnn_linear(left.t().contiguous(), right.t(), None)
    return one_dnn_linear(right.t().contiguous(), left.t(), None).t()


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


_HAS_ONE_DNN = has_one_dnn()


def sinusoidal_embedding(values: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of each value at `width / 2` geometric frequencies from 1 down to 1 / max_period.

    The transformer's position code (Vaswani et al. 2017, arXiv:1706.03762, section 3.5) for real numbers, in the order
    that the Stable Diffusion networks were trained with (cosines first).

    Args:
        values: [...], any real numbers, for example timesteps 0..999.
        width: even number of channels.

    Returns:
        [..., width] in fp32, in [-1, 1].
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(max_period) * exponents)  # [..., width / 2]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Waves of a guidance scale, of 1000 (scale - 1) (Luo et al. 2023, arXiv:2310.04378, section 4.1; the frequencies
    are those of Kingma et al. 2021, arXiv:2107.00630, as published consistency models have them).

    Args:
        scale: [B], 1 = no guidance.
        width: of the result, an even number.

    Returns:
        sines, then cosines. [B, width]
    """
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=scale.device)
    frequencies = torch.exp(places * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (scale.float() - 1.0)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos(), *([angles.new_zeros(len(scale), 1)] if width % 2 else [])], dim=1)


class EmbeddingMLP(nn.Module):
    """Two linear layers with a SiLU between them: [B, width_in] -> [B, width_out]. With a `condition_width`, a second
    input is projected and added to the first."""

    def __init__(self, width_in: int, width_out: int, condition_width: int = 0) -> None:
        super().__init__()
        if condition_width:
            self.cond_proj = nn.Linear(condition_width, width_in, bias=False)
        self.linear_1 = Linear(width_in, width_out)
        self.linear_2 = Linear(width_out, width_out)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, width_in], condition [B, condition_width] -> [B, width_out]."""
        if condition is not None:
            x = x + self.cond_proj(condition.to(x.dtype))
        out: Tensor = self.linear_2(silu(self.linear_1(x)))
        return out


VECTOR = 16
"""torch's own kernel is quick where the channels of a group fill whole vectors."""
BLOCK = 400_000
"""Numbers worked on at a time, so that what is written in one pass is still in the cache for the next."""


def time_and_pooled(
    time: EmbeddingMLP,
    added: nn.Module | None,
    timestep: Tensor,
    pooled: Tensor | None,
    dtype: torch.dtype,
    guidance: Tensor | None = None,
    further: Tensor | None = None,
) -> Tensor:
    """The activated embedding of time [B], of the guidance scale's waves [B, guidance_width] in networks that are told
    it, where a network `added` takes it, of the pooled vector, and of anything `further` [B, D]. [B, D]"""
    embedding: Tensor = time(sinusoidal_embedding(timestep, time.linear_1.in_features).to(dtype), guidance)
    if added is not None and pooled is not None:
        embedding = embedding + added(pooled)
    if further is not None:
        embedding = embedding + further
    # Every residual block activates it first; doing it once here gives the same numbers.
    return silu(embedding)


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
        # What `F.group_norm` calls. It refuses groups of one number, which a thin picture has at the lowest level of a
        # network with a channel a group; their deviation is 0, and what is left is the bias.
        normed = torch.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled
        )
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
