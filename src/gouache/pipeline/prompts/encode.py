"""From the words of a prompt to what the network sees: chunks, emphasis, and which text holds at which step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.pipeline.prompts.chunks import MAX_CHUNKS, WeightedTokens, fill_chunks
from gouache.pipeline.prompts.emphasis import (
    STEADY,
    keep_mean,
    keep_mean_in_bounds,
    repeats_a1111,
    weight_sensitivity,
)
from gouache.pipeline.prompts.syntax import (
    A1111_GRAMMAR,
    Branch,
    Section,
    branches,
    schedule,
    sections,
    without_tags,
)
from gouache.pipeline.request import Emphasis, Request

T5_WITHOUT_MEAN = "emphasis: T5 has no steady mean; weights act without keeping it, as no_norm"
Texts = tuple[str, str | None, str | None]
"""A prompt, that of the second text encoder and that of T5; None = the prompt."""


def styled_prompt(request: Request) -> str:
    """The prompt with its style in the words that models are trained on."""
    if request.style is None:
        return request.prompt
    return f"{request.prompt}, {request.style} style" if request.prompt else f"{request.style} style"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One text, encoded.

    Attributes:
        context: all chunks one after the other. [1, L, D]
        pooled: of the first chunk; None if the family has none. [1, P]
        mask: True where a token is real; None for all. [1, L]
        t5_rows: of the context's end, which are T5's states of the text.
    """

    context: Tensor
    pooled: Tensor | None
    mask: Tensor | None
    t5_rows: int = 0

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The states of the chunks [1, L - t5_rows, D], and T5's [1, t5_rows, D]."""
        first = self.context.shape[1] - self.t5_rows
        return self.context[:, :first], self.context[:, first:]


