"""Finds the words of a prompt that name a scenery for its thing: "a red fox in the snow" is a red fox, and snow.

Only a phrase of its own counts, with a preposition, behind or before the thing: a snowman and a beach umbrella are
things. Phrases of time, weather and place may follow each other ("on the beach at night"); where two say different
things, the one next to the thing holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gouache.pipeline.prompts.scenery_words import (
    ADJECTIVES,
    ALONE,
    CHINESE,
    ENDS,
    FLIERS,
    HEAD,
    NAMES,
    NO_THINGS,
    NOUNS,
    OF_THE_SKY,
    SWIMMERS,
    Changes,
    Noun,
)
from gouache.scenery.kinds import Scenery

__all__ = ["Told", "phrases_of", "scenery_of"]

_HAN = re.compile("[\u4e00-\u9fff]")
_THE = r"(?:the|an?|some|its|his|her|their)\s+"
_POSTURE = (
    r"(?:(?:that|which|who)\s+)?(?:(?:is|are|stands?|sits?|lies|floats?|flies)\b)?\s*"
    r"(?:(?:standing|sitting|lying|laying|resting|floating|sailing|drifting|flying|swimming|parked|living|lost|hidden|"
    r"alone|up|out|high|far|deep)\b)?\s*"
)
_ADJECTIVE = "|".join(ADJECTIVES)
_PICTURE_OF = re.compile(
    r"(?:an?|the)\s+(?:picture|photo|photograph|image|drawing|illustration|painting|sticker)\s+of\s+|there\s+(?:is|are)\s+",
    re.IGNORECASE,
)
_ABOVE = re.compile(r"over|above", re.IGNORECASE)
_MOON = re.compile(r"(?:the|a) moon|(?:一[轮个])?月亮", re.IGNORECASE)
"""A moon that shines; a thing that is only called so may be a new one, of which nothing is seen."""
_BY_DAY = re.compile(r"sun|rainbow|太阳|彩虹")
"""Lights of the sky that are seen by day; moon and stars are by night, if nothing else is said."""
_STAYS = re.compile(r"bridges?|桥", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Told:
    """A sentence told apart from its scenery.

    Attributes:
        words: of the thing or things.
        scenery: what stands around them.
    """

    words: str
    scenery: Scenery


@cache
def _pattern(words: str) -> re.Pattern[str]:
    """A pattern that is compiled when it is first asked for: all of them would take 0.1 s of every start."""
    return re.compile(words, re.IGNORECASE)


def _nouns_in(text: str) -> list[Noun]:
    """The rows of nouns of which some stand in a text: no others can be in its phrases."""
    return [one for one in NOUNS if _pattern(one.nouns).search(text)]


def _phrase_form(one: Noun) -> re.Pattern[str]:
    """The pattern for the phrases of a row of nouns."""
    return _pattern(rf"(?P<before>{one.before})\s+(?P<the>{_THE})?{_shown_words(one)}")


def _shown_form(one: Noun) -> re.Pattern[str]:
    """The pattern for what stands in such a phrase without preposition and article."""
    return _pattern(_shown_words(one))


def _shown_words(one: Noun) -> str:
    return rf"(?P<told>(?:(?:{_ADJECTIVE})\s+){{0,3}})(?P<noun>{one.nouns})(?:\s+(?:landscape|scenery|scene))?"


_BEHIND = (
    rf"with\s+(?:{_THE})?(.+?)\s+(?:in the background|behind (?:it|him|her|them))|"
    rf"(?:on|with|against|in front of)\s+{_THE}(.+?)\s+background"
)
_WEATHER = re.compile("snowy|wintry|starry|rainy|autumn|sunset|night", re.IGNORECASE)
"""Adjectives that are a background by themselves; a dark one is a colour."""
_ZH_ONE = "|".join(form for form, _ in CHINESE)
_ZH_SOME = rf"(?:{_ZH_ONE})(?:的?(?:{_ZH_ONE}))*"
_ZH_BEFORE = rf"在?({_ZH_SOME})(?:的|[有站坐躺趴停长漂飞]着?)(.+)"
_ZH_AFTER = (
    rf"(.+?)(?:正在?)?(?:站|坐|躺|趴|停|漂|飘|漂浮|飞|飞翔|游|走|跑|住|生活)?着?在({_ZH_SOME})"
    r"(飞翔?|飞行|奔跑|游泳|游|玩耍?|跑|走|行走|散步|睡觉|航行)?"
)


def scenery_of(sentence: str, around: Sequence[Changes] = ()) -> Told | None:
    """Tell a sentence apart from the scenery that it names; None if it names none.

    A scenery alone ("the sea at night") leaves no words. A place without a time ("a beach") is the model's own thing,
    and so is one in another ("a road in the desert").

    >>> scenery_of("a red fox in the snow").words, scenery_of("a red fox in the snow").scenery.season
    ('a red fox', 'winter')
    >>> scenery_of("一只狗在沙滩上").words, scenery_of("a beach umbrella"), scenery_of("the sea at night").words
    ('一只狗', None, '')

    Args:
        sentence: without its style.
        around: what other clauses of the prompt say of the scenery.
    """
    words, found = sentence.strip(), list(around)
    if _without_article(words).lower() in NAMES:
        return None
    while (part := (_cut_chinese if _HAN.search(words) else _cut_english)(words)) is not None:
        words = part[0]
        found += part[1]
    if found and (picture := _PICTURE_OF.match(words)):
        words = words[picture.end() :]
    if found and _MOON.fullmatch(words):
        words = "满月" if _HAN.search(words) else "a full moon"
    if found and _is_thing(words):
        return Told(words, _settled(words, found))
    placed = any("place" in changes for changes in found)
    itself = _itself(words) if found and not placed else None
    return None if itself is None else Told("", _settled("", [*found, itself]))


def phrases_of(clause: str) -> list[Changes]:
    """What a clause says that is nothing but a scenery; nothing for any other.

    >>> phrases_of("at night"), phrases_of("cute")
    ([{'light': 'night'}], [])
    """
    if _HAN.search(clause):
        alone = re.fullmatch(rf"在?({_ZH_SOME})", clause.strip())
        return _chinese(alone[1]) if alone else []
    left, found = f"it {clause.strip()}", list[Changes]()
    while (part := _cut_english(left)) is not None:
        left = part[0]
        found += part[1]
    return found if left == "it" else []


def _settled(words: str, found: Sequence[Changes]) -> Scenery:
    """The scenery of some phrases, the nearest to the thing last, and of what the thing itself is."""
    said: dict[str, Any] = {}
    for changes in found:
        said |= changes
    head = _head(words)
    bare, flies = bool(OF_THE_SKY.fullmatch(head)), bool(FLIERS.fullmatch(head))
    if bare and not _BY_DAY.fullmatch(head):
        said.setdefault("light", "night")
    within = said.pop("within", False)
    if within and said.get("place") == "sea" and SWIMMERS.fullmatch(head):
        said["place"] = "underwater"
    aloft = bare or flies or (said.pop("aloft", False) and not _STAYS.fullmatch(head))
    said.pop("aloft", None)
    return Scenery(**({"place": "sky"} if bare or flies else {}) | said, bare=bare, aloft=aloft)


def _head(words: str) -> str:
    """The noun that a sentence is about, in small letters."""
    if _HAN.search(words):
        return re.sub(r"^.*的|^[一两二三四五几][个只条朵辆颗本把杯头匹座架艘棵块片张件支枚轮道]", "", words)
    return (HEAD.split(words.lower())[0].split() or [""])[-1]


def _without_article(words: str) -> str:
    return re.sub(rf"^(?:{_THE}|one\s+)", "", words.strip(), flags=re.IGNORECASE)


def _is_thing(words: str) -> bool:
    """Whether words can be a thing that is laid on a scenery."""
    if _HAN.search(words):
        return not phrases_of(words) and _head(words) not in NO_THINGS
    left = _without_article(words)
    if not re.search(r"[a-z]", left, re.IGNORECASE) or re.search(rf"\b{ENDS}$", left, re.IGNORECASE):
        return False
    if " " not in left and left == words and left.lower().endswith("ing"):
        return False  # singing in the rain
    return _head(left) not in NO_THINGS


def _cut_english(words: str) -> tuple[str, list[Changes]] | None:
    """Words without the last phrase of a scenery, and what it says; of several readings the longest phrase."""
    tidy = re.sub(r"\s+", " ", words)
    best: tuple[str, list[Changes]] | None = None
    for word, changes in ALONE.items():
        if tidy.lower().endswith(f" {word}"):
            best = _stripped(tidy[: -len(word)]), [changes]
    if (behind := re.search(rf"(?<=\s)(?:{_BEHIND})$", tidy, re.IGNORECASE)) is not None:
        shown = _shown((behind[1] or behind[2]).strip())
        best = (_stripped(tidy[: behind.start()]), shown) if shown else best
    nouns = _nouns_in(tidy)
    for start in (gap.end() for gap in re.finditer(r"\s", tidy)):
        if best is not None and start >= len(best[0]) + 1:
            break
        for noun in nouns:
            phrase = _phrase_form(noun).fullmatch(tidy, start)
            if phrase and (told := _said(phrase.groupdict(), noun)) is not None:
                return _lifted(tidy[:start], told)
    return best


def _lifted(before: str, told: Changes) -> tuple[str, list[Changes]]:
    """What stands before a phrase, without its posture; what flies is aloft wherever it is."""
    flies = re.search(r"\b(?:flying|flies)\s*$", before, re.IGNORECASE)
    return _stripped(before), [{**told, "aloft": True} if flies and told.get("place") != "sky" else told]


def _stripped(before: str) -> str:
    return re.sub(rf"(?<=\s){_POSTURE}$", "", before, flags=re.IGNORECASE).strip()


def _said(phrase: Mapping[str, str | None], noun: Noun) -> Changes | None:
    """What a phrase, by its parts, says of the scenery; None if it is none after all."""
    told: dict[str, Any] = {}
    for word, changes in ADJECTIVES.items():
        if re.search(rf"\b(?:{word})\s", phrase["told"] or "", re.IGNORECASE):
            told |= changes
    before, plural = phrase.get("before"), (phrase["noun"] or "").lower().endswith("s")
    if before is not None and not (noun.bare or phrase["the"] or told or plural):
        return None
    if noun.told and not told:
        return None
    place = noun.changes.get("place")
    if place == "sea" and (before or "").lower() in ("in", "inside", "within"):
        told["within"] = True
    if place not in (None, "sky", "space", "moon") and _ABOVE.fullmatch(before or ""):
        told["aloft"] = True
    return {**told, **noun.changes}


def _itself(words: str) -> Changes | None:
    """What a place says that is the whole picture: "a snowy forest"; None for anything else."""
    if _HAN.search(words):
        said = [
            changes for form, changes in CHINESE for end in "里上中下边" if re.fullmatch(form, f"{_head(words)}{end}")
        ]
    else:
        said = _shown(_without_article(words))
    return next((changes for changes in said if "place" in changes), None)


def _shown(words: str) -> list[Changes]:
    """What "snowy mountains" say that stand in the background."""
    for noun in _nouns_in(words):
        shown = _shown_form(noun).fullmatch(words)
        if shown and not noun.told and (told := _said(shown.groupdict(), noun)) is not None:
            return [told]
    if not _WEATHER.fullmatch(words):
        return []
    return [changes for word, changes in ADJECTIVES.items() if re.fullmatch(word, words, re.IGNORECASE)]


def _cut_chinese(words: str) -> tuple[str, list[Changes]] | None:
    if found := re.fullmatch(_ZH_BEFORE, words):
        return found[2], _chinese(found[1])
    if found := re.fullmatch(_ZH_AFTER, words):
        return found[1], _chinese(found[2])
    return None


def _chinese(phrases: str) -> list[Changes]:
    """What some phrases say, one after the other."""
    said = []
    for part in re.finditer(_ZH_ONE, phrases):
        said += [changes for form, changes in CHINESE if re.fullmatch(form, part[0])][:1]
    return said
