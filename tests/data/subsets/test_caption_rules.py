"""What becomes of captions, and that it depends on the image's number alone."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from gouache.data.subsets.caption_rules import CaptionRules
from gouache.errors import ConfigError

TAGS = "a, b, c, d"


def drawn(rules: CaptionRules, count: int = 2000, caption: str = TAGS) -> list[str | None]:
    return [rules.applied(caption, np.random.Generator(np.random.Philox(key=[1, i]))) for i in range(count)]


def test_without_rules_a_caption_stays_as_it_is() -> None:
    assert set(drawn(CaptionRules(), 3, "a ,b,  c")) == {"a ,b,  c"}
    assert not CaptionRules(prefix="x").draws
    assert set(drawn(CaptionRules(prefix="sks dog,", suffix="photo"), 2)) == {"sks dog, a, b, c, d photo"}


def test_shuffled_tags_take_every_order_equally_often_and_the_first_stay() -> None:
    orders = Counter(drawn(CaptionRules(shuffle=True, keep=1)))
    assert set(orders) == {", ".join(("a", *rest)) for rest in permutations("bcd")}
    # 2000 draws of 6 orders: 333 each, deviation sqrt(2000 * 1/6 * 5/6) = 16.7; five of these.
    assert all(abs(count - 2000 / 6) < 84 for count in orders.values())


def test_each_tag_but_the_kept_is_dropped_at_its_rate_and_trigger_words_never() -> None:
    captions = drawn(CaptionRules(prefix="sks", suffix="end", keep=1, tag_dropout=0.25, shuffle=True))
    assert all(one is not None and one.startswith("sks a") and one.endswith(" end") for one in captions)
    for tag in "bcd":
        share = sum(f" {tag}" in (one or "").replace(" end", "") for one in captions) / 2000
        assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 2000) ** 0.5


def test_a_whole_caption_is_dropped_at_its_rate() -> None:
    captions = drawn(CaptionRules(prefix="sks", dropout=0.1))
    assert abs(captions.count(None) / 2000 - 0.1) < 5 * (0.1 * 0.9 / 2000) ** 0.5
    assert set(captions) == {None, "sks a, b, c, d"}


def test_separators_of_tags_and_of_those_that_stay() -> None:
    rules = CaptionRules(shuffle=True, separator=";", keep_separator="|||")
    found = Counter(drawn(rules, 200, "x; y ||| b;c ||| last"))
    assert set(found) == {"x; y; b; c; last", "x; y; c; b; last"}


def test_a_draw_is_a_pure_function_of_the_number() -> None:
    rules = CaptionRules(shuffle=True, tag_dropout=0.5, dropout=0.2)
    assert drawn(rules, 50) == drawn(rules, 50)
    with pytest.raises(ConfigError, match="tag_dropout"):
        CaptionRules.from_dict({"tag_dropot": 0.1})
