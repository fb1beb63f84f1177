"""Endless compositions of stickers with exact captions: recoloured, placed, counted, related, on a named ground.

A scene is a pure function of (seed, number): every draw comes from one Philox generator keyed by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from gouache.colours import SHADES, MainColour, Picture, Shade, colour_name, main_colour, recoloured, visible
from gouache.data.captions import STYLE_WORDS
from gouache.data.drawing import cut_out, fitted, lay, on_ground
from gouache.data.scene_rules import KINDS, SceneKind, SceneObject, SceneTruth, count_parts
from gouache.data.stickers import Split, Sticker, Stickers
from gouache.data.wording import NUMBERS, PLACES, RELATIONS, noun_of, plural_of, with_article
from gouache.data.wording_zh import scene_caption
from gouache.errors import DataError

SCENE_VERSION = 1
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
NOT_THINGS = ("time", "sky-weather", "place-map", "place-other", "place-geographic")
GROUNDS = {
    "white": (252, 252, 252),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (215, 50, 50),
    "orange": (245, 150, 40),
    "yellow": (250, 220, 70),
    "green": (70, 170, 80),
    "blue": (60, 110, 220),
    "purple": (140, 80, 190),
    "pink": (250, 175, 200),
    "brown": (120, 75, 45),
}
CLEAR_SHARE = 0.55
"""An object has a colour when so much of it is of one name."""
TRIES = 200
TRAINING, EVALUATION = 1, 2
LAYOUTS = {2: (2,), 3: (3,), 4: (2, 2), 5: (3, 2)}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scene:
    """A composed picture, its caption, and what the caption claims.

    Attributes:
        picture: uint8 [S,S,4], straight alpha.
        caption: English.
        truth: for the checkers in `scene_checks`.
        zh_caption: the same in Chinese; None where the labels don't allow it.
    """

    picture: Picture
    caption: str
    truth: SceneTruth
    zh_caption: str | None = None


@dataclass(frozen=True, slots=True)
class _Prop:
    """An object ready to be laid: what it is, its cut-out, the measured main colour."""

    record: Sticker
    noun: str
    sprite: Picture
    main: MainColour

    def named(self, colour: str | None) -> SceneObject:
        return SceneObject(self.record.index, self.record.code, self.noun, colour)


class Scenes:
    """Composes scenes from one split of a set.

    Args:
        stickers: the set; scenes have its pictures' size.
        split: whose pictures are used. Training uses ``"train"``.

    Raises:
        DataError: the split holds no plain thing to compose with.
    """

    def __init__(self, stickers: Stickers, *, split: Split = "train") -> None:
        self.stickers, self.size = stickers, stickers.size
        self._nouns = {int(row): noun for row in stickers.indices(split) if (noun := _noun(stickers.records[row]))}
        self._rows: dict[str, list[int]] = {}
        for row in self._nouns:
            self._rows.setdefault(stickers.records[row].style, []).append(row)
        if not self._rows:
            raise DataError(
                str(stickers.folder), given="no plain things", expected="stickers of animals, food, objects"
            )

    def scene(self, seed: int, number: int) -> Scene:
        """The training scene with this number: any kind, often with a ground, sometimes several claims at once."""
        return self._draw(_Draws(seed, number, TRAINING), None)

    def evaluation(self, seed: int, number: int) -> Scene:
        """A scene of kind ``number % 5`` for evaluation: one claim besides the ground, always named in the caption.

        Its draws are not the training scenes' of the same seed.
        """
        return self._draw(_Draws(seed, number, EVALUATION), KINDS[number % len(KINDS)])

    def _draw(self, draws: _Draws, wanted: SceneKind | None) -> Scene:
        plain = wanted is not None
        kind: SceneKind = draws.pick(KINDS) if wanted is None else wanted
        style = draws.pick(tuple(self._rows))
        if kind == "counted":
            picture, words, truth = self._counted(draws, style)
        elif kind == "related":
            picture, words, truth = self._related(draws, style, coloured=plain or draws.chance(0.4))
        else:
            picture, words, truth = self._single(draws, style, kind, coloured=not plain and draws.chance(0.3))
        styled, transparent = draws.chance(0.6), False
        caption = f"{words}, {STYLE_WORDS[style]}" if styled else words
        if kind == "grounded" or (not plain and draws.chance(0.4)):
            name, colour = self._ground(draws, picture)
            picture, truth = on_ground(picture, colour), replace(truth, background=name)
            caption = f"{caption}, on {with_article(name)} background"
        elif draws.chance(0.1):
            caption, transparent = f"{caption}, on a transparent background", True
        first = truth.objects[0]
        small = words.startswith(f"a small {first.colour} {first.noun}" if first.colour else f"a small {first.noun}")
        chinese = scene_caption(truth, self.stickers.records, small=small, style=styled, transparent=transparent)
        return Scene(picture, caption, truth, chinese)

    def _single(self, draws: _Draws, style: str, kind: SceneKind, *, coloured: bool) -> tuple[Picture, str, SceneTruth]:
        prop, colour = (
            self._coloured(draws, style) if coloured or kind == "coloured" else (self._prop(draws, style), None)
        )
        canvas, position = self._canvas(), None
        words = with_article(f"{colour} {prop.noun}" if colour else prop.noun)
        if kind == "placed":
            position = draws.pick(tuple(PLACES))
            self._place(draws, canvas, prop.sprite, position)
            small = "small " if draws.chance(0.5) else ""
            words = f"{with_article(small + words.split(' ', 1)[1])} {PLACES[position]}"
        else:
            sprite = fitted(prop.sprite, round(self.size * draws.uniform(0.65, 0.9)))
            lay(canvas, sprite, *self._centred(draws, sprite, (self.size / 2, self.size / 2), 0.02))
        return canvas, words, SceneTruth(kind, (prop.named(colour),), style, position=position)

    def _counted(self, draws: _Draws, style: str) -> tuple[Picture, str, SceneTruth]:
        count = draws.pick(tuple(NUMBERS))
        prop, many = self._countable(draws, style)
        rows = LAYOUTS[count]
        cell = self.size / max(*rows, 2)
        side, canvas = int(cell * draws.uniform(0.66, 0.78)), self._canvas()
        sprite = fitted(prop.sprite, side)
        for y, columns in enumerate(rows):
            for x in range(columns):
                middle = ((x + 0.5) * self.size / columns, (y + 0.5) * self.size / len(rows))
                if columns < 3 and len(rows) > 1 and max(rows) == 3:  # a short row keeps the long row's cells
                    middle = (self.size / 2 + (x - (columns - 1) / 2) * cell, middle[1])
                lay(canvas, sprite, *self._centred(draws, sprite, middle, 0.02))
        truth = SceneTruth("counted", (prop.named(None),), style, count=count)
        return canvas, f"{NUMBERS[count]} {many}", truth

    def _related(self, draws: _Draws, style: str, *, coloured: bool) -> tuple[Picture, str, SceneTruth]:
        first, colour = self._coloured(draws, style) if coloured else (self._prop(draws, style), None)
        second, other = first, colour
        while second.noun == first.noun or (coloured and other == colour):
            second, other = self._coloured(draws, style) if coloured else (self._prop(draws, style), None)
        relation = draws.pick(tuple(RELATIONS))
        canvas, across = self._canvas(), relation in ("left", "right")
        places = (0.26, 0.74) if relation in ("left", "above") else (0.74, 0.26)
        for prop, place in zip((first, second), places, strict=True):
            sprite = fitted(prop.sprite, round(self.size * draws.uniform(0.36, 0.46)))
            middle = (place * self.size, self.size * draws.uniform(0.4, 0.6))
            lay(canvas, sprite, *self._centred(draws, sprite, middle if across else middle[::-1], 0.01))
        nouns = [f"{c} {prop.noun}" if c else prop.noun for prop, c in ((first, colour), (second, other))]
        words = f"{with_article(nouns[0])} {RELATIONS[relation]} {with_article(nouns[1])}"
        return (
            canvas,
            words,
            SceneTruth("related", (first.named(colour), second.named(other)), style, relation=relation),
        )

    def _prop(self, draws: _Draws, style: str) -> _Prop:
        row = draws.pick(self._rows[style])
        sprite = cut_out(np.asarray(self.stickers.pictures[row]))
        return _Prop(self.stickers.records[row], self._nouns[row], sprite, main_colour(visible(sprite)))

    def _coloured(self, draws: _Draws, style: str) -> tuple[_Prop, str]:
        """An object with one clear colour, its own or, more often, another; the name is measured on the result."""
        for _ in range(TRIES):
            prop = self._prop(draws, style)
            if prop.main.name not in SHADES or prop.main.share < CLEAR_SHARE:
                continue
            if draws.chance(0.25):
                return prop, prop.main.name
            target = draws.pick([name for name in SHADES if name != prop.main.name])
            sprite = recoloured(prop.sprite, _varied(SHADES[target], draws))
            main = main_colour(visible(sprite))
            if main.name in SHADES and main.share >= CLEAR_SHARE:
                return replace(prop, sprite=sprite, main=main), main.name
        raise DataError(
            style, given=f"no thing of one colour in {TRIES} draws", expected="some", cure="Use more stickers."
        )

    def _countable(self, draws: _Draws, style: str) -> tuple[_Prop, str]:
        """An object in one piece whose noun has a plural."""
        for _ in range(TRIES):
            prop = self._prop(draws, style)
            many = plural_of(prop.noun)
            if many and count_parts(fitted(prop.sprite, self.size)[..., 3] > 127) == 1:
                return prop, many
        raise DataError(style, given=f"nothing countable in {TRIES} draws", expected="some", cure="Use more stickers.")

    def _ground(self, draws: _Draws, picture: Picture) -> tuple[str, tuple[int, int, int]]:
        """A ground unlike the objects' main colour, with a little variation that keeps its name."""
        main = main_colour(visible(picture)).name
        name = draws.pick([name for name in GROUNDS if name != main])
        base = np.array(GROUNDS[name])
        varied = np.clip(base + np.round(draws.generator.uniform(-12, 12, 3)), 0, 255).astype(int)
        red, green, blue = (int(v) for v in (varied if colour_name(tuple(varied)) == name else base))
        return name, (red, green, blue)

    def _place(self, draws: _Draws, canvas: Picture, sprite: Picture, position: str) -> None:
        small = fitted(sprite, round(self.size * draws.uniform(0.26, 0.36)))
        x = 0.2 if "left" in position else 0.8 if "right" in position else 0.5
        y = 0.2 if "top" in position else 0.8 if "bottom" in position else 0.5
        lay(canvas, small, *self._centred(draws, small, (x * self.size, y * self.size), 0.03))

    def _centred(self, draws: _Draws, sprite: Picture, middle: tuple[float, float], jitter: float) -> tuple[int, int]:
        """Left and top of a sprite around a middle, a little off, within the canvas."""
        corner = []
        for side, place in ((sprite.shape[1], middle[0]), (sprite.shape[0], middle[1])):
            start = place - side / 2 + draws.uniform(-jitter, jitter) * self.size
            corner.append(min(max(round(start), 1), self.size - side - 1))
        return corner[0], corner[1]

    def _canvas(self) -> Picture:
        return np.zeros((self.size, self.size, 4), np.uint8)


class _Draws:
    """The draws of one scene."""

    def __init__(self, seed: int, number: int, purpose: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.generator.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def uniform(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))


def _noun(record: Sticker) -> str | None:
    """The noun of a sticker that is a plain thing."""
    if record.group not in GROUPS or record.subgroup in NOT_THINGS:
        return None
    return noun_of(record.label)


def _varied(shade: Shade, draws: _Draws) -> Shade:
    return Shade(shade.lightness + draws.uniform(-0.04, 0.04), shade.chroma, shade.hue + draws.uniform(-5, 5))
