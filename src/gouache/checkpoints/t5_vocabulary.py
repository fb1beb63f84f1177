"""Finds the vocabulary of a model's T5: in the folder of its tokenizer, or beside its file."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.sentencepiece import SentencePieces, read_sentencepiece
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.models.text.unigram import UnigramTokenizer, with_sentinels

JSON_FILE, PIECES_FILE = "tokenizer.json", "spiece.model"
FOLDER = "tokenizer_3"
"""Where diffusers keeps it, in a model's folder."""
_NORMALIZERS = ("Precompiled", "Sequence", "Replace", "Strip")
"""What T5's published files fold text by; `Replace` and `Strip` fold white space, which is folded here anyway."""


def t5_tokenizer(model: Path) -> UnigramTokenizer:
    """The tokenizer of a model's T5.

    Args:
        model: the model's file or folder.

    Raises:
        ModelNotFound: it has none; the message names the files that are looked for.
        CorruptCheckpoint, IncompatibleCheckpoint: it is damaged, or of another kind than T5's.
    """
    places = [model / FOLDER, model] if model.is_dir() else [model.parent / FOLDER]
    for place in places:
        for name in (JSON_FILE, PIECES_FILE):
            if (place / name).is_file():
                return read_tokenizer(place / name)
    raise ModelNotFound(
        str(places[0]),
        given=f"neither {JSON_FILE} nor {PIECES_FILE}",
        expected="T5's vocabulary, which its weights don't hold",
        cure=f"Put the folder {FOLDER} of the published model there, or take the model without its T5.",
    )


def read_tokenizer(file: Path) -> UnigramTokenizer:
    """The tokenizer of a ``tokenizer.json`` or a ``spiece.model``; errors as `t5_tokenizer`."""
    found = _of_json(file) if file.suffix == ".json" else read_sentencepiece(file)
    try:
        return UnigramTokenizer(with_sentinels(found.pieces), normalizer=found.normalizer)
    except InvalidInput as error:
        where = f"{file}: {error.where}"
        raise IncompatibleCheckpoint(where, given=error.given, expected=error.expected, cure=error.cure) from error


def _of_json(file: Path) -> SentencePieces:
    """The vocabulary of a ``tokenizer.json``. Its table of characters is taken; patterns in it are never run."""
    values = read_json(file)
    model = values.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # Files of before tokenizers 0.9 don't name the model; only unigram's vocabulary is a list.
    if kind not in ("Unigram", None) or not isinstance(vocabulary, list):
        raise IncompatibleCheckpoint(
            str(file), given=f"a model of kind {kind}", expected="Unigram, as T5's", cure="Take T5's own tokenizer."
        )
    pieces = [
        (entry[0], float(entry[1]))
        for entry in vocabulary
        if isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], int | float)
    ]
    if len(pieces) != len(vocabulary):
        raise CorruptCheckpoint(str(file), given="a vocabulary with other entries", expected="pieces and their scores")
    return SentencePieces(tuple(pieces), _normalizer(values.get("normalizer"), str(file)))


def _normalizer(values: object, where: str) -> bytes:
    """The compiled table of a normalizer, or of one in a row of them; empty for none."""
    if values is None:
        return b""
    parts = values.get("normalizers") if isinstance(values, Mapping) and values.get("type") == "Sequence" else [values]
    tables = []
    for part in parts if isinstance(parts, list) else [None]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _NORMALIZERS or kind == "Sequence":
            raise IncompatibleCheckpoint(
                where, given=f"text normalised by {kind}", expected="SentencePiece's table, as T5's"
            )
        table = part.get("precompiled_charsmap") if isinstance(part, Mapping) else None
        if kind == "Precompiled" and isinstance(table, str):
            tables.append(table)
    try:
        return base64.b64decode(tables[0], validate=True) if tables else b""
    except binascii.Error as error:
        raise CorruptCheckpoint(where, given=f"a table that is no base64: {error}", expected="base64") from error
