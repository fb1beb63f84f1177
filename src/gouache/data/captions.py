"""Captions of stickers: several forms for each, the style named in some, in English or Chinese."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gouache.data.stickers import Sticker, Stickers
from gouache.data.wording import with_article

STYLE_WORDS = {"noto": "noto style", "twemoji": "twemoji style", "flat": "flat style", "3d": "3d style"}
ZH_STYLE_WORDS = {"noto": "诺托风格", "twemoji": "推特风格", "flat": "扁平风格", "3d": "立体风格"}

NO_ARTICLE = ("people-body", "symbols", "flags", "letters")


def synonyms_of(stickers: Stickers) -> dict[str, tuple[str, ...]]:
    """Label of every thing to train on -> its keywords and Chinese names, each once, in the data set's order."""
    found: dict[str, dict[str, None]] = {}
    for row in stickers.indices("train"):
        record = stickers.records[int(row)]
        names = (*record.keywords, record.zh_label, *record.zh_keywords)
        found.setdefault(record.label, {}).update(dict.fromkeys(name for name in names if name))
    return {label: tuple(names) for label, names in found.items()}


def canonical_caption(record: Sticker) -> str:
    """The one caption that validation and held-out pictures use: "a red apple, 3d style"."""
    return f"{_thing(record)}, {STYLE_WORDS[record.style]}"


def caption(record: Sticker, generator: np.random.Generator, *, zh_share: float = 0.0) -> str:
    """One of a picture's many captions.

    Args:
        record: the picture's.
        generator: decides; drawn from a few times.
        zh_share: share of captions in Chinese.
    """
    if generator.random() < zh_share and record.zh_label:
        return _zh_caption(record, generator)
    thing = _pick(generator, (record.label, _thing(record), _thing(record), f"{_thing(record)} sticker"))
    if record.keywords and generator.random() < 0.25:
        thing = f"{thing}, {_pick(generator, record.keywords)}"
    style = STYLE_WORDS[record.style]
    forms = (f"{thing}, {style}", f"{thing}, {style}", f"{thing} in {style}", f"{style}, {thing}", thing)
    return _pick(generator, forms)


def _zh_caption(record: Sticker, generator: np.random.Generator) -> str:
    style = ZH_STYLE_WORDS[record.style]
    return _pick(generator, (f"{record.zh_label}，{style}", f"{style}的{record.zh_label}", record.zh_label))


def _thing(record: Sticker) -> str:
    plain = record.group in NO_ARTICLE or record.label.endswith("s")
    return record.label if plain else with_article(record.label)


def _pick(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]
