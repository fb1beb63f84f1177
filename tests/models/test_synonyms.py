"""Labels found by other names: a table written out by hand, and what it must not find."""

from __future__ import annotations

import pytest

from gouache.models.memory.synonyms import Synonyms

TABLE = {
    "panda": ["bamboo", "face", "熊猫", "脸"],
    "steaming bowl": ["noodle", "soup", "面条", "碗"],
    "mage": ["witch", "wizard", "巫师"],
    "woman mage": ["witch", "wizard", "女巫"],
    "cat": ["kitten", "pet", "小猫", "猫"],
    "dog": ["puppy", "pet", "狗"],
    "hot beverage": ["coffee", "tea", "咖啡"],
    "pink heart": ["cute", "可爱"],
}


@pytest.fixture(scope="module")
def known() -> Synonyms:
    return Synonyms(TABLE)


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        ("noodles", ("steaming bowl",)),
        ("a bowl of noodles", ("steaming bowl",)),
        ("A Bowl Of SOUP", ("steaming bowl",)),
        ("a cute kitten", ("cat",)),  # the noun, not what stands before it
        ("wizards", ("mage",)),  # and not the woman mage besides
        ("a pet", ("cat", "dog")),
        ("coffee shop", ("hot beverage",)),  # nothing that ends the noun is known
        ("熊猫", ("panda",)),
        ("可爱的熊猫", ("panda",)),
        ("热咖啡", ("hot beverage",)),
        ("猫", ("cat",)),
    ],
)
def test_a_noun_finds_what_is_called_so(known: Synonyms, words: str, labels: tuple[str, ...]) -> None:
    assert known.labels(words) == labels


@pytest.mark.parametrize(
    "words",
    [
        "a dog",  # a label
        "a dog with a kitten",
        "pandas",
        "",
        "the",
        "something else",
        "碗里的饭",  # ends in another noun
        "大猫",  # one character of more
        "🦊",
    ],
)
def test_labels_and_what_is_not_known_find_nothing(known: Synonyms, words: str) -> None:
    assert known.labels(words) == ()


def test_an_empty_table_knows_nothing() -> None:
    assert Synonyms({}).labels("a dog") == ()


def test_a_rarer_keyword_counts_more() -> None:
    many = {f"thing {number}": ["round"] for number in range(9)}
    known = Synonyms({**many, "orb": ["round", "sphere"], "globe": ["sphere", "map"]})
    assert known.labels("a round sphere") == ("orb",)
    assert known.labels("a sphere of a map") == ("globe",)
