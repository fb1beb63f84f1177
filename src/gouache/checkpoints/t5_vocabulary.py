"""Finds the vocabulary of a model's T5: in the folder of its tokenizer, or beside its file."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from gouache.checkpoints.formats.header import open_header
from gouache.checkpoints.formats.sentencepiece import MAX_BYTES, SentencePieces, read_sentencepiece
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.models.configs import T5Config
from gouache.models.text.unigram import UnigramTokenizer, published_vocabulary, with_sentinels

JSON_FILE, PIECES_FILE = "tokenizer.json", "spiece.model"
OWN_FILE, OWN_KEY = "t5_tokenizer.json", "gouache.t5_tokenizer"
"""Where gouache's own format keeps a vocabulary that isn't the published one: in a folder, in a file's metadata."""
FOLDER = "tokenizer_3"
"""Where diffusers keeps it, in a model's folder."""
_NORMALIZERS = ("Precompiled", "Sequence", "Replace", "Strip")
"""What T5's published files fold text by; `Replace` and `Strip` fold white space, which is folded here anyway."""


def t5_tokenizer(model: Path, config: T5Config) -> UnigramTokenizer:
    """The tokenizer of a model's T5: the one beside its weights, else that of the published T5.

    Args:
        model: the model's file or folder.
        config: of its T5.

    Raises:
        ModelNotFound: there is none beside it, and it has another number of tokens than the published T5.
        CorruptCheckpoint, IncompatibleCheckpoint: it is damaged, or of another kind than T5's.
    """
    folder = model if model.is_dir() else model.parent
    places = [folder / FOLDER / JSON_FILE, folder / FOLDER / PIECES_FILE]
    if model.is_dir():
        places += [folder / OWN_FILE, folder / PIECES_FILE]
    elif OWN_KEY in (metadata := open_header(model).metadata):
        return _tokenizer(_of_json(metadata[OWN_KEY].encode("utf-8"), f"{model} metadata {OWN_KEY}"), str(model))
    file = next((place for place in places if place.is_file()), None)
    if file is not None:
        return read_tokenizer(file)
    if config.vocabulary_size != T5Config().vocabulary_size:
        raise ModelNotFound(
            str(places[0].parent),
            given=f"neither {JSON_FILE} nor {PIECES_FILE}, and a T5 of {config.vocabulary_size} tokens",
            expected=f"its vocabulary; that of the published T5, which is known, has {T5Config().vocabulary_size} rows",
            cure=f"Put the folder {FOLDER} of the model there.",
        )
    pieces, normalizer = published_vocabulary()
    return UnigramTokenizer(pieces, normalizer=normalizer)


def json_to_keep(tokenizer: UnigramTokenizer) -> str:
    """The ``tokenizer.json`` that has to be stored with a model; empty for the published vocabulary, which is known."""
    published = (tokenizer.pieces, tokenizer.normalizer) == published_vocabulary()
    return "" if published else tokenizer.to_json()


def read_tokenizer(file: Path) -> UnigramTokenizer:
    """The tokenizer of a ``tokenizer.json`` or a ``spiece.model``; errors as `t5_tokenizer`."""
    if file.suffix != ".json":
        return _tokenizer(read_sentencepiece(file), str(file))
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise CorruptCheckpoint(str(file), given=f"{size} bytes of JSON", expected=f"at most {MAX_BYTES}")
    return _tokenizer(_of_json(file.read_bytes(), str(file)), str(file))


def _tokenizer(found: SentencePieces, where: str) -> UnigramTokenizer:
    try:
        return UnigramTokenizer(with_sentinels(found.pieces), normalizer=found.normalizer)
    except InvalidInput as error:
        where = f"{where}: {error.where}"
        raise IncompatibleCheckpoint(where, given=error.given, expected=error.expected, cure=error.cure) from error


def _of_json(contents: bytes, where: str) -> SentencePieces:
    """The vocabulary of a ``tokenizer.json``. Its table of characters is taken; patterns in it are never run."""
    try:
        values = json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(where, given=str(error)[:100], expected="a JSON object") from error
    model = values.get("model") if isinstance(values, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # Files of before tokenizers 0.9 don't name the model; only unigram's vocabulary is a list.
    if kind not in ("Unigram", None) or not isinstance(vocabulary, list):
        raise IncompatibleCheckpoint(
            where, given=f"a tokenizer of kind {kind}", expected="Unigram, as T5's", cure="Take T5's own tokenizer."
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
        raise CorruptCheckpoint(where, given="a vocabulary with other entries", expected="pieces and their scores")
    return SentencePieces(tuple(pieces), _normalizer(values.get("normalizer"), where))


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
