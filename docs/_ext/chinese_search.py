"""Search in Chinese: texts and queries are cut into pairs of characters, so that every word is found in every sentence.

Sphinx's own Chinese search cuts texts into a dictionary's words and queries not at all: what a reader types is found
only where it is one word of the dictionary. (In Sphinx 9.0 it finds nothing: it asks for a stemmer that isn't there.)
"""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

RUN = re.compile(r"[\u3400-\u9fff]+|[^\u3400-\u9fff]+")
"""Chinese characters, or others."""


def pieces(word: str) -> list[str]:
    """What a word is found by: of Chinese characters each, and each two that stand side by side; others as they are.

    >>> pieces("采样器v2")
    ['采', '样', '器', '采样', '样器', 'v2']
    """
    found: list[str] = []
    for run in RUN.findall(word):
        if "\u3400" <= run[0] <= "\u9fff":
            found += [*run, *(run[at : at + 2] for at in range(len(run) - 1))]
        else:
            found.append(run)
    return found


class ChineseSearch(SearchEnglish):
    """Pairs of Chinese characters; English words as in English."""

    lang = "zh"
    # The queries' side of `pieces`: of three characters or more the pairs are enough.
    js_splitter_code = r"""
var splitQuery = (query) =>
  (
    query.match(
      /[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{Letter}\p{Number}_\p{Emoji_Presentation}])+/gu,
    ) || []
  ).flatMap((run) =>
    /[\u3400-\u9fff]/.test(run) && run.length > 2
      ? Array.from({ length: run.length - 1 }, (_, at) => run.slice(at, at + 2))
      : [run],
  );
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 - Sphinx's name
        """The pieces of a text."""
        return [piece for word in super().split(input) for piece in pieces(word)]
