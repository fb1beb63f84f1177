"""From a text to chunks of weighted tokens, for encoders that read so many at a time. No torch.

What counts a prompt's tokens for a form is this, too: it is what the encoders are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gouache.checkpoints.adapters.naming import WordFinder
from gouache.models.text.tokenizers import ClipTokenizer, TextTokenizer
from gouache.pipeline.prompts.syntax import PromptSpan, Section

COMMA_REACH = 20
"""A chunk that is full ends at a comma if one is among its last so many tokens (A1111's default)."""
MAX_CHUNKS = 32


class ChunkReader(Protocol):
    """What reads a text: a `TextStack`, or its first tokenizer alone."""

    @property
    def chunk_length(self) -> int:
        """Tokens of a text in one chunk."""
        ...

    @property
    def tokenizers(self) -> tuple[TextTokenizer, ...]:
        """Those of its encoders; the first one counts."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """All tokens of a text, without start, end and padding."""
        ...


class TokenizerWithWords:
    """A CLIP tokenizer that knows further words, each a run of new tokens.

    Args:
        base: the tokenizer of the model.
        words: word -> its tokens; a text may write it as `folded` allows.
    """

    def __init__(self, base: ClipTokenizer, words: Mapping[str, range]) -> None:
        self.base, self.words = base, dict(words)
        self._finder = WordFinder(list(words))
        self._word_at = {run[0]: word for word, run in words.items()}
        self._inner = {token for run in words.values() for token in run[1:]}

    @property
    def max_length(self) -> int:
        """Length of a chunk with start and end."""
        return self.base.max_length

    @property
    def chunk_length(self) -> int:
        """How many of a prompt's tokens fit one chunk."""
        return self.base.chunk_length

    @property
    def highest_id(self) -> int:
        """The largest number a token can have."""
        return max((run[-1] for run in self.words.values() if run), default=self.base.highest_id)

    def ids(self, text: str) -> list[int]:
        """All tokens of the text; what stands between new words is read by the base."""
        ids: list[int] = []
        position = 0
        for found in self._finder.find(text):
            ids += [*self.base.ids(text[position : found.start]), *self.words[found.word]]
            position = found.end
        return ids + self.base.ids(text[position:])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; a new word by its name."""
        pieces: list[str] = []
        plain: list[int] = []
        for token in ids:
            if token in self._inner or token in self._word_at:
                pieces += [self.base.decode(plain), self._word_at.get(token, "")]
                plain = []
            else:
                plain.append(token)
        return " ".join(piece for piece in (*pieces, self.base.decode(plain)) if piece)

    def frame(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Start, `ids`, end, padding."""
        return self.base.frame(ids)

    def continues(self, token: int) -> bool:
        """Whether a token stands inside a new word, so that no chunk may end before it."""
        return token in self._inner


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """Tokens of one chunk and the weight of each; without start, end and padding."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def fill_chunks(stack: ChunkReader, parts: tuple[Section, ...]) -> list[WeightedTokens]:
    """Cut weighted text into chunks as A1111 does: BREAK starts a new one, a full one ends at a near comma.

    A BREAK with nothing behind it starts none; one with nothing before it leaves an empty one.

    Returns:
        At least one chunk, each of at most `stack.chunk_length` tokens.
    """
    comma = stack.tokenize(",")
    chunks: list[WeightedTokens] = []
    for number, part in enumerate(parts, 1):
        ids, weights, last_comma = list[int](), list[float](), -1
        for token, weight in _tokens(stack, part):
            if [token] == comma:
                last_comma = len(ids)
            if len(ids) == stack.chunk_length:
                near = last_comma >= 0 and len(ids) - last_comma <= COMMA_REACH and [token] != comma
                end = last_comma + 1 if near else _word_start(stack, [*ids, token])
                chunks.append(WeightedTokens(tuple(ids[:end]), tuple(weights[:end])))
                ids, weights, last_comma = ids[end:], weights[end:], -1
            ids.append(token)
            weights.append(weight)
        if ids or not chunks or number < len(parts):
            chunks.append(WeightedTokens(tuple(ids), tuple(weights)))
    return chunks


def _word_start(stack: ChunkReader, ids: list[int]) -> int:
    """Where the last of these tokens begins: before it, or before the whole textual inversion that it belongs to."""
    tokenizer, end = stack.tokenizers[0], len(ids) - 1
    while end > 0 and isinstance(tokenizer, TokenizerWithWords) and tokenizer.continues(ids[end]):
        end -= 1
    return end or len(ids) - 1


def _tokens(stack: ChunkReader, part: tuple[PromptSpan, ...]) -> list[tuple[int, float]]:
    return [(token, run.weight) for run in part for token in stack.tokenize(run.text)]
