"""A prompt in the words of what a model's prior remembers: with a style, without measure words, by its labels.

What is remembered is found by its caption, and captions name a style and call things by their labels. So where a draft
follows what is remembered, a prompt is drafted as such a caption would say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.diffusion.rng import generator_for
from gouache.models.bundle import ModelBundle
from gouache.models.memory.synonyms import CHINESE
from gouache.models.prior import inverse_transform
from gouache.pipeline.composition import layout_of
from gouache.pipeline.generate.draft import with_defaults
from gouache.pipeline.likelihood import encode_captions
from gouache.pipeline.prompts.encode import EncodedPrompt, styled_prompt
from gouache.pipeline.prompts.layout import NAMES_A_STYLE, SYNTAX, without_measure
from gouache.pipeline.request import Request

ALIKE = 0.02
"""Difference in nearness at which one style, or one of the things that a word means, is chosen e times as often as
another."""
SURELY, HARDLY = 0.87, 0.3
"""Of English captions: nearness to what is remembered from which on the text encoder is trusted, whatever the keywords
say; and likeness of the words to the label below which the keyword only has to do with it, as a knight with a dragon.
Chinese ones the encoder knows less of than the keywords do."""

Encode = Callable[[str], EncodedPrompt]


@dataclass(frozen=True, slots=True)
class AsDrafted:
    """How the prior reads a prompt.

    Attributes:
        prompt: as it is drafted, with a style.
        text: its encoding.
        encode: encodes words of it; None if the prompt is no plain text.
        renamed: words of the prompt -> the label that they are drafted by, as far as they were encoded.
    """

    prompt: str
    text: EncodedPrompt
    encode: Encode | None
    renamed: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What the recipe says of it."""
        return [f"{words!r} is drafted as {label!r}" for words, label in self.renamed.items()]


def as_drafted(
    request: Request, bundle: ModelBundle, seed: int, text: EncodedPrompt, encode: Encode | None
) -> AsDrafted:
    """A prompt in the words of what is remembered; as it stands where nothing is followed.

    "一匹马" is drafted as "马", "熊猫" as "panda", and a prompt that names no style in one of the model's: the seed
    chooses, mostly among those in which something is remembered that is near to the prompt.

    Args:
        request: resolved.
        bundle: the model.
        seed: of the picture.
        text: the prompt with its style, encoded.
        encode: encodes words; None if the prompt is no plain text, and nothing is changed.
    """
    prompt, given = styled_prompt(request), with_defaults(request.prior, bundle.defaults)
    recall = None if bundle.prior is None else bundle.prior.recall
    if encode is None or recall is None or not (given.enabled and given.recall):
        return AsDrafted(prompt, text, encode)
    if not prompt.strip() or SYNTAX.search(prompt):
        return AsDrafted(prompt, text, encode)
    names = _Names(bundle, seed, {}, given.synonyms)

    def read(words: str) -> EncodedPrompt:
        return encode(names.of(words))

    # Of a prompt that lays things out only the ground is looked at, which a thing's label says nothing of.
    layout = layout_of(given, bundle, prompt)
    whole = read if layout is None else lambda words: encode(without_measure(words))
    if not bundle.styles or NAMES_A_STYLE.search(prompt):
        return AsDrafted(prompt, whole(prompt), read, names.renamed)
    thing = names.of(layout.things[0].words if layout is not None and layout.things else prompt)
    pooled = encode_captions(bundle, [f"{thing}, {style} style" for style in bundle.styles]).pooled
    if pooled is None:
        return AsDrafted(prompt, text, encode)  # nothing can be recalled by this text encoder
    chosen = torch.rand((), generator=generator_for(seed, "prior/style"))
    style = bundle.styles[int(inverse_transform((recall.nearness(pooled) / ALIKE).softmax(0).cpu(), chosen))]
    drafted = f"{prompt}, {style} style"
    return AsDrafted(drafted, whole(drafted), read, names.renamed)


@dataclass(frozen=True, slots=True)
class _Names:
    """The labels of things, by what a prompt calls them; which of several, the seed chooses."""

    bundle: ModelBundle
    seed: int
    renamed: dict[str, str]
    by_synonyms: bool

    def of(self, words: str) -> str:
        """Words whose first clause is called by its label."""
        thing, rest = re.fullmatch("([^,，]*)(.*)", words, flags=re.DOTALL).groups()  # type: ignore[union-attr]
        thing = without_measure(thing)
        if self.by_synonyms and self.bundle.synonyms is not None and thing not in self.renamed:
            label = self._label(thing, rest)
            if label is not None:
                self.renamed[thing] = label
        return f"{self.renamed.get(thing, thing)}{rest}"

    def _label(self, thing: str, rest: str) -> str | None:
        """The label of a thing, where it is known by another name; None where it is called by what its caption says."""
        known, prior = self.bundle.synonyms, self.bundle.prior
        labels = known.labels(thing) if known is not None else ()
        if not labels or prior is None or prior.recall is None:
            return None
        styles = [rest] if NAMES_A_STYLE.search(rest) else [f", {style} style" for style in self.bundle.styles] or [""]
        own = encode_captions(self.bundle, [f"{thing}{style}" for style in styles]).pooled
        if own is None:
            return None
        if not CHINESE.search(thing):
            words = encode_captions(self.bundle, [thing, *labels]).pooled
            if float(prior.recall.nearness(own).max()) >= SURELY or float(_likeness(words).max()) < HARDLY:
                return None
        captions = encode_captions(self.bundle, [f"{words}{styles[0]}" for words in (thing, *labels)]).pooled
        likeness = _likeness(captions)
        chosen = torch.rand((), generator=generator_for(self.seed, "prior/name"))
        return labels[int(inverse_transform((likeness / ALIKE).softmax(0), chosen))]


def _likeness(pooled: Tensor | None) -> Tensor:
    """Cosines of vectors [1 + N,P] with the first of them. [N]"""
    assert pooled is not None, "what gave one text a vector gives all texts one"
    return F.cosine_similarity(pooled[1:].float(), pooled[:1].float()).cpu()
