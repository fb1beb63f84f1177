"""Which words of a prompt name a scenery, and which only look like it."""

from __future__ import annotations

import pytest

from gouache.pipeline.prompts.layout import read_layout
from gouache.pipeline.prompts.scenery import scenery_of
from gouache.scenery.kinds import Light, Scenery

WINTER, AUTUMN, NIGHT = Scenery(season="winter"), Scenery(season="autumn"), Scenery(light="night")
SUNSET: Light = "sunset"


@pytest.mark.parametrize(
    ("prompt", "words", "scenery"),
    [
        ("a red fox in the snow", "a red fox", WINTER),
        ("a red fox in a snowy landscape", "a red fox", WINTER),
        ("a dog on the beach", "a dog", Scenery("beach")),
        ("A dog is sitting on the sandy beach", "A dog", Scenery("beach")),
        ("a lighthouse by the sea at sunset", "a lighthouse", Scenery("beach", SUNSET)),
        ("a boat on the sea", "a boat", Scenery("sea")),
        ("a house at the lake", "a house", Scenery("beach")),
        ("a sailor at sea", "a sailor", Scenery("sea")),
        ("a boat in the sea", "a boat", Scenery("sea")),
        ("a shark in the sea", "a shark", Scenery("underwater")),
        ("a fish under water", "a fish", Scenery("underwater")),
        ("a submarine underwater", "a submarine", Scenery("underwater")),
        ("a horse in a field of flowers", "a horse", Scenery("meadow")),
        ("a castle on a hill", "a castle", Scenery("hill")),
        ("a house on top of a hill", "a house", Scenery("hill")),
        ("a castle on a hill in the forest", "a castle", Scenery("hill")),
        ("a goat in the mountains", "a goat", Scenery("mountains")),
        ("a dog with snowy mountains in the background", "a dog", Scenery("mountains", season="winter")),
        ("a cat on a snowy background", "a cat", WINTER),
        ("a camel in the desert at night", "a camel", Scenery("desert", "night")),
        ("a bear in a snowy forest", "a bear", Scenery("forest", season="winter")),
        ("a castle under the stars", "a castle", NIGHT),
        ("an owl at night", "an owl", NIGHT),
        ("the moon at night", "a full moon", Scenery("sky", "night", aloft=True, bare=True)),
        ("the moon over the sea", "a full moon", Scenery("sea", "night", aloft=True, bare=True)),
        ("a rainbow over the sea", "a rainbow", Scenery("sea", aloft=True, bare=True)),
        ("an eagle flying over the mountains", "an eagle", Scenery("mountains", aloft=True)),
        ("a bridge over the river", "a bridge", Scenery("sea")),
        ("a plane in the clouds", "a plane", Scenery("sky", aloft=True)),
        ("a rocket in outer space", "a rocket", Scenery("space")),
        ("an astronaut on the moon", "an astronaut", Scenery("moon")),
        ("a frog on a rainy night", "a frog", Scenery(light="night", rain=True)),
        ("a lamp in a cosy room", "a lamp", Scenery("room")),
        ("a taxi in the city at night", "a taxi", Scenery("street", "night")),
        ("a squirrel in autumn leaves", "a squirrel", AUTUMN),
        ("there is a fox in the snow", "a fox", WINTER),
        ("a sand castle on the beach", "a sand castle", Scenery("beach")),
        ("a snowman in the snow", "a snowman", WINTER),
        ("雪地里的红狐狸", "红狐狸", WINTER),
        ("一只狗在沙滩上", "一只狗", Scenery("beach")),
        ("一只狗在沙滩上奔跑", "一只狗", Scenery("beach")),
        ("夜晚的海滩上有一只狗", "一只狗", Scenery("beach", "night")),
        ("海边的灯塔", "灯塔", Scenery("beach")),
        ("海里的鱼", "鱼", Scenery("underwater")),
        ("夜空下的城堡", "城堡", NIGHT),
        ("草地上的兔子", "兔子", Scenery("meadow")),
        ("太空中的火箭", "火箭", Scenery("space")),
        ("森林里的鹿", "鹿", Scenery("forest")),
        ("山上的城堡", "城堡", Scenery("hill")),
        ("雪夜里的帐篷", "帐篷", Scenery(light="night", season="winter")),
    ],
)
def test_a_thing_is_told_apart_from_its_scenery(prompt: str, words: str, scenery: Scenery) -> None:
    told = scenery_of(prompt)
    assert told is not None
    assert (told.words, told.scenery) == (words, scenery)


