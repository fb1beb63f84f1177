"""Counts a prompt's tokens as a model's own tokenizer does, without loading the model and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gouache.checkpoints.adapters.embedding_names import embedding_names
from gouache.checkpoints.adapters.library import EMBEDDING, LORA, AdapterFile, list_adapters
from gouache.checkpoints.adapters.naming import WordFinder, folded
from gouache.checkpoints.formats.header import open_header
from gouache.checkpoints.identify import identify, vocabulary_of
from gouache.errors import GouacheError
from gouache.models.configs import SentenceEncoderConfig, TextEncoderConfig
from gouache.models.text.tokenizers import ClipTokenizer, TextTokenizer, WordPieceTokenizer
from gouache.pipeline.prompts.chunks import MAX_CHUNKS, TokenizerWithWords, fill_chunks
from gouache.pipeline.prompts.syntax import adapter_tags, branches, schedule, sections, without_tags
from gouache.pipeline.request import Emphasis
from gouache.serve.models.abilities import families_fitting
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.models.facts import place

STEPS = 20
"""Of the walk whose prompt edits are looked at."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What a prompt costs.

    Attributes:
        chunk_length: tokens of a text that one chunk holds.
        chunks: tokens in each chunk that is read.
        cut: tokens behind the last chunk that is read.
        unknown: adapters that the prompt names and this server doesn't have.
    """

    chunk_length: int
    chunks: tuple[int, ...]
    cut: int
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    tokenizers: tuple[TextTokenizer, ...]

    @property
    def chunk_length(self) -> int:
        return self.tokenizers[0].chunk_length

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizers[0].ids(text)


def count_tokens(prompt: str, entry: ModelEntry, emphasis: Emphasis) -> TokenCount | None:
    """Tokens of a prompt by chunk; of its longest part, where parts are joined by AND or change with the steps.

    Args:
        prompt: with its marks; tags of adapters are no words.
        entry: the model that reads it.
        emphasis: the rule for brackets.

    Returns:
        None for a model that reads no words.

    Raises:
        UnknownName: an adapter's tag that can't be read.
        InvalidInput: brackets that are nested too deep.
        CheckpointError: the model's files can't be used.
    """
    path = place(entry)
    if path is None:
        return None
    known = _tokenizer(path, path.stat().st_mtime_ns)
    if known is None:
        return None
    base, family = known
    fits = families_fitting(family)
    files = [file for file in list_adapters() if file.family in fits]
    words = _words([file for file in files if file.kind == EMBEDDING], prompt)
    reader = _Reader((TokenizerWithWords(base, words) if words and isinstance(base, ClipTokenizer) else base,))
    texts = {text for branch in branches(without_tags(prompt), emphasis) for _, text in schedule(branch.text, STEPS)}
    longest = max(
        ([len(chunk.ids) for chunk in fill_chunks(reader, sections(text, emphasis))] for text in texts), key=sum
    )
    names = {folded(name) for file in files if file.kind == LORA for name in file.names}
    unknown = dict.fromkeys(tag.name for tag in adapter_tags(prompt) if folded(tag.name) not in names)
    return TokenCount(reader.chunk_length, tuple(longest[:MAX_CHUNKS]), sum(longest[MAX_CHUNKS:]), tuple(unknown))


@lru_cache(maxsize=16)
def _tokenizer(path: Path, _changed: int) -> tuple[ClipTokenizer | WordPieceTokenizer, str] | None:
    """The first text encoder's tokenizer, which all but T5 share, and the model's family."""
    identity = identify(path)
    for part in identity.parts.values():
        config = part.config
        if isinstance(config, TextEncoderConfig):
            return ClipTokenizer(pad_id=config.pad_id, max_length=config.positions), identity.family
        if isinstance(config, SentenceEncoderConfig):
            pieces = vocabulary_of(path)
            tokenizer = WordPieceTokenizer(pieces, max_length=config.max_tokens, lowercase=config.lowercase)
            return tokenizer, identity.family
    return None


def _words(files: list[AdapterFile], prompt: str) -> dict[str, range]:
    """Textual inversions that the prompt names, each with as many new tokens as it has vectors."""
    named = {name: file for file in files for name in file.names}
    words: dict[str, range] = {}
    first = ClipTokenizer().highest_id + 1
    for found in WordFinder(list(named)).find(prompt) if named else ():
        if found.word not in words:
            count = _vectors(named[found.word].path)
            words[found.word] = range(first, first + count)
            first += count
    return words


def _vectors(path: Path) -> int:
    """Rows of a textual inversion; 1 where its file doesn't tell."""
    try:
        header = open_header(path)
    except GouacheError:
        return 1
    names = [name for slots in embedding_names(header.tensors).words.values() for name in slots.values()]
    shapes = [header.tensors[name].shape for name in names]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=1)
