"""Which words of two languages stand for one another, learnt from pairs of phrases: IBM Model 1.

Brown et al. 1993, "The Mathematics of Statistical Machine Translation", section 4.3. A few phrases are enough to tell
roughly what a character means, which is where its embedding may start from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from gouache.errors import InvalidInput

Alignment = dict[int, dict[int, float]]


def align(pairs: Iterable[tuple[Iterable[int], Iterable[int]]], *, rounds: int = 8) -> Alignment:
    """t(target | source) by expectation maximisation (Brown et al. 1993, equations 5, 17 and 18).

    Args:
        pairs: (source tokens, target tokens) of phrases of one meaning; order and repetition are left aside.
        rounds: of expectation maximisation, from the uniform start.

    Returns:
        For each source token the probabilities of the target tokens it was seen with; they add up to 1.
    """
    if rounds < 1:
        raise InvalidInput("rounds", given=rounds, expected="an integer >= 1")
    phrases = [(sorted(set(source)), sorted(set(target))) for source, target in pairs]
    table: Alignment = {s: {} for source, _ in phrases for s in source}
    for source, target in phrases:
        for s in source:
            table[s].update(dict.fromkeys(target, 1.0))
    for _ in range(rounds):
        counts: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for source, target in phrases:
            for word in target:
                total = sum(table[s][word] for s in source)
                for s in source:
                    counts[s][word] += table[s][word] / total
        table = {s: _normalised(words) for s, words in counts.items()}
    return table


def expected_rows(tokens: Sequence[int], alignment: Mapping[int, Mapping[int, float]], words: Tensor) -> Tensor:
    """For each token the mean row of `words` under its alignment; tokens without one get the table's mean.

    Args:
        tokens: source tokens. K
        alignment: from `align`.
        words: one row a target token. [V,D]

    Returns:
        [K,D]
    """
    rows = words.mean(0).repeat(len(tokens), 1)
    for place, token in enumerate(tokens):
        found = alignment.get(token)
        if found:
            weights = words.new_tensor(list(found.values()))
            rows[place] = weights @ words[list(found)]
    return rows


def _normalised(words: Mapping[int, float]) -> dict[int, float]:
    total = sum(words.values())
    return {word: count / total for word, count in words.items()}
