"""Reads a vocabulary out of a SentencePiece file (``spiece.model``), a message of Protocol Buffers.

The fields are those of SentencePiece's ``sentencepiece_model.proto``: pieces (1), how they were trained (2), and how
text is normalised (3). Nothing else of the file is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint

MAX_BYTES = 16 << 20
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_UNIGRAM = 1
_MODEL_TYPES = {1: "unigram", 2: "byte pairs", 3: "words", 4: "characters"}


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """A unigram vocabulary.

    Attributes:
        pieces: each piece and the logarithm of its probability, in the order of their numbers.
        normalizer: the compiled table of characters to write otherwise; empty = none.
    """

    pieces: tuple[tuple[str, float], ...]
    normalizer: bytes


def read_sentencepiece(path: Path) -> SentencePieces:
    """The vocabulary of a SentencePiece file.

    Raises:
        CorruptCheckpoint: it is no such file, is damaged, or larger than 16 MB.
        IncompatibleCheckpoint: its model is of another kind than unigram.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CorruptCheckpoint(str(path), given=f"{size} bytes", expected=f"a vocabulary of at most {MAX_BYTES}")
    pieces: list[tuple[str, float]] = []
    normalizer, kind = b"", _UNIGRAM
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                kind = next((one for inner, one in _fields(value) if inner == 3 and isinstance(one, int)), kind)
            elif number == 3 and isinstance(value, bytes):
                found = (one for inner, one in _fields(value) if inner == 2 and isinstance(one, bytes))
                normalizer = next(found, b"")
    except (ValueError, struct.error) as error:
        raise CorruptCheckpoint(
            str(path), given=str(error)[:100], expected="a SentencePiece model", cure="Get the file again."
        ) from error
    if not pieces:
        raise CorruptCheckpoint(str(path), given="no pieces", expected="a SentencePiece model")
    if kind != _UNIGRAM:
        raise IncompatibleCheckpoint(
            str(path), given=f"a model of {_MODEL_TYPES.get(kind, f'type {kind}')}", expected="a unigram model, as T5's"
        )
    return SentencePieces(tuple(pieces), normalizer)


def _piece(message: bytes) -> tuple[str, float]:
    text, score = "", 0.0
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, float):
            score = value
    return text, score


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of every field of a message: integers, fp32 numbers, and bytes.

    Raises:
        ValueError: it isn't one.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            length = 4 if kind == _FOUR_BYTES else 8
        else:
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(message)}")
        content, at = message[at : at + length], at + length
        yield key >> 3, struct.unpack("<f", content)[0] if kind == _FOUR_BYTES else content


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number without an end at byte {at}")
