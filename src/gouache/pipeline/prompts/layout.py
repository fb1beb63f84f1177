"""Reads the layout out of a sentence: "a cat to the left of a tree" is a cat here and a tree there.

A small prior knows what a cat is and where two things stand, and mixes up which of them is which. So the sentence is
taken apart, each thing is drafted by its own words, and the drafts are laid where the sentence says
(`pipeline/generate/draft.py`). Lian et al. 2023 ("LLM-grounded diffusion", arXiv:2305.13655) let a language model write
such layouts; here a few sentence patterns do, English and Chinese, and what fits none of them is drafted as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gouache.colours import NEUTRALS, SHADES
from gouache.pipeline.prompts.scenery import phrases_of, scenery_of
from gouache.scenery.kinds import Scenery, SceneryUse

__all__ = ["Layout", "Place", "Thing", "names_a_ground", "read_layout"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thing goes: its middle and its longer side, as fractions of the picture.

    Attributes:
        x: of its middle.
        y: of its middle; of its foot if it stands.
        side: its longer one.
        stands: whether it stands on a ground.
    """

    x: float
    y: float
    side: float
    stands: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of the sentence.

    Attributes:
        words: its own, without the name of its colour.
        places: every one where it stands; none where it is alone and fills the picture.
        colour: one of `gouache.colours.SHADES` or `NEUTRALS`; None leaves it the colour that it is drafted in.
    """

    words: str
    places: tuple[Place, ...]
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sentence lays out.

    Attributes:
        things: in the sentence's order; none if a scenery is all.
        ground: whether it names a background.
        scenery: what to lay the things on.
        dropped: whether it names a scenery that isn't to be drawn.
    """

    things: tuple[Thing, ...]
    ground: bool
    scenery: Scenery | None = None
    dropped: bool = False

    @property
    def alone(self) -> Thing | None:
        """The thing that is the whole picture; None for several, for one that has a place, and on a ground."""
        if len(self.things) != 1 or self.ground:
            return None
        return None if self.things[0].places else self.things[0]


HALF, SMALL = 0.46, 0.36
STANDING, ALOFT = 0.62, 0.5
"""Longer side of one thing in a scenery, on its ground and in its air."""
STAGED: dict[int, tuple[tuple[float, float, float], ...]] = {
    2: ((0.27, 0.0, 0.46), (0.73, 0.02, 0.46)),
    3: ((0.5, -0.2, 0.34), (0.24, 0.02, 0.4), (0.76, 0.02, 0.4)),
    4: ((0.3, -0.2, 0.32), (0.7, -0.2, 0.32), (0.24, 0.04, 0.36), (0.76, 0.04, 0.36)),
    5: ((0.32, -0.2, 0.3), (0.68, -0.2, 0.3), (0.17, 0.05, 0.32), (0.5, 0.05, 0.32), (0.83, 0.05, 0.32)),
}
"""Where so many stand in a scenery, those behind first: middle, foot below the first row's, longer side."""
FIRST, SECOND = 0.26, 0.74
ROWS = {2: (2,), 3: (2, 1), 4: (2, 2), 5: (3, 2)}
"""Things in each row, for so many of them."""
SYNTAX = re.compile(r"[()\[\]{}<>|]|\bAND\b|\bBREAK\b")
"""Marks of a prompt that is more than a sentence."""