@pytest.mark.parametrize(
    "prompt",
    [
        *("a beach umbrella", "a snowman", "a night owl", "a sand castle", "a mountain bike", "the milky way"),
        *("a city hall", "a sea lion", "a desert island", "a beach with umbrella", "a snow-capped mountain", "sunset"),
        *("snow", "a beach", "a forest", "a snowy forest", "a starry sky", "bridge at night", "cityscape at dusk"),
        *("night with stars", "face in clouds", "sunrise over mountains", "man in steamy room", "person in bed"),
        *("cloud with snow", "umbrella on ground", "house with garden", "singing in the rain", "a walk in the park"),
        *("a day at the beach", "lost in space", "in the snow", "at night", "on the beach", "hands in the air"),
        *(
            "a man in a winter coat",
            "a girl in a summer dress",
            "a boy with rain boots",
            "a street sign",
            "a moon cake",
        ),
        *("a field hockey stick", "a rain cloud", "a space ship", "a forest green hat", "a shirt in sea green"),
        *("a cat with a beach ball", "a garden gnome", "a room key", "a bird in a cage", "a ship in a bottle"),
        *("a cat in the hat", "a house on fire", "a flower in a pot", "a king of the hill", "an autumn leaf"),
        *(
            "a raincoat",
            "a road in the desert",
            "a ladybug on leaves",
            "a night in the city",
            "a bear in a forest green scarf",
            "a needle in a haystack",
            "a cat on a dark background",
        ),
        *(
            "雪人",
            "雪地靴",
            "海狮",
            "沙滩伞",
            "山地自行车",
            "太空人",
            "银河",
            "森林",
            "星空",
            "雪中送炭",
            "海的女儿",
            "天空之城",
        ),
    ],
)
def test_a_name_is_no_scenery(prompt: str) -> None:
    assert scenery_of(prompt) is None
    layout = read_layout(prompt)
    assert layout == read_layout(prompt, scenery="ignore")
    assert layout is None or layout.scenery is None


@pytest.mark.parametrize(
    ("prompt", "scenery"),
    [
        ("a beach at sunset", Scenery("beach", SUNSET)),
        ("the sea at night", Scenery("sea", "night")),
        ("a forest in autumn", Scenery("forest", season="autumn")),
        ("日落时的海滩", Scenery("beach", SUNSET)),
    ],
)
def test_a_scenery_alone_has_no_thing(prompt: str, scenery: Scenery) -> None:
    layout = read_layout(prompt)
    assert layout is not None
    assert (layout.things, layout.scenery, layout.alone) == ((), scenery, None)
    assert read_layout(prompt, scenery="drop") is None


def test_styles_colours_numbers_and_relations_go_with_it() -> None:
    def read(prompt: str) -> tuple[list[tuple[str, str | None, int]], Scenery | None]:
        layout = read_layout(prompt)
        assert layout is not None, prompt
        return [(thing.words, thing.colour, len(thing.places)) for thing in layout.things], layout.scenery

    assert read("a red fox in the snow, 3d style") == ([("a fox, 3d style", "red", 1)], WINTER)
    assert read("a red fox in the snow in 3d style") == ([("a fox, 3d style", "red", 1)], WINTER)
    assert read("at night, a castle, cute") == ([("a castle, cute", None, 1)], NIGHT)
    assert read("a castle, at night") == ([("a castle", None, 1)], NIGHT)
    assert read("月光下，一只狼") == ([("一只狼", None, 1)], NIGHT)
    assert read("雪地里的红狐狸") == ([("狐狸", "red", 1)], WINTER)
    assert read("two brown dogs on the beach") == ([("a dog", "brown", 2)], Scenery("beach"))
    assert read("沙滩上的两只狗") == ([("一只狗", None, 2)], Scenery("beach"))
    tree = [("a cat", None, 1), ("a tree", None, 1)]
    assert read("a cat to the left of a tree in the snow") == (tree, WINTER)
    assert read("a cat and a tree in the snow") == (tree, WINTER)
    for marked in ("a (fox:1.2) in the snow", "a fox in the snow AND a dog", "a [fox|dog] in the snow"):
        assert read_layout(marked) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["on the beach", "in the sky", "on a hill"])
def test_things_stand_inside_the_picture(count: int, where: str) -> None:
    layout = read_layout(f"{count} apples {where}" if count > 1 else f"an apple {where}")
    assert layout is not None
    assert layout.scenery is not None
    (thing,) = layout.things
    assert len(thing.places) == count
    for place in thing.places:
        assert place.stands != layout.scenery.floats
        assert place.side / 2 - 0.01 <= place.x <= 1.01 - place.side / 2
        assert place.side <= place.y <= 0.95 if place.stands else 0.5 * place.side <= place.y <= 1 - 0.5 * place.side
    feet = [place.y for place in thing.places]
    assert feet == sorted(feet), "who stands behind is laid first"


def test_a_background_that_is_named_wins() -> None:
    for prompt, ground in (("a fox in the snow on a yellow background", True), ("a fox in the snow, 透明背景", False)):
        layout = read_layout(prompt)
        assert layout is not None
        assert [thing.words for thing in layout.things] == ["a fox"]
        assert (layout.scenery, layout.ground, layout.dropped) == (None, ground, True)


def test_it_can_be_dropped_or_ignored() -> None:
    dropped = read_layout("a dog on the beach", scenery="drop")
    assert dropped is not None
    assert dropped.alone is not None
    assert (dropped.alone.words, dropped.scenery, dropped.dropped) == ("a dog", None, True)
    assert read_layout("a dog on the beach", scenery="ignore") is None
    assert read_layout("a dog on the beach", plain=False) is None
