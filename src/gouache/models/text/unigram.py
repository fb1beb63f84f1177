"""T5's tokenizer: SentencePiece's unigram model (Kudo 2018, arXiv:1804.10959) through the package tokenizers."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import Precompiled
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from gouache.errors import InvalidInput
from gouache.models.text.tokenizers import checked

PIECES_FILE = Path(__file__).parents[1] / "vocab" / "t5_pieces.tsv.gz"
UNIGRAM_UNKNOWN, UNIGRAM_END, UNIGRAM_PAD = "<unk>", "</s>", "<pad>"
SPACE = "▁"
SENTINELS = 100
"""Tokens that stand for gaps in T5's pre-training, numbered backwards behind the vocabulary."""


class UnigramTokenizer:
    """Text to the most probable pieces of a vocabulary. Case counts; every run of white space is one space.

    Args:
        pieces: each piece and the logarithm of its probability; a piece's place is its number.
        normalizer: SentencePiece's table of characters to write otherwise (`precompiled_charsmap`); empty = none.

    Raises:
        InvalidInput: a special token is missing, a piece is there twice, or the table is none.
    """

    def __init__(self, pieces: Sequence[tuple[str, float]], *, normalizer: bytes = b"") -> None:
        numbers = {piece: i for i, (piece, _) in enumerate(pieces)}
        if len(numbers) != len(pieces):
            raise InvalidInput("vocabulary", given=f"{len(pieces)} pieces", expected="no piece twice")
        for special in (UNIGRAM_UNKNOWN, UNIGRAM_END, UNIGRAM_PAD):
            if special not in numbers:
                raise InvalidInput("vocabulary", given=f"no {special}", expected="a vocabulary of T5")
        self.pieces, self.normalizer = tuple(pieces), normalizer
        self.end_id, self.pad_id = numbers[UNIGRAM_END], numbers[UNIGRAM_PAD]
        self._tokenizer = Tokenizer(Unigram(list(pieces), unk_id=numbers[UNIGRAM_UNKNOWN], byte_fallback=False))
        if normalizer:
            try:
                self._tokenizer.normalizer = Precompiled(normalizer)
            except Exception as error:  # whatever the package raises is one of its own classes
                raise InvalidInput(
                    "normalizer", given=f"{len(normalizer)} bytes: {error}"[:100], expected="SentencePiece's table"
                ) from error
        spaces = Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
        self._tokenizer.pre_tokenizer = PreTokenizerSequence([WhitespaceSplit(), spaces])
        self._tokenizer.decoder = MetaspaceDecoder(replacement=SPACE, prepend_scheme="always", split=True)
        sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
        specials = (UNIGRAM_UNKNOWN, UNIGRAM_END, UNIGRAM_PAD, *sentinels)
        self._tokenizer.add_special_tokens([piece for piece in specials if piece in numbers])

    @property
    def highest_id(self) -> int:
        """The largest number a token can have."""
        return len(self.pieces) - 1

    def ids(self, text: str) -> list[int]:
        """All tokens of the text, without end and padding."""
        return list(self._tokenizer.encode(checked(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def frame(self, ids: Sequence[int], length: int) -> tuple[int, ...]:
        """`ids`, end, padding: always `length` tokens.

        Raises:
            InvalidInput: the ids do not fit.
        """
        free = length - 1 - len(ids)
        if free < 0:
            raise InvalidInput("prompt", given=f"{len(ids)} tokens", expected=f"at most {length - 1}", cure="Cut it.")
        return (*ids, self.end_id, *[self.pad_id] * free)

    def to_json(self) -> str:
        """The tokenizer as a ``tokenizer.json``."""
        return self._tokenizer.to_str()


def with_sentinels(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The pieces of a SentencePiece file and, where it lacks them, T5's sentinels behind them, the last one first."""
    known = {piece for piece, _ in pieces}
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    return [*pieces, *((piece, 0.0) for piece in sentinels if piece not in known)]


@cache
def published_vocabulary() -> tuple[tuple[tuple[str, float], ...], bytes]:
    """Pieces with their scores, and the table of characters, of the published T5 1.1, which Stable Diffusion 3 has."""
    table, *lines = gzip.decompress(PIECES_FILE.read_bytes()).decode("utf-8").removesuffix("\n").split("\n")
    rows = [line.split("\t") for line in lines]
    pieces = [(piece, float(np.float32(score))) for piece, score in rows]  # they were trained in fp32
    return tuple(with_sentinels(pieces)), base64.b64decode(table)