class PromptReader:
    """Encodes texts of one generation, each once.

    Args:
        stack: the model's text encoders.
        emphasis: the rule for brackets.
        clip_skip: encoder layer counted from the last, 1 = last; None = the family's own.
        to_the_letter: whether the rule `a1111` is that tool's formula for every encoder it runs, steady mean or not.
        t5_rows: tokens that T5 reads of a text, its end and padding included; None = the family's own.
    """

    def __init__(
        self,
        stack: TextStack,
        emphasis: Emphasis,
        clip_skip: int | None,
        *,
        to_the_letter: bool = False,
        t5_rows: int | None = None,
    ) -> None:
        self.stack, self.emphasis = stack, emphasis
        self.t5_rows = 0 if stack.joint is None else t5_rows or stack.joint.rows
        if emphasis == "a1111" and to_the_letter and repeats_a1111(stack):
            self.emphasis = "original"
        self.skip_layers = None if clip_skip is None else clip_skip - 1
        layers = min((one.config.layers for one in stack.encoders if isinstance(one, TextEncoder)), default=0)
        if layers and clip_skip is not None and clip_skip > layers:
            raise InvalidInput("clip_skip", given=clip_skip, expected=f"1 to {layers}, the text encoder's layers")
        self.notes: list[str] = []
        self._seen: dict[str, EncodedPrompt] = {}

    def plan(self, prompt: str, steps: int, *, composed: bool = True, earlier: int = 0) -> PromptPlan:
        """Read a whole prompt, with prompt editing; tags of adapters are no words.

        Args:
            prompt: the prompt.
            steps: of the walk.
            composed: whether AND joins parts; in a negative prompt it is a word, as in A1111.
            earlier: steps of a walk before this one, whose edits are over; 0 = edits start anew.
        """
        found = []
        words = without_tags(prompt)
        for branch in branches(words, self.emphasis) if composed else (Branch(words, 1.0),):
            edited = self.emphasis in A1111_GRAMMAR
            pieces = schedule(branch.text, steps, earlier) if edited else ((steps, branch.text),)
            found.append((branch.weight, tuple((end, self.encode(text)) for end, text in pieces)))
        return PromptPlan(tuple(found))

    def plan_of(self, texts: Texts, steps: int, *, composed: bool = True, earlier: int = 0) -> PromptPlan:
        """Read a whole prompt, and those that single encoders read in its place; see `plan`."""
        first, second, third = texts
        plan = self.plan(first, steps, composed=composed, earlier=earlier)
        if second is not None and len(self.stack.encoders) > 1:
            other = self.plan(second, steps, composed=composed, earlier=earlier)
            plan = plan.joined(other, self.stack, self.encode(""))
        if third is not None and self.stack.t5 is not None:
            plan = plan.with_t5(self.plan(third, steps, composed=composed, earlier=earlier))
        return plan

    def encode(self, text: str) -> EncodedPrompt:
        """Encode one text with its emphasis."""
        if text not in self._seen:
            self._seen[text] = self._encode(text)
        return self._seen[text]

    @torch.no_grad()
    def _encode(self, text: str) -> EncodedPrompt:
        parts = sections(text, self.emphasis)
        chunks = self._chunks(parts)
        encoding = self.stack.encode([chunk.ids for chunk in chunks], skip_layers=self.skip_layers)
        context = encoding.context  # [N,L,D]
        if any(weight != 1.0 for chunk in chunks for weight in chunk.weights):
            context = self._emphasised(context, _row_weights(chunks, context), encoding.mask)
        whole = context.reshape(1, -1, context.shape[-1])  # [1,N*L,D]
        if self.stack.joint is not None:
            whole = self.stack.whole(whole, self._t5_states(parts))
        return EncodedPrompt(
            context=whole,
            pooled=None if encoding.pooled is None else encoding.pooled[:1],
            mask=None if encoding.mask is None else encoding.mask.reshape(1, -1),
            t5_rows=self.t5_rows,
        )

    def _t5_states(self, parts: tuple[Section, ...]) -> Tensor:
        """T5's states of a text; it has no chunks, and what is too long for it is cut. [1, t5_rows, D]"""
        tokenizer = self.stack.t5_tokenizer
        if tokenizer is None:
            return self.stack.encode_t5((), self.t5_rows)
        read = [(token, run.weight) for part in parts for run in part for token in tokenizer.ids(run.text)]
        if cut := [token for token, _ in read[self.t5_rows - 1 :]]:
            start = tokenizer.decode(cut[:8])
            self.notes.append(f"prompt: T5 was not given the last {len(cut)} tokens, from {start!r} on")
        kept = read[: self.t5_rows - 1]
        chunk = WeightedTokens(tuple(token for token, _ in kept), tuple(weight for _, weight in kept))
        states = self.stack.encode_t5(chunk.ids, self.t5_rows)
        if all(weight == 1.0 for weight in chunk.weights):
            return states
        weights = _row_weights([chunk], states, first=0)
        if self.emphasis == "comfy":
            empty = self.stack.encode_t5((), self.t5_rows)
            return torch.where(weights == 1.0, states, (states - empty) * weights + empty)
        if self.emphasis == "original":
            return keep_mean(states, states * weights, torch.ones_like(weights))
        if self.emphasis == "a1111" and T5_WITHOUT_MEAN not in self.notes:
            self.notes.append(T5_WITHOUT_MEAN)
        return states * weights

    def _chunks(self, parts: tuple[Section, ...]) -> list[WeightedTokens]:
        chunks = fill_chunks(self.stack, parts)
        if len(chunks) > MAX_CHUNKS:
            cut = [token for chunk in chunks[MAX_CHUNKS:] for token in chunk.ids]
            start = self.stack.decode_tokens(cut[:8])
            self.notes.append(f"prompt: the last {len(cut)} tokens were cut, from {start!r} on")
        return chunks[:MAX_CHUNKS]

    def _emphasised(self, context: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
        """Apply weights [N,L,1] to context [N,L,D]."""
        if self.emphasis == "comfy":
            empty = self.stack.encode([()], skip_layers=self.skip_layers).context  # [1,L,D]
            return torch.where(weights == 1.0, context, (context - empty) * weights + empty)
        parts = torch.split(context, list(self.stack.context_widths), dim=-1)
        real = torch.ones_like(weights) if mask is None else mask[..., None].to(weights)
        if self.emphasis == "original":
            return torch.cat([keep_mean(part, part * weights, real) for part in parts], dim=-1)
        kept = (False,) * len(parts) if self.emphasis == "no_norm" else self._keeps_mean
        return torch.cat(
            [
                keep_mean_in_bounds(part, part * weights, real) if keeps else part * weights
                for part, keeps in zip(parts, kept, strict=True)
            ],
            dim=-1,
        )

    @cached_property
    def _keeps_mean(self) -> tuple[bool, ...]:
        """Whether each encoder has a mean that weights can leave as it was; noted where one hasn't."""
        found = tuple(one <= STEADY for one in weight_sensitivity(self.stack, self.skip_layers))
        for number, steady in enumerate(found, start=1):
            if not steady:
                name = f"text encoder {number}" if len(found) > 1 else "the text encoder"
                self.notes.append(f"emphasis: {name} has no steady mean; weights act without keeping it, as no_norm")
        return found


def _row_weights(chunks: list[WeightedTokens], context: Tensor, first: int = 1) -> Tensor:
    """The weight of each row; the chunk's tokens begin at row `first`. [N,L,1]"""
    rows = torch.ones(context.shape[:2], dtype=torch.float32)  # [N,L]; start, end and padding weigh 1
    for row, chunk in zip(rows, chunks, strict=True):
        row[first : first + len(chunk.weights)] = torch.tensor(chunk.weights)
    return rows[..., None].to(context)


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """The encoded texts of one prompt.

    Attributes:
        branches: for each part joined by AND its weight, and its texts with the last step (from 1) each holds for.
    """

    branches: tuple[tuple[float, tuple[tuple[int, EncodedPrompt], ...]], ...]

    def at(self, step: int) -> list[tuple[float, EncodedPrompt]]:
        """Weight and text of every branch at a step, counted from 1."""
        return [(weight, _text_at(pieces, step)) for weight, pieces in self.branches]

    def mixed(self, other: PromptPlan, share: float) -> PromptPlan:
        """The plan between this one (share 0) and another (share 1): part by part, and step by step where texts change.

        Raises:
            InvalidInput: they have different numbers of parts joined by AND.
        """
        counts = [len(self.branches), len(other.branches)]
        if counts[0] != counts[1]:
            raise InvalidInput(
                "prompts", given=f"{counts[0]} and {counts[1]} parts joined by AND", expected="as many in both"
            )
        found = []
        for (weight, pieces), (other_weight, other_pieces) in zip(self.branches, other.branches, strict=True):
            ends = sorted({end for end, _ in (*pieces, *other_pieces)})
            texts = [(end, _mixed_text(_text_at(pieces, end), _text_at(other_pieces, end), share)) for end in ends]
            found.append((weight + share * (other_weight - weight), tuple(texts)))
        return PromptPlan(tuple(found))

    def joined(self, other: PromptPlan, stack: TextStack, empty: EncodedPrompt) -> PromptPlan:
        """The plan whose first text encoder read this one's texts, and whose second another's; T5 read this one's.

        Args:
            other: as many parts joined by AND, or one that goes with all.
            stack: the text encoders.
            empty: the empty text, which fills the shorter of two texts up to as many chunks (as ComfyUI does).

        Raises:
            InvalidInput: they have different numbers of parts joined by AND.
        """
        width, pooled_width = stack.context_widths[0], stack.pooled_widths[0]
        return self._merged(other, "prompt_2", lambda a, b: _joined_text(a, b, width, pooled_width, empty))

    def with_t5(self, other: PromptPlan) -> PromptPlan:
        """The plan whose T5 read another's texts; arguments and errors as in `joined`."""

        def merge(text: EncodedPrompt, other_text: EncodedPrompt) -> EncodedPrompt:
            return replace(text, context=torch.cat([text.parts[0], other_text.parts[1]], dim=1))

        return self._merged(other, "prompt_3", merge)

    def _merged(
        self, other: PromptPlan, name: str, merge: Callable[[EncodedPrompt, EncodedPrompt], EncodedPrompt]
    ) -> PromptPlan:
        parts = other.branches * len(self.branches) if len(other.branches) == 1 else other.branches
        if len(parts) != len(self.branches):
            raise InvalidInput(
                name,
                given=f"{len(other.branches)} parts joined by AND",
                expected=f"one, or as many as the prompt has: {len(self.branches)}",
            )
        found = []
        for (weight, pieces), (_, other_pieces) in zip(self.branches, parts, strict=True):
            ends = sorted({end for end, _ in (*pieces, *other_pieces)})
            texts = [(end, merge(_text_at(pieces, end), _text_at(other_pieces, end))) for end in ends]
            found.append((weight, tuple(texts)))
        return PromptPlan(tuple(found))

    def zeroed(self) -> PromptPlan:
        """The same plan with every context and pooled vector replaced by zeros."""
        return PromptPlan(
            tuple((weight, tuple((end, _zeros_like(text)) for end, text in pieces)) for weight, pieces in self.branches)
        )


def _text_at(pieces: tuple[tuple[int, EncodedPrompt], ...], step: int) -> EncodedPrompt:
    return next((text for end, text in pieces if step <= end), pieces[-1][1])


def _mixed_text(first: EncodedPrompt, last: EncodedPrompt, share: float) -> EncodedPrompt:
    """Contexts mixed token by token; the shorter one is filled up with zeros."""
    (head, tail), (other_head, other_tail) = first.parts, last.parts
    length = max(head.shape[1], other_head.shape[1])
    contexts = [F.pad(one, (0, 0, 0, length - one.shape[1])) for one in (head, other_head)]
    masks = [None if one.mask is None else F.pad(one.mask, (0, length - one.mask.shape[1])) for one in (first, last)]
    pooled = None
    if first.pooled is not None and last.pooled is not None:
        pooled = torch.lerp(first.pooled, last.pooled, share)
    mask = None if masks[0] is None or masks[1] is None else masks[0] | masks[1]
    context = torch.lerp(contexts[0], contexts[1], share)
    if first.t5_rows:
        context = torch.cat([context, torch.lerp(tail, other_tail, share)], dim=1)
    return EncodedPrompt(context, pooled, mask, first.t5_rows)


def _joined_text(
    first: EncodedPrompt, last: EncodedPrompt, width: int, pooled_width: int, empty: EncodedPrompt
) -> EncodedPrompt:
    heads, filling = [first.parts[0], last.parts[0]], empty.parts[0]
    longest = max(head.shape[1] for head in heads)
    heads = [torch.cat([head, *[filling] * ((longest - head.shape[1]) // filling.shape[1])], dim=1) for head in heads]
    context = torch.cat([heads[0][..., :width], heads[1][..., width:]], dim=-1)
    pooled = last.pooled
    if first.pooled is not None and last.pooled is not None and pooled_width:
        pooled = torch.cat([first.pooled[:, :pooled_width], last.pooled[:, pooled_width:]], dim=1)
    return EncodedPrompt(torch.cat([context, first.parts[1]], dim=1), pooled, None, first.t5_rows)


def _zeros_like(text: EncodedPrompt) -> EncodedPrompt:
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return EncodedPrompt(torch.zeros_like(text.context), pooled, text.mask, text.t5_rows)
