"""Tokenizers of the text encoders.

CLIP's byte pairs (Radford et al. 2021, arXiv:2103.00020, section 2.4), whose vocabulary is in the package, and the
WordPiece of BERT-style sentence encoders (Devlin et al. 2018, arXiv:1810.04805, section 3).
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, Self

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence

from gouache.errors import InvalidInput

MERGES_FILE = Path(__file__).parents[1] / "vocab" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
MERGES = 48894
END_OF_WORD = "</w>"
# Special tokens, English contractions, words, single digits, runs of anything else that is not space.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One chunk of a prompt, ready for the encoder.

    Attributes:
        ids: start, the prompt's tokens, end, padding; always as long as the encoder's chunk.
        cut: the part of the text that did not fit, as it was written; empty if all did.
    """

    ids: tuple[int, ...]
    cut: str


class TextTokenizer(Protocol):
    """What the text stack needs of a tokenizer."""

    @property
    def chunk_length(self) -> int:
        """How many of a prompt's tokens fit one chunk, start and end not counted."""
        ...

    @property
    def highest_id(self) -> int:
        """The largest number a token can have, padding included: an encoder's table needs a row for it."""
        ...

    def ids(self, text: str) -> list[int]:
        """All tokens of the text, without start, end and padding."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, folded as the tokenizer folds it."""
        ...

    def frame(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Start, `ids`, end, padding. Raises `InvalidInput` where there are more than `chunk_length`."""
        ...


class ClipTokenizer:
    """Text to CLIP's tokens. Lower case, spaces folded, Unicode composed; every byte has a token.

    Args:
        pad_id: what fills a chunk up: the end token (49407) for OpenAI's CLIP, 0 for OpenCLIP's.
        max_length: length of a chunk with start and end.
        added: words that become one token each, numbered from 49408 on (textual inversion).
    """

    def __init__(self, *, pad_id: int = END_ID, max_length: int = 77, added: Sequence[str] = ()) -> None:
        if max_length < 3:
            raise InvalidInput("max_length", given=max_length, expected="an integer >= 3")
        self.pad_id = pad_id
        self.max_length = max_length
        self.added = tuple(added)
        self._tokenizer = _byte_pair_tokenizer()
        self._tokenizer.add_special_tokens([START, END])
        for word in self.added:
            if self._tokenizer.token_to_id(word) is not None:
                raise InvalidInput("added", given=repr(word), expected="a word that is no token yet")
            self._tokenizer.add_tokens([AddedToken(word, normalized=False)])

    @property
    def chunk_length(self) -> int:
        """How many of a prompt's tokens fit one chunk, start and end not counted: 75."""
        return self.max_length - 2

    @property
    def highest_id(self) -> int:
        """The largest number a token can have, padding included."""
        return max(END_ID + len(self.added), self.pad_id)

    def ids(self, text: str) -> list[int]:
        """All tokens of the text, without start, end and padding."""
        return list(self._tokenizer.encode(checked(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, in lower case; bytes that are no whole character become U+FFFD."""
        alphabet = {character: byte for byte, character in byte_alphabet().items()}
        pieces = []
        for token_id in ids:
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                raise InvalidInput("token id", given=token_id, expected="an id of the vocabulary")
            if token in self.added or token_id in (START_ID, END_ID):
                pieces.append(f"{token} ".encode())
            else:
                word = token.removesuffix(END_OF_WORD)
                space = b" " if token.endswith(END_OF_WORD) else b""
                pieces.append(bytes(alphabet[character] for character in word) + space)
        return b"".join(pieces).decode("utf-8", errors="replace").strip()

    def frame(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Start, `ids`, end, padding: always `max_length` tokens."""
        return frame(ids, start_id=START_ID, end_id=END_ID, pad_id=self.pad_id, max_length=self.max_length)

    def encode(self, text: str) -> Tokens:
        """The first chunk of the text, and what was cut off behind it."""
        encoding = self._tokenizer.encode(checked(text), add_special_tokens=False)
        return cut_to_chunk(self, text, list(encoding.ids), list(encoding.offsets))


def checked(text: str) -> str:
    """The text itself; half a surrogate pair, which is no Unicode text, is refused as `InvalidInput`."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInput("prompt", given="half a surrogate pair", expected="Unicode text", cure="Check its encoding.")
    return text


def frame(ids: Sequence[int], *, start_id: int, end_id: int, pad_id: int, max_length: int) -> tuple[int, ...]:
    """Start, `ids`, end, padding up to `max_length`.

    Raises:
        InvalidInput: the ids do not fit; use `chunks` first.
    """
    free = max_length - 2 - len(ids)
    if free < 0:
        raise InvalidInput(
            "prompt", given=f"{len(ids)} tokens", expected=f"at most {max_length - 2} in one chunk", cure="Split it."
        )
    return (start_id, *ids, end_id, *[pad_id] * free)


def chunks(ids: Sequence[int], length: int) -> list[list[int]]:
    """Split tokens into chunks of at most `length`; an empty prompt is one empty chunk."""
    return [list(ids[start : start + length]) for start in range(0, max(len(ids), 1), length)]


def cut_to_chunk(tokenizer: TextTokenizer, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Tokens:
    """The first chunk of tokens, and the text behind it as it was written."""
    length = tokenizer.chunk_length
    cut = text[offsets[length][0] :] if len(ids) > length else ""
    return Tokens(tokenizer.frame(ids[:length]), cut)


@cache
def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in the vocabulary; the order is that of the first 256 tokens.

    Printable Latin-1 bytes stand for themselves, the other 68 for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def read_merges() -> tuple[tuple[str, str], ...]:
    """The pairs that are merged, most frequent first."""
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as lines:
        next(lines)  # a comment
        pairs = [tuple(line.split()) for line, _ in zip(lines, range(MERGES), strict=False)]
    return tuple((first, second) for first, second in pairs)


@cache
def vocabulary() -> dict[str, int]:
    """Every token's number: 256 bytes, the same at a word's end, the merges, start and end. Do not change it."""
    single = list(byte_alphabet().values())
    merged = [first + second for first, second in read_merges()]
    tokens = [*single, *(character + END_OF_WORD for character in single), *merged, START, END]
    return {token: i for i, token in enumerate(tokens)}


@cache
def _byte_pair_model() -> BPE:
    """Made once: a model takes no words of its own, those are added to the tokenizer around it."""
    return BPE(vocabulary(), list(read_merges()), unk_token=END, end_of_word_suffix=END_OF_WORD)


def _byte_pair_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(_byte_pair_model())
    tokenizer.normalizer = NormalizerSequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words: list[PreTokenizer] = [Split(Regex(WORDS), "removed", invert=True), ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = PreTokenizerSequence(words)
    return tokenizer


UNKNOWN, CLS, SEP, PAD, MASK = "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"


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
        for special in (UNKNOWN, CLS, SEP, PAD):
            if special not in numbers:
                raise InvalidInput("vocabulary", given=f"no {special}", expected="a BERT vocabulary, one piece a line")
        self.vocabulary = tuple(vocabulary)
        self.max_length = max_length
        self.start_id, self.end_id, self.pad_id = numbers[CLS], numbers[SEP], numbers[PAD]
        self._tokenizer = Tokenizer(WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.decoder = WordPieceDecoder()
        specials = [piece for piece in (UNKNOWN, CLS, SEP, PAD, MASK) if piece in numbers]
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

    @property
    def highest_id(self) -> int:
        """The largest number a token can have."""
        return len(self.vocabulary) - 1

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
