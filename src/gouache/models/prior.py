"""The autoregressive prior: a decoder-only transformer over a picture's tokens, given text.

Tokens come in groups; all tokens of a group are drawn at once, given the groups before. With one token a group this
is the raster order of Esser et al. 2021 ("Taming Transformers"); with one scale a group it is the next-scale
prediction of Tian et al. 2024 ("Visual Autoregressive Modeling", equation 4), and a scale may be drawn in several
turns (`models/prior.py`). Text stands as a prefix of the sequence or is attended to across (a config choice).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import InvalidInput, ShapeMismatch
from gouache.models.configs import PriorConfig
from gouache.models.memory.recall import Recall, Recalled
from gouache.models.quantizer import Quantizer
from gouache.nn.attention import attend_heads, key_mask
from gouache.nn.layers import Dropout

__all__ = ["Draw", "DrawOrder", "Prior", "PriorConfig", "draw_order", "inverse_transform", "prior_inputs", "truncate"]


class DrawOrder:
    """Places are numbered as the tokens stand in the sequence: coarse scales first, each in raster order.

    Attributes:
        rounds: for every scale, the places that each of its turns draws.
        order: all places, in the order in which they are drawn. [S]
        place_in_order: where each place stands in `order`. [S]
        before: the place drawn by the turn before in the same cell; -1 in a first turn. [S]
    """

    def __init__(self, groups: tuple[int, ...], turns: tuple[int, ...]) -> None:
        self.before = torch.full((sum(groups),), -1)
        self.rounds: list[list[Tensor]] = []
        start = 0
        for count, number in zip(groups, turns or (1,) * len(groups), strict=True):
            self.rounds.append(
                [torch.arange(start, start + count)] if number == 1 else self._turns(count, number, start)
            )
            start += count
        self.order = torch.cat([places for turns_ in self.rounds for places in turns_])
        self.place_in_order = self.order.argsort()

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of every turn, in order."""
        return [len(places) for turns in self.rounds for places in turns]

    def _turns(self, count: int, number: int, start: int) -> list[Tensor]:
        side, cell = math.isqrt(count), math.isqrt(number)
        turn_of = _bayer(cell).repeat(side // cell, side // cell).flatten()  # [count]
        places = [start + (turn_of == turn).nonzero().squeeze(1) for turn in range(number)]
        # Sorted by cell, so that the k-th place of every turn lies in the k-th cell.
        cells = [self._cell(one - start, side, cell).argsort(stable=True) for one in places]
        places = [one[by_cell] for one, by_cell in zip(places, cells, strict=True)]
        for earlier, later in itertools.pairwise(places):
            self.before[later] = earlier
        return places

    @staticmethod
    def _cell(places: Tensor, side: int, cell: int) -> Tensor:
        return places // side // cell * (side // cell) + places % side // cell


@lru_cache
def draw_order(groups: tuple[int, ...], turns: tuple[int, ...]) -> DrawOrder:
    """The order for scales of `groups` tokens, each drawn in as many turns as `turns` says (none: one each)."""
    with torch.device("cpu"):  # a network may be built on the meta device; places are real all the same
        return DrawOrder(groups, turns)


def _bayer(side: int) -> Tensor:
    """The dither matrix of a power of two: 0 ... side^2 - 1, neighbours in number far apart in place. [side,side]"""
    matrix = torch.zeros(1, 1, dtype=torch.long)
    while len(matrix) < side:
        grown = 4 * matrix
        matrix = torch.cat([torch.cat([grown, grown + 2], dim=1), torch.cat([grown + 3, grown + 1], dim=1)])
    return matrix


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw tokens from the prior's distribution.

    Attributes:
        temperature: > 0; the logits are divided by it.
        top_k: keep only the k most likely codes; 0 keeps all.
        top_p: keep the smallest set of codes with this much probability, 0 < top_p <= 1.
        guidance_scale: classifier-free guidance on the logits (Ho & Salimans 2022, equation 6); 1 is off.
        recall: added to the logits of the tokens of one remembered picture, of those whose captions are nearest to the
            prompt; 0 is off. The network alone decides place by place what to copy from which, and so mixes them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    recall: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidInput("temperature", given=self.temperature, expected="a number above 0")
        if self.top_k < 0:
            raise InvalidInput("top_k", given=self.top_k, expected="0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", given=self.top_p, expected="a share between 0 (excluded) and 1")
        if self.recall < 0:
            raise InvalidInput("recall", given=self.recall, expected="0 (off) or more")


Cache = list[tuple[Tensor, Tensor]]
Texts = tuple[Tensor, Tensor, Tensor | None]
"""Context [B,L,D], pooled [B,P], and the mask [B,L] of the context."""


class PriorLayer(nn.Module):
    """One transformer block: self-attention (with a cache), optional cross-attention, MLP; all pre-norm."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads, self.drop = config.heads, Dropout(config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.cross: CrossAttention | None = CrossAttention(config) if config.text == "cross" else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        cache: tuple[Tensor, Tensor] | None,
        text: Tensor | None,
        text_mask: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B,N,W] and the cached keys and values of what stood before -> x [B,N,W] and the longer cache."""
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=2))
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        h = attend_heads(q, k, v, mask=mask)  # [B,H,N,W/H]
        x = x + self.drop(self.out(h.transpose(1, 2).flatten(2)))
        if self.cross is not None and text is not None:
            x = x + self.drop(self.cross(x, text, text_mask))
        return x + self.drop(self.mlp(self.norm2(x))), (k, v)