_LEFT, _RIGHT, _ABOVE, _BELOW = (FIRST, SECOND), (SECOND, FIRST), (FIRST, SECOND), (SECOND, FIRST)
_RELATIONS = {
    r"(?:to|on) the left of|left of|next to|beside": ("across", _LEFT),
    r"(?:to|on) the right of|right of": ("across", _RIGHT),
    r"above|over|on top of": ("down", _ABOVE),
    r"below|under|beneath|underneath": ("down", _BELOW),
    r"左边|左侧|左面|旁边": ("across", _LEFT),
    r"右边|右侧|右面": ("across", _RIGHT),
    r"上面|上方|上边": ("down", _ABOVE),
    r"下面|下方|下边": ("down", _BELOW),
}
_ROW_WORDS = {"top": 0.22, "upper": 0.22, "bottom": 0.78, "lower": 0.78, "上": 0.22, "下": 0.78}
_COLUMN_WORDS = {"left": 0.22, "right": 0.78, "左": 0.22, "右": 0.78}
_ARTICLE = r"(?:an?|the|one)\s"
_BE = r"(?:is|are|stands?|standing|sits?|sitting)?\s*"
_MEASURES = "只个条朵辆颗本把杯头匹座架艘棵块片张件支枚"
_ZH_ONE = f"一[{_MEASURES}]"
NAMES_A_STYLE = re.compile(r"\bstyle\b|风格", re.IGNORECASE)
"""Whether a prompt says in what style it is to be painted."""
_STYLE_BEHIND = re.compile(r"\s+in (?:an? )?(\S+) style$", re.IGNORECASE)
_GROUND_BEHIND = re.compile(r"\s+(?:on|with|against) an? (\S+(?: \S+)? background)$", re.IGNORECASE)
_PLACE = re.compile(
    rf"({_ARTICLE}.+?)\s+(?:in|at|on)\s+the\s+"
    r"(?:(top|upper|bottom|lower)[ -]?(left|right)?|(left|right)|(?:center|centre|middle))(?:\s+(?:corner|side))?",
    re.IGNORECASE,
)
_ZH_PLACE = re.compile(rf"([左右上下]{{1,2}})(?:角|边|方|面|侧)有({_ZH_ONE}.+)")
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "两": 2, "三": 3, "四": 4, "五": 5}
_COUNT = re.compile(r"(two|three|four|five|[2-5])\s+((?:[\w-]+\s+){0,2})([\w-]+)", re.IGNORECASE)
_ZH_COUNT = re.compile(rf"([两三四五2-5])([{_MEASURES}])((?:.{{1,2}}色的?)?[^的]{{1,3}})")
_SAME_PLURAL = {"fish", "sheep", "deer", "bison", "squid", "shrimp", "moose", "jellyfish", "blowfish"}
_IRREGULAR = {
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "feet": "foot",
    "oxen": "ox",
    "leaves": "leaf",
    "wolves": "wolf",
    "knives": "knife",
    "loaves": "loaf",
    "scarves": "scarf",
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "mangoes": "mango",
    "volcanoes": "volcano",
    "mosquitoes": "mosquito",
}

_ZH_COLOURS = {
    "粉红": "pink",
    "红": "red",
    "橙": "orange",
    "黄": "yellow",
    "绿": "green",
    "蓝": "blue",
    "紫": "purple",
    "粉": "pink",
    "棕": "brown",
    "褐": "brown",
    "白": "white",
    "黑": "black",
    "灰": "gray",
}
_COLOURS = {name: name for name in (*SHADES, *NEUTRALS)} | {"violet": "purple", "grey": "gray"} | _ZH_COLOURS
_ENGLISH = "|".join([*SHADES, *NEUTRALS, "violet", "grey"])
_NO_COLOUR = r"(?:and|or|panda|background)\b"
"""What a colour's name doesn't describe where it stands before these words."""
_COLOURED = re.compile(
    rf"({_ARTICLE})?({_ENGLISH})\s+(?!{_NO_COLOUR})(?!.*\b(?:and|{_ENGLISH})\b)(.+)",
    re.IGNORECASE,
)
_ZH_COLOURED = re.compile(rf"({_ZH_ONE})?({'|'.join(_ZH_COLOURS)})(?:色的?|的)([^和、]+)")
_ZH_RED_FOX = re.compile(
    rf"({_ZH_ONE})?(粉红|[红橙黄绿蓝紫粉棕])"
    "(狐狸|猫|狗|兔子?|鸟|马|熊|龙|蝴蝶|气球|[汽卡跑]?车|房子|帽子|雨?伞|[帆小]?船|帐篷|椅子|杯子)"
)
"""A thing behind one character of colour, which may be half a name elsewhere (红包, 黄瓜)."""
_NOT_BEFORE = {"and", "with", "of", "in", "on", "to", "at", "by", "for", *_IRREGULAR}


