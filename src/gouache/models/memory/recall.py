"""What the prior remembers: captioned pictures as tokens, recalled by the likeness of their captions to the prompt.

A small network has neither room nor time to learn thousands of shapes by heart; a table of their tokens costs a tenth
of a kilobyte each. So generation is semi-parametric, as in retrieval-augmented diffusion (Blattmann et al. 2022,
arXiv:2204.11824) and in language models that look up (Khandelwal et al. 2020, "kNN-LM"): the pictures whose captions
are nearest are shown to the network, place by place, and its last layer may copy from them (See et al. 2017, "Get to
the point", equation 9). What to take from which neighbour, and when to trust none, is learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import ShapeMismatch
from gouache.models.configs import PriorConfig

__all__ = ["Recall", "Recalled"]

COPY_BIAS = -2.0
"""Of the gate before training: a tenth of the probability is copied."""
FOLLOWED = 0.01
"""Difference in likeness at which one remembered picture is followed e times as often as another."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """The nearest remembered pictures of some prompts, the nearest first.

    Attributes:
        tokens: of the pictures. [B,K,S]
        captions: unit vectors of their captions. [B,K,P]
    """

    tokens: Tensor
    captions: Tensor


class Recall(nn.Module):
    """A table of captioned pictures, the attention that reads them, and the pointer that copies.

    Buffers: `captions` [M,P], unit vectors; `tokens` [M,S]; `residuals` [M,h*w] if they are kept.
    """

    captions: Tensor
    tokens: Tensor
    residuals: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width, self.heads, self.neighbours = config.width, config.heads, config.neighbours
        self.register_buffer("captions", torch.zeros(config.memory, config.pooled_dim))
        self.register_buffer("tokens", torch.zeros(config.memory, config.length, dtype=torch.int16))
        if config.residuals:
            self.register_buffer("residuals", torch.zeros(config.memory, config.residuals, dtype=torch.uint8))
        self.rank = nn.Parameter(torch.empty(config.neighbours, width))
        self.token_key, self.token_value = (nn.Embedding(config.vocabulary, width) for _ in range(2))
        self.caption_key = nn.Linear(config.pooled_dim, width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.copy_query, self.copy_gate = nn.Linear(width, width), nn.Linear(width, 1)
        for table in (self.rank, self.token_key.weight, self.token_value.weight):
            nn.init.normal_(table, std=0.02)
        for weight in (self.out.weight, self.out.bias, self.copy_gate.weight):
            nn.init.zeros_(weight)
        nn.init.constant_(self.copy_gate.bias, COPY_BIAS)

    def remember(self, captions: Tensor, tokens: Tensor, residuals: Tensor | None = None) -> None:
        """Fill the table with the captions' vectors [M,P], the pictures' tokens [M,S] and their residual codes [M,h*w].

        Raises:
            ShapeMismatch: not as many as the table has rows, or of another size.
        """
        given = {"captions": F.normalize(captions, dim=1), "tokens": tokens}
        if residuals is not None:
            given["residuals"] = residuals
        for name, values in given.items():
            own = self.get_buffer(name)
            if values.shape != own.shape:
                raise ShapeMismatch(f"recall: {name}", given=tuple(values.shape), expected=str(tuple(own.shape)))
            own.copy_(values)

    @torch.no_grad()
    def find(self, pooled: Tensor, hide: Tensor | None = None) -> Recalled:
        """The neighbours of prompts.

        Args:
            pooled: one vector a prompt. [B,P]
            hide: true where the nearest one is passed over, as if that picture had not been kept. [B]
        """
        nearest = self.nearest(pooled)
        rows = nearest[:, :-1] if hide is None else torch.where(hide[:, None], nearest[:, 1:], nearest[:, :-1])
        return Recalled(self.tokens[rows].long(), self.captions[rows])

    @torch.no_grad()
    def nearness(self, pooled: Tensor) -> Tensor:
        """Cosine of prompts' vectors [B,P] with that of the nearest caption. [B]"""
        return self._to_captions(pooled).amax(1).float()

    @torch.no_grad()
    def nearest(self, pooled: Tensor) -> Tensor:
        """Rows of the captions that are nearest to prompts' vectors [B,P], and of one more. [B,K+1]"""
        return self._to_captions(pooled).topk(self.neighbours + 1, dim=1).indices

    def _to_captions(self, pooled: Tensor) -> Tensor:
        """Cosines of prompts' vectors [B,P] with those of all captions. [B,M]"""
        return F.normalize(pooled, dim=1).to(self.captions.dtype) @ self.captions.mT

    @torch.no_grad()
    def followed(self, pooled: Tensor, chosen: Tensor) -> Tensor:
        """The row in the table of one of the nearest pictures, the likelier the nearer its caption is. [B]

        Args:
            pooled: one vector a prompt. [B,P]
            chosen: the randomness, one number in [0, 1) for every prompt; 0 takes the nearest. [B]
        """
        rows = self.nearest(pooled)[:, :-1]  # [B,K]
        likeness = torch.einsum("bkp,bp->bk", self.captions[rows].float(), F.normalize(pooled.float(), dim=1))
        below = (likeness / FOLLOWED).softmax(1).cumsum(1)
        rank = (chosen.float()[:, None] >= below).sum(1, keepdim=True).clamp(max=self.neighbours - 1)
        return rows.gather(1, rank).squeeze(1)

    def read(self, x: Tensor, recalled: Recalled, places: Tensor) -> Tensor:
        """What the neighbours have at `places` [N], for states x there: [B,N,W] -> [B,N,W]."""
        tokens = recalled.tokens[:, :, places]  # [B,K,N]
        likeness = self._likeness(self.query(x), tokens, recalled)  # [B,N,H,K]
        values = self.token_value(tokens).unflatten(3, (self.heads, -1))  # [B,K,N,H,W/H]
        out: Tensor = self.out(
            torch.einsum("bnhk,bknhd->bnhd", likeness.softmax(-1).to(values.dtype), values).flatten(2)
        )
        return out

    def copy(self, x: Tensor, logits: Tensor, recalled: Recalled, places: Tensor) -> Tensor:
        """Log-probabilities [B,N,V] of drawing by `logits`, or copying a neighbour's token, as the last states say."""
        tokens = recalled.tokens[:, :, places]
        pointer = self._likeness(self.copy_query(x), tokens, recalled).float().sum(2).softmax(-1)  # [B,N,K]
        gate = self.copy_gate(x).float().sigmoid()  # [B,N,1]
        own = (1 - gate) * logits.float().softmax(-1)
        mixed: Tensor = own.scatter_add(2, tokens.transpose(1, 2), gate * pointer)
        return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()

    def _likeness(self, query: Tensor, tokens: Tensor, recalled: Recalled) -> Tensor:
        """How well each neighbour's token and caption fit a query. [B,N,H,K]"""
        captions = self.caption_key(recalled.captions) + self.rank  # [B,K,W]
        keys, q = self._by_head(self.token_key(tokens) + captions[:, :, None]), self._by_head(query)
        fit: Tensor = torch.einsum("bnhd,bknhd->bnhk", q, keys.to(q.dtype)) / q.shape[-1] ** 0.5
        return fit

    def _by_head(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., H, W/H]"""
        return x.reshape(*x.shape[:-1], self.heads, -1)
