"""Textual inversions as words of a prompt: new tokens, and the vectors that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.checkpoints.adapters.naming import WordFinder
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import ClipTokenizer


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


class TokensWithWords(nn.Module):
    """A table of token vectors with further rows; the model's own table stays as it is.

    Args:
        base: the model's table.
        rows: vectors of the new tokens. [n, width]
    """

    def __init__(self, base: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows.to(base.weight), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [N, L] -> [N, L, width]."""
        known = self.base.num_embeddings
        new = F.embedding((ids - known).clamp_min(0), self.rows)
        return torch.where((ids >= known)[..., None], new, self.base(ids.clamp_max(known - 1)))


def with_words(stack: TextStack, encoders: Sequence[TextEncoder], words: Mapping[str, Sequence[Tensor]]) -> TextStack:
    """A text stack that knows further words; T5, which has no vectors for them, reads them as they are written.

    Args:
        stack: of CLIP encoders; it is left as it is.
        encoders: copies of its encoders, whose tables of tokens are replaced.
        words: word -> its vectors for each encoder. [n, width]
    """
    first = encoders[0].config.vocabulary_size
    runs: dict[str, range] = {}
    for word, vectors in words.items():
        runs[word] = range(first, first + len(vectors[0]))
        first += len(vectors[0])
    for index, encoder in enumerate(encoders):
        rows = torch.cat([vectors[index].float() for vectors in words.values()])
        table = encoder.embeddings.token_embedding
        encoder.embeddings.token_embedding = TokensWithWords(table, rows)  # type: ignore[assignment]
    bases = [one for one in stack.tokenizers if isinstance(one, ClipTokenizer)]
    t5 = None if stack.t5 is None or stack.t5_tokenizer is None else (stack.t5, stack.t5_tokenizer)
    made = TextStack(encoders, bases, stack.joint, t5)
    made.tokenizers = tuple(TokenizerWithWords(one, runs) for one in bases)
    return made