def read_layout(prompt: str, *, plain: bool = True, scenery: SceneryUse = "draw") -> Layout | None:
    """The layout that a prompt describes; None for anything but the patterns known.

    Known are relations ("a cat to the left of a tree", "一只猫在树的左边"), places ("a frog in the top left corner",
    "左上角有一只青蛙"), numbers up to five ("three cups", "三个杯子") and lists up to four ("a cat, a dog and a bird",
    "一只猫和一只狗"); one thing of one colour or on a ground ("a red fox", "一只蓝色的猫", "a cat on a yellow
    background"); and all of these in a scenery ("a red fox in the snow", "森林里的鹿"). Styles and other words behind a
    comma go with every thing. Prompts with emphasis, alternatives or tags are never taken apart.

    >>> [(thing.words, thing.places[0].x) for thing in read_layout("a cat to the left of a tree, 3d style").things]
    [('a cat, 3d style', 0.26), ('a tree, 3d style', 0.74)]
    >>> read_layout("a red fox, 3d style").things
    (Thing(words='a fox, 3d style', places=(), colour='red'),)
    >>> read_layout("a fire engine, 3d style") is None
    True

    Args:
        prompt: with its style.
        plain: whether a thing is told apart from its colour, and from its ground where it is alone.
        scenery: what to do with "in the snow": draw it, drop its words, or leave them to the thing; only with `plain`.
    """
    if SYNTAX.search(prompt):
        return None
    said = _clauses(prompt, scenery=plain and scenery != "ignore")
    around = said.around if scenery == "draw" and not said.grounds else None
    if said.around is not None and not said.sentence:
        return None if around is None else Layout((), False, around)
    things, known = _things(said.sentence)
    told = tuple(_told(thing, said, plain) for thing in (things if around is None else _staged(things, around)))
    if not known and not (said.sentence and plain and (said.ground or said.around or told[0].colour)):
        return None
    return Layout(told, said.ground, around, dropped=around is None and said.around is not None)


def _things(sentence: str) -> tuple[list[Thing], bool]:
    """The things of a sentence, and whether it lays them out; else it is one thing itself."""
    readers: tuple[Callable[[str], list[Thing] | None], ...] = (_related, _placed, _counted, _listed)
    for reader in readers:
        if things := reader(sentence):
            return things, True
    return [Thing(sentence, ())], False


def _staged(things: list[Thing], scenery: Scenery) -> list[Thing]:
    """The things where they stand or float in a scenery; what the sentence puts somewhere else stays there."""
    places = [place for thing in things for place in thing.places]
    if not places:
        alone = Place(0.5, scenery.foot, STANDING, stands=True)
        if scenery.floats:
            alone = Place(0.5, 0.36, ALOFT) if scenery.over_ground else Place(0.5, 0.5, STANDING)
        return [Thing(things[0].words, (alone,))]
    if scenery.floats or len(places) == 1:
        return things
    if len(things) == 2 and places[0].x == places[1].x:
        return things  # one above the other
    across = len(places) == 2
    staged = [Place(x, scenery.foot + foot, side, stands=True) for x, foot, side in STAGED[len(places)]]
    if across:
        staged = [Place(old.x, new.y, new.side, stands=True) for old, new in zip(places, staged, strict=True)]
    rest = iter(staged)
    return [Thing(thing.words, tuple(next(rest) for _ in thing.places)) for thing in things]


def _told(thing: Thing, said: _Said, plain: bool) -> Thing:
    """A thing with the clauses that go with every one, its colour apart from its words."""
    words, colour = _without_colour(thing.words, said.around is not None) if plain else (thing.words, None)
    return Thing(said.beside.format(words), thing.places, colour)


