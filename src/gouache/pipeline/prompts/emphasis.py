"""What the weights of a prompt do to the states of a text encoder.

A1111's rule multiplies each token's state by its weight and then scales the whole chunk so that its mean is what it
was: c' = w c * mean(c) / mean(w c). The quotient has a pole where mean(w c) = 0. An encoder whose token means share a
sign (CLIP's) never comes near it; one whose token means lie around zero (a sentence encoder's) meets it with ordinary
prompts, and the chunk is blown up or changes sign. So the mean is kept only for encoders that have one, which is
measured on the encoder alone and never on the prompt at hand: two weights of one prompt never fall under two rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack

SAMPLES = (
    "a house",
    "a blue car, flat style",
    "a cat to the left of a tree",
    "portrait of an old man with a grey beard, sitting at a wooden table in a dark room, a candle, two books and an "
    "apple in front of him, warm light from the left, oil painting by a dutch master, highly detailed, sharp focus, "
    "rough brush strokes on canvas, deep shadows, muted colors, museum quality, 8k, a window with snow falling outside "
    "at night, a sleeping dog on the floor beside a basket of bread",
)
"""Ordinary prompts, from a few tokens to a full chunk."""
STEADY = 1.25
"""An encoder keeps its mean up to this `weight_sensitivity`: weights from 0.5 to 1.5 then scale it by 0.61 to 2.7 at
most. Token means of one sign give at most 1."""
MOST = 10.0
"""Largest factor by which a mean is restored: what weights of 0.1 on every token of a chunk need."""


@torch.no_grad()
def weight_sensitivity(stack: TextStack, skip_layers: int | None) -> tuple[float, ...]:
    """How strongly weights on a prompt's tokens move the mean of its states, for each encoder of a stack.

    The condition number of the mean in the weights, sum |m_t| over the tokens / |sum m_t over all rows| with m_t the
    mean of row t: weights within 1 +- d change the mean by at most d times this (Higham 2002, Accuracy and Stability of
    Numerical Algorithms, section 4.2). The largest of several ordinary prompts.

    Args:
        stack: the text encoders.
        skip_layers: as `TextStack.encode` takes it.
    """
    chunks = [stack.tokenize(text)[: stack.chunk_length] for text in SAMPLES]
    encoding = stack.encode(chunks, skip_layers=skip_layers)
    found = []
    for part in torch.split(encoding.context.float(), list(stack.context_widths), dim=-1):
        means = part.mean(dim=-1)  # [N,L]
        if encoding.mask is not None:
            means = means * encoding.mask.to(means)
        moved = torch.stack([row[1 : 1 + len(ids)].abs().sum() for row, ids in zip(means, chunks, strict=True)])
        found.append(float((moved / means.sum(dim=1).abs().clamp(min=1e-30)).max()))
    return tuple(found)


def repeats_a1111(stack: TextStack) -> bool:
    """Whether A1111 runs such encoders, so that there are pictures of its own to repeat."""
    return stack.joint is None and all(isinstance(encoder, TextEncoder) for encoder in stack.encoders)


def keep_mean(before: Tensor, after: Tensor, real: Tensor) -> Tensor:
    """A1111's own formula: scale each chunk so that its mean over real tokens is what it was; it has a pole.

    Args:
        before, after: states without and with weights. [N,L,D]
        real: 1 where a token is real, else 0. [N,L,1]
    """
    old, new = _means(before, after, real)
    return torch.where(new.abs() > 1e-12, after * (old / new), after)


def keep_mean_in_bounds(before: Tensor, after: Tensor, real: Tensor) -> Tensor:
    """As `keep_mean`, bit for bit where the factor is between 0 and `MOST`, and `MOST` beyond: where weights near or
    below zero cancel a chunk."""
    old, new = _means(before, after, real)
    factor = torch.where(old * new > 0, old / new, torch.inf).clamp(max=MOST)
    return after * factor


def _means(before: Tensor, after: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    return (before * real).mean((1, 2), keepdim=True), (after * real).mean((1, 2), keepdim=True)
