"""The WordPiece tokenizer of BERT-style sentence encoders (Devlin et al. 2018, arXiv:1810.04805, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from gouache.errors import InvalidInput
from gouache.models.tokenizer import Tokens, checked, cut_to_chunk, frame

UNKNOWN, START, END, PAD, MASK = "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"


class WordPieceTokenizer:
    """Text to the longest pieces of a vocabulary; a word with no pieces becomes one unknown token.

    Args:
        vocabulary: the pieces; a piece's place is its number.
        max_length: length of a chunk with start and end.
        lowercase: fold case and strip accents, as the "uncased" encoders want it.

    Raises:
        InvalidInput: a special token is missing, or a piece is there twice.
    """

    def __init__(self, vocabulary: Sequence[str], *, max_length: int = 128, lowercase: bool = True) -> None:
        if max_length < 3:
            raise InvalidInput("max_length", given=max_length, expected="an integer >= 3")
        numbers = {piece: i for i, piece in enumerate(vocabulary)}
        if len(numbers) != len(vocabulary):
            raise InvalidInput("vocabulary", given=f"{len(vocabulary)} pieces", expected="no piece twice")
        for special in (UNKNOWN, START, END, PAD):
            if special not in numbers:
                raise InvalidInput("vocabulary", given=f"no {special}", expected="a BERT vocabulary, one piece a line")
        self.vocabulary = tuple(vocabulary)
        self.max_length = max_length
        self.start_id, self.end_id, self.pad_id = numbers[START], numbers[END], numbers[PAD]
        self._tokenizer = Tokenizer(WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.decoder = WordPieceDecoder()
        specials = [piece for piece in (UNKNOWN, START, END, PAD, MASK) if piece in numbers]
        self._tokenizer.add_special_tokens(list(specials))

    @classmethod
    def from_file(cls, path: Path, *, max_length: int = 128, lowercase: bool = True) -> Self:
        """Read a `vocab.txt`: one piece a line."""
        pieces = path.read_text(encoding="utf-8").splitlines()
        return cls(pieces, max_length=max_length, lowercase=lowercase)

    @property
    def chunk_length(self) -> int:
        """How many of a prompt's tokens fit one chunk, start and end not counted."""
        return self.max_length - 2

    def ids(self, text: str) -> list[int]:
        """All tokens of the text, without start, end and padding."""
        return list(self._tokenizer.encode(checked(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, as the tokenizer folded it."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def frame(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Start, `ids`, end, padding: always `max_length` tokens."""
        return frame(ids, start_id=self.start_id, end_id=self.end_id, pad_id=self.pad_id, max_length=self.max_length)

    def encode(self, text: str) -> Tokens:
        """The first chunk of the text, and what was cut off behind it."""
        encoding = self._tokenizer.encode(checked(text), add_special_tokens=False)
        return cut_to_chunk(self, text, list(encoding.ids), list(encoding.offsets))