class CrossAttention(nn.Module):
    """Attention from tokens to text."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.heads, self.norm = config.heads, nn.LayerNorm(config.width)
        self.q, self.kv = nn.Linear(config.width, config.width), nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.kv(text).chunk(2, dim=2))
        h = attend_heads(q, k, v, mask=key_mask(mask))
        out: Tensor = self.out(h.transpose(1, 2).flatten(2))
        return out


class Prior(nn.Module):
    """p(tokens | text) as a product over groups."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.order = draw_order(config.groups, config.turns)
        self.features_in = nn.Linear(config.features, config.width)
        self.before_in = nn.Linear(config.features, config.width, bias=False) if config.in_turns else None
        self.pooled_in = nn.Linear(config.pooled_dim, config.width)
        self.context_in = nn.Linear(config.context_dim, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.length, config.width))
        self.layers = nn.ModuleList(PriorLayer(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary)
        self.recall = Recall(config) if config.neighbours else None
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(
        self,
        inputs: Tensor,
        context: Tensor,
        pooled: Tensor,
        context_mask: Tensor | None = None,
        *,
        hide: Tensor | None = None,
    ) -> Tensor:
        """Logits of every token, given the true tokens of the groups before.

        Args:
            inputs: what `prior_inputs` makes of the tokens. [B,S,F], [B,S,2F] if drawn in turns
            context: text states. [B,L,D]
            pooled: one vector for the whole text. [B,P]
            context_mask: true where a text state counts; none means all. [B,L]
            hide: true where the nearest remembered picture is passed over; see `Recall.find`. [B]

        Returns:
            Logits over the code book. [B,S,V]
        """
        self._check(inputs, context, pooled)
        text, mask = self._text(context, context_mask)
        order = self.order.order.to(inputs.device)
        recalled = None if self.recall is None else self.recall.find(pooled, hide)
        x = self._embed(inputs[:, order], pooled, order, recalled)
        own = self._group_mask(x.device)  # [S,S]
        if self.config.text == "cross":
            x, _ = self._run(x, own[None, None].expand(len(x), 1, -1, -1), None, text, mask)
        else:
            x, _ = self._run(torch.cat([text, x], dim=1), _prefix_mask(mask, own), None, None, None)
        return self._logits(x, order, recalled)[:, self.order.place_in_order.to(inputs.device)]

    def log_likelihood(
        self, quantizer: Quantizer, tokens: Tensor, context: Tensor, pooled: Tensor, context_mask: Tensor | None = None
    ) -> Tensor:
        """Exact log p(token | tokens before, text) in nats, for every token. [B,S]"""
        logits = self(prior_inputs(self.config, quantizer, tokens), context, pooled, context_mask)
        return torch.log_softmax(logits.float(), dim=2).gather(2, tokens[..., None]).squeeze(2)

    @torch.no_grad()
    def sample(
        self,
        quantizer: Quantizer,
        context: Tensor,
        pooled: Tensor,
        uniform: Tensor,
        *,
        context_mask: Tensor | None = None,
        draw: Draw = Draw(),
        followed: Tensor | None = None,
        unconditional: tuple[Tensor, Tensor, Tensor | None] | None = None,
        known: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Draw tokens scale by scale; yields the tokens so far [B,S'] after each scale.

        Args:
            quantizer: turns the tokens drawn into what the next group reads.
            context, pooled, context_mask: as in `forward`.
            uniform: the randomness, one number in [0, 1) for every token. [B,S]
            draw: temperature, truncation, guidance, and how much a remembered picture counts.
            followed: tokens of that picture; none takes those of the nearest. [B,S]
            unconditional: (context, pooled, mask) of the empty text, for guidance other than 1.
            known: tokens to keep (completion), -1 where a token is to be drawn. [B,S]
        """
        guided = draw.guidance_scale != 1.0
        if guided and unconditional is None:
            raise InvalidInput("unconditional", given="none", expected="the empty text's states, for guidance")
        texts = (context, pooled, context_mask)
        if guided and unconditional is not None:
            texts = _one_behind_other(texts, unconditional)
        stream = Stream(self, *texts)
        if not draw.recall or self.recall is None:
            followed = None
        elif followed is None:
            followed = self.recall.find(pooled).tokens[:, 0]
        tokens = torch.empty(len(context), 0, dtype=torch.long, device=context.device)
        for scale, turns in enumerate(self.order.rounds):
            inputs = self._next_inputs(quantizer, tokens, self.config.groups[scale])
            start, tokens = tokens.shape[1], F.pad(tokens, (0, self.config.groups[scale]))
            for places in (one.to(tokens.device) for one in turns):
                given = inputs[:, places - start]
                if self.before_in is not None:
                    given = torch.cat([given, self._before(quantizer, tokens, scale, places)], dim=2)
                mixed = stream.step(given.repeat(1 + guided, 1, 1), places)
                if guided:
                    own, without = mixed.chunk(2)
                    mixed = without + draw.guidance_scale * (own - without)
                if followed is not None:
                    likelier = F.one_hot(followed[:, places], self.config.vocabulary)
                    mixed = mixed + draw.recall * likelier.to(mixed.dtype)
                drawn = inverse_transform(truncate(mixed.float(), draw), uniform[:, places])
                if known is not None:
                    drawn = torch.where(known[:, places] >= 0, known[:, places], drawn)
                tokens[:, places] = drawn
            yield tokens

    def forget_residuals(self) -> None:
        """Let what is remembered have no residual codes any more: none fit the drafts of another decoder."""
        if self.recall is not None and self.config.residuals:
            self.recall.residuals = torch.zeros_like(self.recall.residuals)  # not in place: it may be a file's pages

    def _before(self, quantizer: Quantizer, tokens: Tensor, scale: int, places: Tensor) -> Tensor:
        """Vectors of the tokens that the turn before drew in the cells of `places`; zero in a first turn. [B,N,F]"""
        before = self.order.before.to(places.device)[places]
        return quantizer.vectors_of(scale, tokens[:, before.clamp(min=0)]) * (before >= 0)[:, None]

    def _next_inputs(self, quantizer: Quantizer, tokens: Tensor, count: int) -> Tensor:
        """The inputs [B,count,F] of the group to come."""
        if self.config.groups == quantizer.config.groups:
            return quantizer.inputs(tokens)[:, -count:]
        if tokens.shape[1] == 0:
            return torch.zeros(len(tokens), 1, self.config.features, device=tokens.device)
        padded = F.pad(tokens, (0, self.config.length - tokens.shape[1]))
        return quantizer.vectors(padded)[:, tokens.shape[1] - 1 : tokens.shape[1]]

    def _embed(self, inputs: Tensor, pooled: Tensor, places: Tensor, recalled: Recalled | None) -> Tensor:
        x: Tensor = self.features_in(inputs[..., : self.config.features]) + self.position_embedding[places]
        if self.before_in is not None:
            x = x + self.before_in(inputs[..., self.config.features :])
        x = x + self.pooled_in(pooled)[:, None]
        if self.recall is not None and recalled is not None:
            x = x + self.recall.read(x, recalled, places)
        return x

    def _logits(self, x: Tensor, places: Tensor, recalled: Recalled | None) -> Tensor:
        """Of the last states x, of which the last ones stand at `places`. [B,N,V]"""
        x = self.norm_out(x[:, -len(places) :])
        logits: Tensor = self.head(x)
        if self.recall is None or recalled is None:
            return logits
        return self.recall.copy(x, logits, recalled, places)

    def _text(self, context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if mask is None:
            mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        return self.context_in(context), mask

    def _run(
        self, x: Tensor, mask: Tensor, caches: Cache | None, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Cache]:
        longer: Cache = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, mask, caches[i] if caches else None, text, text_mask)
            longer.append(cache)
        return x, longer

    def _group_mask(self, device: torch.device) -> Tensor:
        """A token sees every token of its own turn and of the turns before. [S,S], in the order of drawing"""
        sizes = torch.tensor(self.order.sizes, device=device)
        group_of = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        return group_of[:, None] >= group_of[None]

    def _check(self, inputs: Tensor, context: Tensor, pooled: Tensor) -> None:
        config = self.config
        for name, tensor, wanted in (
            ("inputs", inputs, (config.length, config.features * (1 + config.in_turns))),
            ("context", context, (context.shape[1], config.context_dim)),
            ("pooled", pooled, (config.pooled_dim,)),
        ):
            if tuple(tensor.shape[1:]) != wanted:
                raise ShapeMismatch(f"prior: {name}", given=tuple(tensor.shape), expected=f"[batch, {wanted}]")


class Stream:
    """The pass of some texts through the prior, group by group, with cached keys and values."""

    def __init__(self, prior: Prior, context: Tensor, pooled: Tensor, mask: Tensor | None) -> None:
        self.prior, self.pooled, self.done = prior, pooled, 0
        if mask is not None:  # what no text has is looked at by nothing
            context, mask = context[:, mask.any(0)], mask[:, mask.any(0)]
        text, self.mask = prior._text(context, mask)
        self.cross = text if prior.config.text == "cross" else None
        self.prefix = text if self.cross is None else None
        self.caches: Cache | None = None
        self.recalled = None if prior.recall is None else prior.recall.find(pooled)

    def step(self, inputs: Tensor, places: Tensor) -> Tensor:
        """Logits [B,N,V] of the next tokens to draw, whose inputs [B,N,F] and places [N] are given."""
        prior, count = self.prior, inputs.shape[1]
        x = prior._embed(inputs, self.pooled, places, self.recalled)
        if self.prefix is not None:
            if self.caches is None:
                group = torch.zeros(count, count, dtype=torch.bool, device=x.device).logical_not()
                seen = _prefix_mask(self.mask, group)
                x = torch.cat([self.prefix, x], dim=1)
            else:
                ones = self.mask.new_ones(len(x), self.done + count)
                seen = torch.cat([self.mask, ones], dim=1)[:, None, None]
        else:
            seen = self.mask.new_ones(len(x), 1, 1, self.done + count)
        x, self.caches = prior._run(x, seen, self.caches, self.cross, self.mask)
        self.done += count
        return prior._logits(x, places, self.recalled)


def _one_behind_other(first: Texts, second: Texts) -> Texts:
    """The rows of both, the shorter context padded: a small network's time is that of reading its weights."""
    length, contexts, masks = max(first[0].shape[1], second[0].shape[1]), [], []
    for context, _, mask in (first, second):
        missing = length - context.shape[1]
        contexts.append(F.pad(context, (0, 0, 0, missing)))
        own = context.new_ones(context.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        masks.append(F.pad(own, (0, missing)))
    return torch.cat(contexts), torch.cat([first[1], second[1]]), torch.cat(masks)


def prior_inputs(config: PriorConfig, quantizer: Quantizer, tokens: Tensor) -> Tensor:
    """What the prior reads at every position when the true tokens [B,S] are known. [B,S,F], [B,S,2F] in turns"""
    if config.groups == quantizer.config.groups:
        sums = quantizer.inputs(tokens)
        if not config.in_turns:
            return sums
        before = draw_order(config.groups, config.turns).before.to(tokens.device)
        given = quantizer.vectors(tokens)[:, before.clamp(min=0)] * (before >= 0)[:, None]
        return torch.cat([sums, given], dim=2)
    if set(config.groups) != {1}:
        raise ShapeMismatch("prior.groups", given=config.groups, expected=f"{quantizer.config.groups}, or all ones")
    return F.pad(quantizer.vectors(tokens)[:, :-1], (0, 0, 1, 0))


def _prefix_mask(text: Tensor, own: Tensor) -> Tensor:
    """Who sees whom when text [B,L] stands before tokens (own [N,N]): text sees text, tokens see text and `own`."""
    batch, length = text.shape
    count = len(own)
    seen = torch.zeros(batch, 1, length + count, length + count, dtype=torch.bool, device=text.device)
    seen[:, :, :, :length] = text[:, None, None]
    seen[:, :, length:, length:] = own
    return seen


def truncate(logits: Tensor, draw: Draw) -> Tensor:
    """Probabilities [..., V] after temperature, top-k, and the nucleus of Holtzman et al. 2020 (equation 2)."""
    logits = logits / draw.temperature
    if 0 < draw.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(draw.top_k).values[..., -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if draw.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= draw.top_p
        dropped = torch.zeros_like(outside).scatter(-1, order, outside)
        probabilities = probabilities.masked_fill(dropped, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def inverse_transform(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices [...] from probabilities [..., V] with given uniform numbers [...] (inverse transform sampling)."""
    cumulative = probabilities.double().cumsum(-1)
    target = uniform.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=probabilities.shape[-1] - 1)
