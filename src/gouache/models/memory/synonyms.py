"""What else things are called: words of a prompt -> the labels under which a model remembers what they mean.

A small text encoder knows "panda" and takes "熊猫" for a bear; the data set's keywords know better. So where a prompt's
noun is a keyword of something remembered, the draft is asked for by that thing's label. Keywords that few things have
count more (inverse document frequency, Spärck Jones 1972).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

__all__ = ["Synonyms"]

CHINESE = re.compile(r"[\u4e00-\u9fff]")
LONGEST = 8
"""Characters of a Chinese keyword, and words of an English one, that are looked for."""
NEARLY = 0.999
"""Share of the best score from which on another label means the words as well."""
_BEFORE_ANOTHER_NOUN = frozenset(
    ["of", "with", "in", "on", "at", "under", "over", "by", "for", "from", "to", "and", "near", "behind", "inside"]
)
_SMALL = frozenset(["a", "an", "the", "some", "is", "are", "his", "her", "its", "my", "your", "one", "two", "three"])
_PLURALS = ((re.compile(r"(?<=\w)ies$"), "y"), (re.compile(r"(?<=s|x|z)es$|(?<=ch|sh)es$"), ""))
_S = re.compile(r"(?<=\w\w[^su])s$")

Phrase = tuple[str, ...]


class Synonyms:
    """Labels by what else the things are called, in English and Chinese.

    Args:
        table: label, in English -> other names and keywords.
    """

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self.table = table

    @cached_property
    def _labels(self) -> set[Phrase]:
        return {_english(label) for label in self.table}

    @cached_property
    def _means(self) -> dict[Phrase, set[str]]:
        means: dict[Phrase, set[str]] = defaultdict(set)
        for label, words in self.table.items():
            own = _english(label)
            for phrase in (own, *((word,) for word in own)):
                means[phrase].add(label)
            for word in words:
                means[_english(word) if word.isascii() or not CHINESE.search(word) else (word,)].add(label)
        means.pop((), None)
        return means

    def labels(self, words: str) -> tuple[str, ...]:
        """The labels that words mean best, in alphabetical order; none if they hold a label, or nothing known.

        >>> known = Synonyms({"panda": ["bamboo", "熊猫"], "steaming bowl": ["noodle", "面条"]})
        >>> known.labels("一只可爱的熊猫"), known.labels("a bowl of noodles"), known.labels("a panda with noodles")
        (('panda',), ('steaming bowl',), ())
        """
        if CHINESE.search(words):
            parts, heads = self._chinese(words)
        else:
            parts, heads = self._english(words)
        heads = heads or ([] if CHINESE.search(words) else parts)
        scores: dict[str, float] = defaultdict(float)
        for part in parts:
            for label in self._means[part]:
                scores[label] += math.log(len(self.table) / len(self._means[part]) + 1)
        meant = {label for head in heads for label in self._means[head]}
        best = max((scores[label] for label in meant), default=0.0)
        found = sorted(label for label in meant if scores[label] >= NEARLY * best)
        # "mage" and not "woman mage", where both are meant alike.
        return tuple(label for label in found if not any(other != label and _inside(other, label) for other in found))

    def _english(self, words: str) -> tuple[list[Phrase], list[Phrase]]:
        """The keywords in words, and those that end a noun: before a preposition, or at the end."""
        text = _english(words)
        spans = [(i, j) for i, j in _spans(len(text)) if text[i:j] in self._means and not set(text[i:j]) <= _SMALL]
        if any(text[i:j] in self._labels for i, j in spans):
            return [], []
        ends = {j for j in range(1, len(text) + 1) if j == len(text) or text[j] in _BEFORE_ANOTHER_NOUN}
        longest = [one for one in spans if not any(_covers(other, one) for other in spans)]
        return [text[i:j] for i, j in longest], [text[i:j] for i, j in longest if j in ends]

    def _chinese(self, words: str) -> tuple[list[Phrase], list[Phrase]]:
        """The keywords in words, and that which ends them; one character alone only if there is nothing else."""
        spans = [
            (i, j) for i, j in _spans(len(words)) if (words[i:j],) in self._means and (j - i > 1 or j - i == len(words))
        ]
        longest = [one for one in spans if not any(_covers(other, one) for other in spans)]
        return [(words[i:j],) for i, j in longest], [(words[i:j],) for i, j in longest if j == len(words)]


def _spans(length: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(length) for j in range(i + 1, min(length, i + LONGEST) + 1))


def _covers(other: tuple[int, int], one: tuple[int, int]) -> bool:
    return other != one and other[0] <= one[0] and one[1] <= other[1]


def _inside(short: str, long: str) -> bool:
    return f" {short} " in f" {long} "


def _english(words: str) -> Phrase:
    """Its words, lower case and in the singular."""
    lower = words.lower()
    parts = [lower] if lower.isascii() and lower.isalnum() else re.findall(r"[^\W_]+", lower)
    return tuple(_singular(word) for word in parts)


def _singular(word: str) -> str:
    """
    >>> [_singular(word) for word in ("noodles", "cherries", "boxes", "glass", "bus", "peaches")]
    ['noodle', 'cherry', 'box', 'glass', 'bus', 'peach']
    """
    if not word.endswith("s"):
        return word
    for ending, instead in _PLURALS:
        if len(word) > 3 and ending.search(word):
            return ending.sub(instead, word)
    return _S.sub("", word)
