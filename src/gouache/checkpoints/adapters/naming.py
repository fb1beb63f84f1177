"""When two names are the same: of adapters, embeddings and ControlNets, in files, tags and the words of a prompt.

Every place that compares such names uses `folded`, so that none finds what another one misses. File systems and
keyboards write one name in several ways: macOS stores letters and accents apart, Windows and macOS ignore case, Chinese
and Japanese input writes Latin letters in full width, Turkish has two letters i.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_JAMO = ("\u1100", "\u11ff")
"""Korean letters that syllables are composed of, first and last."""
_HALF_WIDTH_MARKS = "\uff9e\uff9f"
"""Voicing marks of Japanese letters in half width."""


def folded(name: str) -> str:
    """A name as it is compared: compatibility composition and full case folding (The Unicode Standard, section 3.13,
    D146), without characters that are not seen, and with one letter i.

    >>> folded("KIZIL") == folded("kızıl"), folded("Straße") == folded("STRASSE")
    (True, True)
    >>> folded("Cafe\u0301") == folded("café"), folded("ｓｔｙｌｅ")
    (True, 'style')
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = unicodedata.normalize("NFKC", text.casefold())
    # Unicode folds neither of Turkish's: to fold them is right in one language and harmless in names.
    text = text.replace("i\u0307", "i").replace("\u0131", "i")
    return "".join(one for one in text if not _is_unseen(one))


def _is_unseen(character: str) -> bool:
    # A space of no width divides words all the same.
    hidden = unicodedata.category(character) == "Cf" and character != "\u200b"
    return hidden or "\ufe00" <= character <= "\ufe0f"


@dataclass(frozen=True, slots=True)
class FoundWord:
    """A word in a text.

    Attributes:
        word: as it was asked for.
        start, end: where it stands in the text.
    """

    word: str
    start: int
    end: int


class WordFinder:
    """Finds names as whole words of a text, however both are written; a longer one before a shorter.

    Args:
        words: the names.

    >>> [(found.word, found.start) for found in WordFinder(["style", "style-x"]).find("in style-x, Style, stylex")]
    [('style-x', 3), ('style', 12)]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words: dict[str, str] = {}
        for word in words:
            self._words.setdefault("".join(part for _, part in _clusters(word)), word)
        parts = [_whole(word) for word in sorted(self._words, key=lambda word: (-len(word), word)) if word]
        self._pattern = re.compile("|".join(parts) or r"(?!)")

    def find(self, text: str) -> list[FoundWord]:
        """Every name in the text, in order."""
        places: dict[int, int] = {}
        pieces: list[str] = []
        length = 0
        for start, piece in _clusters(text):
            places.setdefault(length, start)
            pieces.append(piece)
            length += len(piece)
        places[length] = len(text)
        return [
            FoundWord(self._words[match[0]], places[match.start()], places[match.end()])
            for match in self._pattern.finditer("".join(pieces))
            # Inside of what is one character to the reader begins and ends no word.
            if match.start() in places and match.end() in places
        ]


def _whole(word: str) -> str:
    start = r"(?<!\w)" if re.match(r"\w", word) else ""
    end = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return f"{start}{re.escape(word)}{end}"


def _clusters(text: str) -> Iterator[tuple[int, str]]:
    """What a reader takes for one character, folded, with the place where it begins."""
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or not _continues(text[end - 1], text[end]):
            yield start, folded(text[start:end])
            start = end


def _continues(before: str, character: str) -> bool:
    korean = _JAMO[0] <= before <= _JAMO[1] and _JAMO[0] <= character <= _JAMO[1]
    return korean or unicodedata.category(character).startswith("M") or character in _HALF_WIDTH_MARKS
