"""English and Chinese phrases of one meaning, made from the labels and keywords of stickers.

They teach a text encoder the Chinese of prompts: names, colours, counts, places, backgrounds and styles.

Which words stand for one another is learnt by IBM Model 1 (Brown et al. 1993, "The Mathematics of Statistical Machine
Translation", section 4.3): a few phrases tell roughly what a character means, which is where its embedding may start.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from gouache.data.captions import STYLE_WORDS, ZH_STYLE_WORDS, canonical_caption
from gouache.data.stickers import Sticker
from gouache.data.wording import NUMBERS, PLACES, RELATIONS, plural_of, with_article
from gouache.errors import InvalidInput
from gouache.models.text.tokenizers import UNKNOWN, WordPieceTokenizer

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


CHINESE, BEYOND_LATIN = 0x2E80, 0x2000
"""First code points of Chinese, Japanese and Korean writing, and of signs beyond the Latin ones."""
COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "light blue": "浅蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
    "cyan": "青色",
    "teal": "蓝绿色",
    "gold": "金色",
}
NUMBERS_ZH = {2: "两个", 3: "三个", 4: "四个", 5: "五个"}
PLACES_ZH = {
    "top left": "在左上角",
    "top": "在上方",
    "top right": "在右上角",
    "left": "在左边",
    "center": "在中间",
    "right": "在右边",
    "bottom left": "在左下角",
    "bottom": "在下方",
    "bottom right": "在右下角",
}
RELATIONS_ZH = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}
SIZES = {"small": "小", "big": "大", "large": "大", "tiny": "很小的"}


def translation(record: Sticker, others: Sequence[Sticker], draw: random.Random) -> tuple[str, str]:
    """One phrase in English and in Chinese.

    Args:
        record: the sticker that it speaks of.
        others: stickers that may stand beside it.
        draw: source of the choice; the same state gives the same phrase.
    """
    form = draw.random()
    english, chinese = record.label, record.zh_label
    if form < 0.3:
        return english, chinese
    if form < 0.45:
        return canonical_caption(record), f"{chinese}，{ZH_STYLE_WORDS[record.style]}"
    if form < 0.6 and record.keywords and record.zh_keywords:
        # Keywords are not translations of one another, but their sets describe one thing.
        return ", ".join((english, *record.keywords[:3])), "，".join((chinese, *record.zh_keywords[:3]))
    if form < 0.7:
        colour = draw.choice(sorted(COLOURS))
        return with_article(f"{colour} {english}"), f"{COLOURS[colour]}的{chinese}"
    if form < 0.78:
        colour = draw.choice(sorted(COLOURS))
        return f"{with_article(english)}, on {with_article(colour)} background", f"{COLOURS[colour]}背景上的{chinese}"
    if form < 0.84:
        count = draw.choice(sorted(NUMBERS))
        return f"{NUMBERS[count]} {plural_of(english) or english}", f"{NUMBERS_ZH[count]}{chinese}"
    if form < 0.92:
        place, size = draw.choice(sorted(PLACES)), draw.choice(sorted(SIZES))
        return with_article(f"{size} {english} {PLACES[place]}"), f"{SIZES[size]}{chinese}{PLACES_ZH[place]}"
    other, relation = draw.choice(others), draw.choice(sorted(RELATIONS))
    both = f"{with_article(english)} {RELATIONS[relation]} {with_article(other.label)}"
    return both, f"{chinese}在{other.zh_label}{RELATIONS_ZH[relation]}"


def foreign_characters(tokenizer: WordPieceTokenizer, texts: Iterable[str]) -> list[str]:
    """Characters of the texts that should get a piece of their own, each once, in order of code points.

    That is every Chinese one, known or not: an English encoder's vocabulary has a few, but learnt nothing about them;
    and any other above Latin that is unknown.
    """
    unknown = tokenizer.vocabulary.index(UNKNOWN)
    characters = sorted({character for text in texts for character in text if not character.isspace()})
    return [c for c in characters if ord(c) >= CHINESE or (ord(c) >= BEYOND_LATIN and unknown in tokenizer.ids(c))]


def known_translations(records: Iterable[Sticker]) -> list[tuple[str, str]]:
    """English and Chinese phrases of one meaning: every label, the sets of keywords, and the words of scenes."""
    one = list({record.code: record for record in records}.values())
    pairs = [(r.label, r.zh_label) for r in one]
    pairs += [(", ".join(r.keywords), "，".join(r.zh_keywords)) for r in one if r.keywords and r.zh_keywords]
    pairs += [(STYLE_WORDS[style], ZH_STYLE_WORDS[style]) for style in STYLE_WORDS]
    pairs += [(f"on {with_article(colour)} background", f"{zh}背景上的") for colour, zh in COLOURS.items()]
    pairs += [*COLOURS.items(), *SIZES.items()]
    for words, zh_words in ((NUMBERS, NUMBERS_ZH), (PLACES, PLACES_ZH), (RELATIONS, RELATIONS_ZH)):
        pairs += [(word, zh_words[key]) for key, word in words.items()]  # type: ignore[index]
    return pairs
