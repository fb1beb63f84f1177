"""English words of scenes: nouns of labels, plurals, numbers, places, relations."""

from __future__ import annotations

import re

COLOUR_WORDS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "light",
)
JOINING = ("with", "and", "of", "no", "in", "on", "to")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
RELATIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
PLACES = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}
NO_PLURAL = (
    "rice",
    "bread",
    "milk",
    "cheese",
    "honey",
    "salt",
    "butter",
    "bacon",
    "meat",
    "sake",
    "fire",
    "water",
    "ice",
    "money",
    "soap",
    "sushi",
    "broccoli",
    "garlic",
    "corn",
    "bamboo",
    "wood",
    "fog",
    "wind",
    "fries",
    "ginger",
    "luggage",
    "tea",
    "soup",
    "flatware",
    "wine",
    "popcorn",
    "coral",
    "thread",
    "yarn",
    "blood",
    "curry",
    "tempura",
    "oden",
    "custard",
    "food",
    "herb",
    "laundry",
    "snow",
    "sand",
    "paper",
)
SAME_PLURAL = ("fish", "sheep", "deer", "bison", "squid", "shrimp", "moose", "blowfish", "jellyfish", "scissors")
IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "ox": "oxen",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "loaf": "loaves",
    "scarf": "scarves",
    "man": "men",
    "woman": "women",
    "child": "children",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "mosquito": "mosquitoes",
}
_PLAIN = re.compile(r"[a-z]+(?:[ -][a-z]+){0,2}")


def with_article(words: str) -> str:
    """The words with "a" or "an" in front: "an apple", "a red apple"."""
    return f"{'an' if words[:1].lower() in 'aeiou' and not words.startswith(('uni', 'eu', 'one')) else 'a'} {words}"


def noun_of(label: str) -> str | None:
    """The thing a label names, without its colour: "red apple" -> "apple".

    None for a label that is no plain noun that can be counted, so "a" and "three" always fit in front.
    """
    words = label.lower().split(" ")
    while len(words) > 1 and words[0] in COLOUR_WORDS:
        words = words[1:]
    noun = " ".join(words)
    if any(word in (*COLOUR_WORDS, *JOINING) for word in words) or not _PLAIN.fullmatch(noun):
        return None
    return noun if plural_of(noun) else None


def plural_of(noun: str) -> str | None:
    """The plural, or None for a noun that is not counted or already plural."""
    head, _, last = noun.rpartition(" ")
    if last in NO_PLURAL or (last.endswith("s") and not last.endswith(("ss", "us"))):
        return None
    if last in SAME_PLURAL:
        many = last
    elif last in IRREGULAR:
        many = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return f"{head} {many}".strip()