def _without_colour(words: str, compact: bool = False) -> tuple[str, str | None]:
    """What is said to have one colour, and the colour's name.

    >>> _without_colour("a red apple"), _without_colour("a red and white flag")
    (('an apple', 'red'), ('a red and white flag', None))

    Args:
        words: of the thing.
        compact: whether "红狐狸" counts; recipes from before sceneries leave it to the prior.
    """
    if found := _COLOURED.fullmatch(words):
        return _with_article(f"{found[1] or ''}{found[3]}"), _COLOURS[found[2].lower()]
    if found := _ZH_COLOURED.fullmatch(words):
        return f"{found[1] or ''}{found[3]}", _COLOURS[found[2]]
    if compact and (found := _ZH_RED_FOX.fullmatch(words)):
        return f"{found[1] or ''}{found[3]}", _COLOURS[found[2]]
    return words, None


def _with_article(words: str) -> str:
    """Words whose indefinite article suits what comes after it now."""
    return re.sub(r"^an? (?=(.))", lambda m: "an " if m[1].lower() in "aeiou" else "a ", words, flags=re.IGNORECASE)


def without_measure(words: str) -> str:
    """Words without a Chinese "one" and its measure word in front.

    >>> without_measure("一匹马, 3d style"), without_measure("a horse")
    ('马, 3d style', 'a horse')
    """
    return re.sub(r"^一[只个条朵辆颗头匹座架艘棵枚位](?=\w)", "", words)


def names_a_ground(prompt: str) -> bool:
    """Whether a prompt names a background other than a transparent one.

    >>> names_a_ground("a cat on a blue background"), names_a_ground("a cat, transparent background")
    (True, False)
    """
    return bool(prompt.strip()) and _clauses(prompt).ground


@dataclass(frozen=True, slots=True)
class _Said:
    """The clauses of a prompt.

    Attributes:
        sentence: itself.
        beside: a form "{}, 3d style" that gives its other clauses to each thing.
        grounds: names of a background, transparent or not.
        ground: whether one of them is seen.
        around: the scenery, whose words are in none of the others.
    """

    sentence: str
    beside: str
    grounds: tuple[str, ...]
    ground: bool
    around: Scenery | None


def _clauses(prompt: str, *, scenery: bool = False) -> _Said:
    """The clauses of a prompt, told apart.

    Args:
        prompt: without marks of syntax.
        scenery: whether to look for one.
    """
    comma = "，" if "，" in prompt else ", "
    clauses = [clause.strip() for clause in re.split(r"[,，]", prompt.strip().rstrip(".。")) if clause.strip()]
    own: list[str] = []
    tail: list[str] = []
    around = [one for clause in clauses for one in phrases_of(clause)] if scenery else []
    if around:
        clauses = [clause for clause in clauses if not phrases_of(clause)]
    if clauses and (found := _STYLE_BEHIND.search(clauses[-1])):
        clauses[-1:] = [clauses[-1][: found.start()], f"{found[1]} style"]
    for number, clause in enumerate(clauses):
        if not (scenery and scenery_of(clause)) and (found := _GROUND_BEHIND.search(clause)):
            clauses[number : number + 1] = [clause[: found.start()], f"on a {found[1]}"]
            break
    for clause in clauses:
        named = re.match(rf"{_ARTICLE}|(?:two|three|four|five|[2-5])\s|and\s", clause, re.IGNORECASE)
        (own if named or not own else tail).append(clause)
    grounds = [clause for clause in tail if clause.endswith(("background", "背景"))]
    plain = [clause for clause in tail if clause not in grounds]
    form = comma.join(["{}", *(clause.replace("{", "{{").replace("}", "}}") for clause in plain)])
    ground = any("transparent" not in clause and "透明" not in clause for clause in grounds)
    sentence = ", ".join(own)
    if not scenery:
        return _Said(sentence, form, tuple(grounds), ground, None)
    told = scenery_of(sentence, around)
    if told is None:
        return _clauses(prompt) if around else _Said(sentence, form, tuple(grounds), ground, None)
    return _Said(told.words, form, tuple(grounds), ground, told.scenery)


