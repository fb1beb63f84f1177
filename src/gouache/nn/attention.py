"""Multi-head attention over rows of tokens, through torch's scaled-dot-product kernel, and the transformer built of it
that sits between the convolutions of a latent-diffusion U-Net (arXiv:2112.10752, appendix E.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.layers import GroupNorm, Linear, add
from gouache.nn.processor import multiplies_faster_in_bf16, this_processor
from gouache.nn.token_merging import TokenMerging

LARGEST_PLAIN = 2**20
"""Most scores of one head that are kept whole for the backward pass."""
FEWEST_SCORES = 2**13
"""Up to so many scores of one head, converting numbers takes as long as it saves."""


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
    if _fp32_is_faster(q, k):
        added = mask if mask is None or mask.dtype == torch.bool else mask.float()
        seen = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=added, is_causal=causal)
        return seen.to(q.dtype)
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


def _fp32_is_faster(q: Tensor, k: Tensor) -> bool:
    """Inference in bfloat16 on a CPU whose products in it are not faster: torch's fused kernel takes up to 1.7 times as
    long as in fp32, and two products with a softmax between them longer still (`benchmarks/attention.py`). Memory stays
    bounded: queries, keys and values are copied, scores are never kept whole."""
    return (
        q.is_cpu
        and q.dtype == torch.bfloat16
        and not (torch.is_grad_enabled() and q.requires_grad)
        and q.shape[2] * k.shape[2] > FEWEST_SCORES
        and not multiplies_faster_in_bf16(this_processor())
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, heads, N, M]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    return torch.matmul(scores.softmax(-1), v)


def attended(query: Tensor, key: Tensor, *, heads: int) -> Tensor:
    """What each place receives of softmax(Q K^T / sqrt(d)): the mean over heads of the sum over queries.

    Args:
        query: [B, N, heads * d].
        key: [B, M, heads * d].
        heads: how many heads share the width.

    Returns:
        [B, M], fp32.
    """
    q, k = (_split_heads(tensor, heads).float() for tensor in (query, key))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, heads, N, M]
    received: Tensor = scores.softmax(-1).mean(1).sum(1)
    return received


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def key_mask(mask: Tensor | None) -> Tensor | None:
    """A [B, M] boolean mask over keys (True = real token) as one that `attend` broadcasts: [B, 1, 1, M]."""
    return None if mask is None else mask.bool()[:, None, None, :]


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """What a cross-attention looks at beside the text, with keys and values of its own.

    Attributes:
        to_k, to_v: the projections to keys and values.
        tokens: of the pictures. [B, M, context_width]
        weight: factor on what is seen. [B, 1, 1]
        mask: where it counts, 0..1, or None for everywhere. [1 or B, 1, H, W]
    """

    to_k: nn.Module
    to_v: nn.Module
    tokens: Tensor
    weight: Tensor
    mask: Tensor | None = None

    def at(self, size: tuple[int, ...]) -> PictureTokens:
        """The same with its mask at the size (h, w) of a feature map."""
        if self.mask is None or self.mask.shape[-2:] == size:
            return self
        small = F.interpolate(self.mask.float(), size=size, mode="bicubic", align_corners=False)
        return replace(self, mask=small.to(self.mask.dtype))

    def seen_by(self, query: Tensor, heads: int) -> Tensor:
        """query [B, N, width] -> weight * mask * softmax(Q K'^T / sqrt(d)) V' [B, N, width]."""
        seen = attend(query, self.to_k(self.tokens), self.to_v(self.tokens), heads=heads) * self.weight
        return seen if self.mask is None else seen * self.mask.flatten(1)[..., None]


@dataclass(frozen=True, slots=True)
class Areas:
    """Texts that some rows look at beside their context, each in its own area of the picture.

    Attributes:
        rows: which rows of the batch. [k]
        contexts: the tokens of each text. [1, L, D]
        masks: for each text, which of its tokens may be looked at; None = all. [1, 1, 1, L]
        shares: places of a feature map -> share of each text at each place; the context has what is left to 1. [R, N]
    """

    rows: Tensor
    contexts: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    shares: Mapping[int, Tensor]

    def blended(self, attention: Attention, query: Tensor, seen: Tensor) -> Tensor:
        """What the queries [B, N, width] see of the context, `seen` [B, N, width], with what they see of each text in
        its area: sum over texts of share * attention to the text, place by place. One text after the other, for
        memory."""
        shares = self.shares[query.shape[1]][..., None]  # [R, N, 1]
        chosen = query[self.rows]
        mixed = seen[self.rows] * (1 - shares.sum(0))
        for share, context, mask in zip(shares, self.contexts, self.masks, strict=True):
            key, value = (to(context).expand(len(chosen), -1, -1) for to in (attention.to_k, attention.to_v))
            mixed = mixed + share * attend(chosen, key, value, heads=attention.heads, mask=mask)
        return seen.index_copy(0, self.rows, mixed)


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What some rows of a batch do otherwise in a transformer block; True = otherwise.

    Attributes:
        identity: rows whose self-attention sees nothing but its own place: its map is the identity. [B, 1, 1]
        skipped: rows that the block leaves as they are. [B, 1, 1]
        attended: a list that gets what each place receives of the self-attention, the mean over heads of the sum over
            all places that look; 1 on average. [B, N]
        pictures: what the cross-attention looks at beside the text.
        areas: texts that rows look at beside their context, each in its own area.
        merging: which share of the places self-attention sees as one with another, in all rows.
    """

    identity: Tensor | None = None
    skipped: Tensor | None = None
    attended: list[Tensor] | None = None
    pictures: tuple[PictureTokens, ...] = ()
    areas: tuple[Areas, ...] = ()
    merging: TokenMerging | None = None

    def at(self, size: tuple[int, ...]) -> RowChanges:
        """The same for a feature map of this size (h, w)."""
        if all(one.mask is None for one in self.pictures) and self.merging is None:
            return self
        merging = None if self.merging is None else self.merging.at(size)
        return replace(self, pictures=tuple(one.at(size) for one in self.pictures), merging=merging)


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

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        changes: RowChanges | None = None,
        areas: Sequence[Areas] = (),
        pictures: Sequence[PictureTokens] = (),
    ) -> Tensor:
        """x [B, N, width], context [B, M, context_width] (None: x itself), mask as in `attend`, changes for
        self-attention only, areas where some rows look at other texts than the context, pictures that are looked at
        beside the texts, each by an attention of its own that is added (IP-Adapter; Ye et al. 2023, arXiv:2308.06721,
        equation 5) -> [B, N, width]."""
        source = x if context is None else context
        query, key, value = self.to_q(x), self.to_k(source), self.to_v(source)
        out = attend(query, key, value, heads=self.heads, mask=mask)
        if changes is not None and changes.identity is not None:
            out = torch.where(changes.identity, value, out)
        if changes is not None and changes.attended is not None:
            changes.attended.append(attended(query, key, heads=self.heads))
        for area in areas:
            out = area.blended(self, query, out)
        for one in pictures:
            out = out + one.seen_by(query, self.heads)
        projected: Tensor = self.to_out[0](out)
        return projected


