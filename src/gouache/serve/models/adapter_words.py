"""What an adapter's own metadata tell of its use: trigger words, description, licence, author. Headers only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gouache.checkpoints.formats.header import open_header
from gouache.errors import GouacheError

MOST_WORDS = 12
LONGEST_WORD = 80
LONGEST_TEXT = 600
_PHRASES = ("modelspec.trigger_phrase", "trigger_words", "activation text", "modelspec.trigger_words")
_MOST_TAGS = 200_000
"""Of a training set, counted in the file's metadata."""


@dataclass(frozen=True, slots=True)
class AdapterWords:
    """What a LoRA's file says.

    Attributes:
        triggers: words that call it forth: those that its maker names, else those that most captions had.
        named: whether its maker named them.
        title, description, author, licence: as the file says, empty if it doesn't.
        base: the model that it was trained on, as the file says.
    """

    triggers: tuple[str, ...] = ()
    named: bool = False
    title: str = ""
    description: str = ""
    author: str = ""
    licence: str = ""
    base: str = ""


def words_of(path: Path) -> AdapterWords:
    """Read them; empty where there are none, or the file can't be read."""
    try:
        return _words_of(path, path.stat().st_mtime_ns)
    except OSError:
        return AdapterWords()


@lru_cache(maxsize=2048)
def _words_of(path: Path, _modified: int) -> AdapterWords:
    try:
        metadata = open_header(path).metadata
    except (GouacheError, OSError):
        return AdapterWords()
    named = _named(metadata)
    return AdapterWords(
        triggers=named or frequent_tags(metadata.get("ss_tag_frequency", "")),
        named=bool(named),
        title=_text(metadata, "modelspec.title"),
        description=_text(metadata, "modelspec.description") or _text(metadata, "ss_training_comment"),
        author=_text(metadata, "modelspec.author"),
        licence=_text(metadata, "modelspec.license"),
        base=_text(metadata, "ss_sd_model_name"),
    )


def _text(metadata: Mapping[str, str], key: str) -> str:
    text = " ".join(metadata.get(key, "").split())
    return "" if text in ("None", "null") else text[:LONGEST_TEXT]


def _named(metadata: Mapping[str, str]) -> tuple[str, ...]:
    said = next((text for key in _PHRASES if (text := _text(metadata, key))), "")
    words = (word.strip()[:LONGEST_WORD] for word in said.strip("[]").replace('"', "").split(","))
    return tuple(dict.fromkeys(word for word in words if word))[:MOST_WORDS]


def frequent_tags(text: str) -> tuple[str, ...]:
    """The captions' words that stood in at least half as many pictures as the most frequent one, most frequent first.

    A trainer writes down how often each comma-separated part of the captions occurred in each folder of pictures:
    what nearly every caption has is what the LoRA answers to.

    Args:
        text: kohya's ``ss_tag_frequency``, JSON: folder -> tag -> count. Anything else gives nothing.

    >>> frequent_tags('{"10_zog": {"zog": 20, "standing": 11, "outdoors": 3, "smile": 2}}')
    ('zog', 'standing')
    """
    try:
        folders = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in list(tags.items())[:_MOST_TAGS] if isinstance(tags, dict) else ():
            if type(count) is int and count > 0:
                counts[" ".join(str(tag).split())[:LONGEST_WORD]] += count
    most = max(counts.values(), default=0)
    # A caption that is a whole sentence occurs once; so does every tag of a set of one picture.
    often = [tag for tag, count in counts.most_common(MOST_WORDS) if tag and count >= max(2, most / 2)]
    return tuple(often)
