"""Multi-head attention over rows of tokens, through torch's scaled-dot-product kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.layers import Linear

LARGEST_PLAIN = 2**20
"""Most scores of one head that are kept whole for the backward pass."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, arXiv:1706.03762, equation 1), by heads.

    Args:
        query: [B, N, heads * d].
        key: [B, M, heads * d].
        value: [B, M, heads * d].
        heads: how many heads share the width.
        mask: broadcastable to [B, heads, N, M]; boolean (True = may be seen) or added to the scores.
        causal: each row sees itself and the rows before it; then there is no `mask`.

    Returns:
        [B, N, heads * d].
    """
    q, k, v = (_split_heads(tensor, heads) for tensor in (query, key, value))  # [B, heads, N or M, d]
    out = attend_heads(q, k, v, mask=mask, causal=causal)
    return out.transpose(1, 2).flatten(2)  # [B, N, heads * d]


def attend_heads(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, head by head, by the kernel that is faster.

    Args:
        q: [B, heads, N, d].
        k, v: [B, heads, M, d].
        mask, causal: as in `attend`.

    Returns:
        [B, heads, N, d].
    """
    if not causal and _plain_is_faster(q, k):
        return _attend_plainly(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _plain_is_faster(q: Tensor, k: Tensor) -> bool:
    """Training in bfloat16 on a CPU: the backward pass of torch's fused kernel takes up to ten times as long there."""
    return (
        q.is_cpu
        and q.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and q.requires_grad
        and q.shape[2] * k.shape[2] <= LARGEST_PLAIN
    )


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, heads, N, M]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    return torch.matmul(scores.softmax(-1), v)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def key_mask(mask: Tensor | None) -> Tensor | None:
    """A [B, M] boolean mask over keys (True = real token) as one that `attend` broadcasts: [B, 1, 1, M]."""
    return None if mask is None else mask.bool()[:, None, None, :]


class Attention(nn.Module):
    """Self- or cross-attention of a U-Net or VAE; the output projection has a bias, the others only if asked.

    Args:
        width: channels of the queries and of the result.
        heads: number of heads; divides `width`.
        context_width: channels of what is looked at; `width` for self-attention.
        bias: whether the query, key and value projections have a bias (the VAE's do).
    """

    def __init__(self, width: int, *, heads: int, context_width: int | None = None, bias: bool = False) -> None:
        super().__init__()
        source = width if context_width is None else context_width
        self.heads = heads
        self.to_q = Linear(width, width, bias=bias)
        self.to_k = Linear(source, width, bias=bias)
        self.to_v = Linear(source, width, bias=bias)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, N, width], context [B, M, context_width] (None: x itself), mask as in `attend` -> [B, N, width]."""
        source = x if context is None else context
        out = attend(
            self.to_q(x),
            self.to_k(source),
            self.to_v(source),
            heads=self.heads,
            mask=mask,
        )
        projected: Tensor = self.to_out[0](out)
        return projected
