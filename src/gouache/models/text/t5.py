"""The encoder of T5 1.1 (Raffel et al. 2020, arXiv:1910.10683; 1.1: Shazeer 2020, arXiv:2002.05202), Stable Diffusion
3's third text encoder.

The parameter names are those of transformers' `T5EncoderModel`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import T5Config
from gouache.models.text.clip import TextEncoding
from gouache.nn.layers import Linear

__all__ = ["T5Config", "T5Encoder"]


class T5Encoder(nn.Module):
    """Token ids to one vector a token; places enter by a bias on the attention's scores alone."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocabulary_size, config.width)
        self.encoder = _Stack(config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Encode rows of tokens.

        Args:
            ids: with the end token and padding. [N, L]
            mask: True where a token is real; None = padding is looked at too, as Stable Diffusion 3 was trained. [N, L]

        Returns:
            context [N, L, width] and the mask; there is no pooled vector.

        Raises:
            ShapeMismatch: ids of another shape, or a mask of another than theirs.
        """
        if ids.ndim != 2 or not ids.shape[1] or (mask is not None and mask.shape != ids.shape):
            shapes = tuple(ids.shape) if mask is None else f"{tuple(ids.shape)} and mask {tuple(mask.shape)}"
            raise ShapeMismatch("token ids", given=shapes, expected="[N, 1 or more], and a mask of that shape or none")
        return TextEncoding(self.encoder(self.shared(ids), mask), None, mask)


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4): no bias, and no mean
    that is taken away. The mean square is summed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same, of the weight's type."""
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        out: Tensor = self.weight * (x * scale).to(self.weight.dtype)
        return out


class _Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        # Only the first layer has a table of the biases; the others use its own.
        self.block = nn.ModuleList(_Block(config, first=i == 0) for i in range(config.layers))
        self.final_layer_norm = RmsNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, L, width], mask [N, L] -> [N, L, width]."""
        first = self.block[0]
        assert isinstance(first, _Block), "the stack is made of blocks"
        bias = first.attention.position_bias(x.shape[1])  # [1, heads, L, L]
        if mask is not None:
            bias = bias.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(bias.dtype).min)
        for block in self.block:
            x = block(x, bias)
        out: Tensor = self.final_layer_norm(x)
        return out


class _Block(nn.Module):
    """Self-attention and feed-forward, each behind an RMS norm, each residual."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_AttentionLayer(config, first=first), _FeedForwardLayer(config)])

    @property
    def attention(self) -> _SelfAttention:
        """Of the first of its two layers."""
        layer = self.layer[0]
        assert isinstance(layer, _AttentionLayer), "a block is attention and feed-forward"
        return layer.SelfAttention

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [N, L, width], bias [1 or N, heads, L, L] -> [N, L, width]."""
        attention, feed_forward = self.layer
        x = _finite(x + attention(x, bias))
        return _finite(x + feed_forward(x))


class _AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.SelfAttention = _SelfAttention(config, first=first)
        self.layer_norm = RmsNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [N, L, width], bias [1 or N, heads, L, L] -> what is added to x."""
        out: Tensor = self.SelfAttention(self.layer_norm(x), bias)
        return out


class _FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = _GatedFeedForward(config)
        self.layer_norm = RmsNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] -> what is added to x."""
        out: Tensor = self.DenseReluDense(self.layer_norm(x))
        return out


class _SelfAttention(nn.Module):
    """softmax(Q K^T + bias) V. The scores aren't divided by sqrt(d): the initial weights of Q are that much smaller."""

    def __init__(self, config: T5Config, *, first: bool) -> None:
        super().__init__()
        self.config = config
        inner = config.heads * config.head_width
        self.q = Linear(config.width, inner, bias=False)
        self.k = Linear(config.width, inner, bias=False)
        self.v = Linear(config.width, inner, bias=False)
        self.o = Linear(inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def position_bias(self, length: int) -> Tensor:
        """What is added to the scores of each pair of places, by head. [1, heads, L, L]"""
        table = self.relative_attention_bias
        place = torch.arange(length, device=table.weight.device)
        bucket = relative_bucket(place[None, :] - place[:, None], self.config.buckets, self.config.max_distance)
        bias: Tensor = table(bucket).permute(2, 0, 1)[None]
        return bias

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [N, L, width], bias [1 or N, heads, L, L] -> [N, L, width]."""
        q, k, v = (
            part(x).unflatten(-1, (self.config.heads, -1)).transpose(1, 2)  # [N, heads, L, d]
            for part in (self.q, self.k, self.v)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        out: Tensor = self.o(seen.transpose(1, 2).flatten(2))
        return out


class _GatedFeedForward(nn.Module):
    """GEGLU without biases (arXiv:2002.05202, equation 6), GELU by its tanh approximation."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = Linear(config.width, config.inner_width, bias=False)
        self.wi_1 = Linear(config.width, config.inner_width, bias=False)
        self.wo = Linear(config.inner_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] -> [N, L, width], in fp32 where the weights are fp16."""
        inner = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        if self.wo.weight.dtype == torch.float16:
            # XXL's sums overflow fp16 here; transformers keeps this matrix in fp32 then, and with it the residuals.
            return F.linear(inner.float(), self.wo.weight.float())
        out: Tensor = self.wo(inner)
        return out


def relative_bucket(offset: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The row of the bias table for an offset (key's place - query's place), in both directions.

    Half of the rows are for keys behind the query. Of each half, the first half are for one offset each, the others for
    ranges that grow logarithmically up to `max_distance`; what lies beyond shares the last (arXiv:1910.10683, section
    2.1). Any shape -> the same shape, 0 to `buckets` - 1.
    """
    half, exact = buckets // 2, buckets // 4
    distance = offset.abs()
    share = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    ranged = (exact + (share * (half - exact)).long()).clamp_max(half - 1)
    return half * (offset > 0) + torch.where(distance < exact, distance, ranged)


def _finite(x: Tensor) -> Tensor:
    """Where numbers of fp16 overflowed, all are cut off 1000 below the largest that it has, as transformers does."""
    if x.dtype != torch.float16 or not bool(x.isinf().any()):
        return x
    limit = torch.finfo(x.dtype).max - 1000
    return x.clamp(-limit, limit)
