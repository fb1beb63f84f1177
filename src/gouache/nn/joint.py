"""The block of a multimodal diffusion transformer (MMDiT): two streams of tokens, picture and text, with weights of
their own, that look at both in one attention (Esser et al. 2024, arXiv:2403.03206, section 4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.attention import RowChanges, attend_heads
from gouache.nn.layers import Linear

EPS = 1e-6


def normed(x: Tensor) -> Tensor:
    """Layer norm without weights of its own, as adaptive norms have it. [B, N, D]"""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift for normed tokens [B, N, D] and one vector a row [B, 1, D] (arXiv:2212.09748, section
    3.2)."""
    return x * (1 + scale) + shift


class Modulation(nn.Module):
    """Vectors that scale, shift and gate a stream, from the activated embedding of time and pooled text: adaLN-Zero
    (Peebles and Xie 2023, arXiv:2212.09748, section 3.2)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(width, parts * width)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """embedding [B, D] -> `parts` times [B, 1, D]."""
        return self.linear(embedding)[:, None].chunk(self.parts, dim=-1)  # type: ignore[no-any-return]


class JointAttention(nn.Module):
    """Attention over the tokens of both streams, or over the picture's alone.

    Args:
        width: channels of both streams.
        heads: attention heads.
        qk_norm: whether queries and keys pass an RMS norm, head by head (arXiv:2403.03206, section 5.3.2).
        text: whether the text's stream takes part.
        text_out: whether the text's stream gets its result; not in the last block.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, text: bool, text_out: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = Linear(width, width), Linear(width, width), Linear(width, width)
        if text:
            self.add_q_proj, self.add_k_proj = Linear(width, width), Linear(width, width)
            self.add_v_proj = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])
        if text_out:
            self.to_add_out = Linear(width, width)
        self.qk_norm = qk_norm
        for name in (("norm_q", "norm_k") + (("norm_added_q", "norm_added_k") if text else ())) if qk_norm else ():
            self.add_module(name, nn.RMSNorm(width // heads, eps=EPS))

    def forward(
        self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams after attention.

        Args:
            x: the picture's tokens. [B, N, D]
            text: the text's, for a block that looks at them. [B, L, D]
            mask: which of both may be looked at, or None for all. [B, 1, 1, N + L]

        Returns:
            [B, N, D], and [B, L, D] or None where the text's stream ends.
        """
        q, k, v = self._heads_of(x, self.to_q, self.to_k, self.to_v, "norm_q", "norm_k")
        if text is not None:
            more = self._heads_of(
                text, self.add_q_proj, self.add_k_proj, self.add_v_proj, "norm_added_q", "norm_added_k"
            )
            q, k, v = (torch.cat(both, dim=2) for both in zip((q, k, v), more, strict=True))  # [B, heads, N + L, d]
        seen = attend_heads(q, k, v, mask=mask).transpose(1, 2).flatten(2)
        out: Tensor = self.to_out[0](seen[:, : x.shape[1]])
        if text is None or not hasattr(self, "to_add_out"):
            return out, None
        return out, self.to_add_out(seen[:, x.shape[1] :])

    def _heads_of(
        self, x: Tensor, to_q: Linear, to_k: Linear, to_v: Linear, norm_q: str, norm_k: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, N, d]."""
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (to_q, to_k, to_v))
        if self.qk_norm:
            q, k = self.get_submodule(norm_q)(q), self.get_submodule(norm_k)(k)
        return q, k, v


class GeluProjection(nn.Module):
    """A linear layer with GELU behind it, by its tanh approximation (arXiv:1606.08415, section 2)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, inner]."""
        return F.gelu(self.proj(x), approximate="tanh")


class JointFeedForward(nn.Module):
    """Two-layer network, four times as wide inside: [B, N, width] -> [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The middle entry holds the place of a dropout, so that the parameter names are the published ones.
        self.net = nn.ModuleList([GeluProjection(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, width] -> [B, N, width]."""
        out: Tensor = self.net[2](self.net[0](x))
        return out


class JointBlock(nn.Module):
    """Attention over both streams and a feed-forward for each, all behind adaptive norms, gated and residual.

    Args:
        width: channels of both streams.
        heads: attention heads.
        qk_norm: as in `JointAttention`.
        dual: whether the picture's tokens have a second attention, among themselves (3.5 medium, 2024).
        last: whether the text's stream ends here.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, dual: bool, last: bool) -> None:
        super().__init__()
        self.dual, self.last = dual, last
        self.norm1 = Modulation(width, 9 if dual else 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(width, heads, qk_norm=qk_norm, text=True, text_out=not last)
        if dual:
            self.attn2 = JointAttention(width, heads, qk_norm=qk_norm, text=False, text_out=False)
        self.ff = JointFeedForward(width)
        if not last:
            self.ff_context = JointFeedForward(width)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        embedding: Tensor,
        mask: Tensor | None = None,
        changes: RowChanges | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block.

        Args:
            x: the picture's tokens. [B, N, D]
            text: the text's. [B, L, D]
            embedding: activated, of time and pooled text. [B, D]
            mask: which of both may be looked at, or None for all. [B, 1, 1, N + L]
            changes: what some rows do otherwise; only whole blocks can be left out.

        Returns:
            [B, N, D] and [B, L, D]; the last block leaves the text as it was.
        """
        shift, scale, gate, ff_shift, ff_scale, ff_gate, *second = self.norm1(embedding)
        of_text = self.norm1_context(embedding)
        # The published last block has scale and shift in another order than all others.
        text_shift, text_scale = of_text[::-1] if self.last else of_text[:2]
        plain, plain_text = normed(x), modulated(normed(text), text_shift, text_scale)
        seen, text_seen = self.attn(modulated(plain, shift, scale), plain_text, mask)
        new = x + gate * seen
        if self.dual:
            shift, scale, gate = second
            new = new + gate * self.attn2(modulated(plain, shift, scale))[0]
        new = new + ff_gate * self.ff(modulated(normed(new), ff_shift, ff_scale))
        new_text = text if text_seen is None else self._text_after(text, text_seen, of_text)
        if changes is None or changes.skipped is None:
            return new, new_text
        return torch.where(changes.skipped, x, new), torch.where(changes.skipped, text, new_text)

    def _text_after(self, text: Tensor, seen: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        _, _, gate, ff_shift, ff_scale, ff_gate = modulation
        text = text + gate * seen
        out: Tensor = text + ff_gate * self.ff_context(modulated(normed(text), ff_shift, ff_scale))
        return out