class GatedProjection(nn.Module):
    """GEGLU (Shazeer 2020, arXiv:2002.05202, equation 6): one half of a projection gates the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, inner]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Gated two-layer network, four times as wide inside: [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle entry holds the place of a dropout, so that the parameter names are the published ones.
        self.net = nn.ModuleList([GatedProjection(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, width]."""
        out: Tensor = self.net[2](self.net[0](x))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each behind a layer norm, each residual. With
    `crossing` the first attention is one to the context too."""

    def __init__(self, width: int, *, heads: int, context_width: int, crossing: bool = False) -> None:
        super().__init__()
        self.crossing = crossing
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = (
            Attention(width, heads=heads, context_width=context_width) if crossing else Attention(width, heads=heads)
        )
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads=heads, context_width=context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, changes: RowChanges | None = None
    ) -> Tensor:
        """x [B, N, width], context [B, L, context_width], mask [B, 1, 1, L] -> [B, N, width]."""
        start = x
        areas, pictures = ((), ()) if changes is None else (changes.areas, changes.pictures)
        if self.crossing:
            x = add(self.attn1(self.norm1(x), context, mask, areas=areas), x)
        else:
            x = add(self._self_attention(x, changes), x)
        x = add(self.attn2(self.norm2(x), context, mask, areas=areas, pictures=pictures), x)
        x = add(self.ff(self.norm3(x)), x)
        return x if changes is None or changes.skipped is None else torch.where(changes.skipped, start, x)

    def _self_attention(self, x: Tensor, changes: RowChanges | None) -> Tensor:
        merging = None if changes is None or changes.merging is None else changes.merging.of(x)
        if merging is None:
            out: Tensor = self.attn1(self.norm1(x), changes=changes)
            return out
        return merging.unmerge(self.attn1(merging.merge(self.norm1(x)), changes=changes))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, which look at the text.

    Args:
        channels: channels of the feature map.
        heads: attention heads.
        depth: number of transformer blocks.
        context_width: width of the text's tokens.
        groups: groups of the norm in front.
        linear: whether the projections in and out are linear layers (SD 2.x, SDXL) or 1x1 convolutions (SD 1.x).
        crossing: both attentions look at the text.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        context_width: int,
        groups: int = 32,
        linear: bool = False,
        crossing: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in: nn.Module = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, context_width=context_width, crossing=crossing)
            for _ in range(depth)
        )
        self.proj_out: nn.Module = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        changes: Mapping[nn.Module, RowChanges] | None = None,
    ) -> Tensor:
        """x [B, C, h, w], context [B, L, context_width], mask [B, 1, 1, L], changes by block -> [B, C, h, w]."""
        size = x.shape[-2:]
        hidden = self.norm(x)
        hidden = self.proj_in(_to_tokens(hidden)) if self.linear else _to_tokens(self.proj_in(hidden))  # [B, h*w, C]
        for block in self.transformer_blocks:
            other = changes.get(block) if changes else None
            hidden = block(hidden, context, mask, None if other is None else other.at(size))
        hidden = _to_pixels(self.proj_out(hidden), size) if self.linear else self.proj_out(_to_pixels(hidden, size))
        return add(hidden, x)


def _to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C]; no copy if `x` is channels-last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _to_pixels(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w], channels-last in memory."""
    return x.reshape(x.shape[0], *size, -1).permute(0, 3, 1, 2)