def _related(sentence: str) -> list[Thing] | None:
    for words, (direction, ends) in _RELATIONS.items():
        found = re.fullmatch(rf"({_ARTICLE}.+?)\s+{_BE}(?:{words})\s+({_ARTICLE}.+)", sentence, re.IGNORECASE)
        found = found or re.fullmatch(rf"(.+?)在(.+?)的?(?:{words})", sentence)
        if found:
            places = [Place(along, 0.5, HALF) if direction == "across" else Place(0.5, along, HALF) for along in ends]
            return [Thing(found[1], (places[0],)), Thing(found[2], (places[1],))]
    return None


def _placed(sentence: str) -> list[Thing] | None:
    if found := _PLACE.fullmatch(sentence):
        words, row, column = found[1], found[2], found[3] or found[4]
        words = re.sub(rf"^({_ARTICLE})(?:small|little|tiny) ", r"\1", words, flags=re.IGNORECASE)
        words = _with_article(words)
        place = Place(_COLUMN_WORDS.get((column or "").lower(), 0.5), _ROW_WORDS.get((row or "").lower(), 0.5), SMALL)
        return [Thing(words, (place,))]
    if found := _ZH_PLACE.fullmatch(sentence):
        column_word = next((c for c in found[1] if c in _COLUMN_WORDS), "")
        row_word = next((c for c in found[1] if c in _ROW_WORDS), "")
        place = Place(_COLUMN_WORDS.get(column_word, 0.5), _ROW_WORDS.get(row_word, 0.5), SMALL)
        return [Thing(re.sub(rf"^({_ZH_ONE})小", r"\1", found[2]), (place,))]
    return None


def _counted(sentence: str) -> list[Thing] | None:
    if found := _COUNT.fullmatch(sentence):
        one, before = _singular(found[3]), found[2]
        told = before.lower().split()
        if one is None or any(word in _NOT_BEFORE or word.endswith("ing") for word in told):
            return None
        words, number = f"{before}{one}", found[1].lower()
        words = f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"
    elif found := _ZH_COUNT.fullmatch(sentence):
        words, number = f"一{found[2]}{found[3]}", found[1]
    else:
        return None
    return [Thing(words, _rows(_NUMBERS.get(number) or int(number)))]


def _listed(sentence: str) -> list[Thing] | None:
    parts = [part.strip() for part in re.split(r",\s*and\s+|,|\sand\s|(?<=.)[和、](?=一)", sentence)]
    if not 2 <= len(parts) <= 4 or not all(re.match(rf"{_ARTICLE}|{_ZH_ONE}", part, re.I) for part in parts):
        return None
    return [Thing(words, (place,)) for words, place in zip(parts, _rows(len(parts)), strict=True)]


def _rows(count: int) -> tuple[Place, ...]:
    """So many places in rows, row by row."""
    rows = ROWS[count]
    cell = 1 / max(*rows, 2)
    side = HALF if count == 2 else 0.82 * cell
    places = []
    for y, columns in enumerate(rows):
        for x in range(columns):
            along = (
                FIRST + (SECOND - FIRST) * x if columns == 2 and cell == 0.5 else 0.5 + (x - (columns - 1) / 2) * cell
            )
            places.append(Place(along, 0.5 if len(rows) == 1 else FIRST + (SECOND - FIRST) * y, side))
    return tuple(places)


def _singular(word: str) -> str | None:
    """One of what a plural names; None if the word is no plural."""
    lower = word.lower()
    if lower in _SAME_PLURAL:
        return word
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if lower.endswith("ies") and len(lower) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:s|x|z|ch|sh)es$", lower):
        return word[:-2]
    return word[:-1] if lower.endswith("s") and not lower.endswith(("ss", "us")) else None
