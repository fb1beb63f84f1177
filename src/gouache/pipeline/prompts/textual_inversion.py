"""Textual inversions as words of a prompt: new tokens, and the vectors that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import ClipTokenizer
from gouache.pipeline.prompts.chunks import TokenizerWithWords


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
