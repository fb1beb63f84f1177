"""Chinese captions of scenes: they claim what the English ones claim, of the same pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from gouache.data.scene_rules import SceneObject, SceneTruth
from gouache.data.scenes import Scene, Scenes
from gouache.data.stickers import Sticker, Stickers
from gouache.data.stream import StickerStream, with_background
from gouache.data.wording_zh import COLOURS, scene_caption, zh_noun

COUNTS = {"两": "two", "三": "three", "四": "four", "五": "five"}
PLACES = {
    "左上角": "top left corner",
    "右上角": "top right corner",
    "左下角": "bottom left corner",
    "右下角": "bottom right corner",
    "上方": "at the top",
    "下方": "at the bottom",
    "左边": "on the left",
    "右边": "on the right",
    "中间": "in the center",
}
RELATIONS = {"左边": "to the left of", "右边": "to the right of", "上面": "above", "下面": "below"}
STYLES = {"诺托风格": "noto style", "推特风格": "twemoji style", "扁平风格": "flat style", "立体风格": "3d style"}
ENGLISH = {chinese: english for english, chinese in COLOURS.items()}


def claims_of_english(scene: Scene) -> set[str]:
    """What the English caption says, read from its words alone."""
    words = (*COUNTS.values(), *PLACES.values(), *RELATIONS.values(), *STYLES.values(), "transparent background")
    found = {word for word in words if word in scene.caption}
    found |= {f"{c} background" for c in COLOURS if f"{c} background" in scene.caption}
    colours = re.findall(rf"({'|'.join(COLOURS)})(?! background)", scene.caption)
    return found | {f"{colour} thing" for colour in colours} | ({"small"} if " small " in scene.caption else set())


def claims_of_chinese(text: str) -> set[str]:
    """What the Chinese caption says, in the same terms, read from its characters alone."""
    found = {english for chinese, english in STYLES.items() if chinese in text}
    found |= {f"{ENGLISH[c]} background" for c in ENGLISH if f"{c}背景" in text}
    found |= {f"{ENGLISH[c]} thing" for c in re.findall(f"({'|'.join(ENGLISH)})的", text)}
    if "透明背景" in text:
        found.add("transparent background")
    if place := re.match(f"({'|'.join(PLACES)})有", text):
        found.add(PLACES[place[1]])
    if count := re.match(f"({'|'.join(COUNTS)})[个只]", text):
        found.add(COUNTS[count[1]])
    if relation := re.search(f"在.*的({'|'.join(RELATIONS)})", text):
        found.add(RELATIONS[relation[1]])
    return found | ({"small"} if re.search("一[个只]小", text) else set())


def test_both_languages_claim_the_same(mini_stickers: Stickers) -> None:
    scenes, kinds = Scenes(mini_stickers), set()
    for number in range(150):
        scene = scenes.scene(11, number)
        assert scene.zh_caption is not None
        assert claims_of_chinese(scene.zh_caption) == claims_of_english(scene), (scene.caption, scene.zh_caption)
        for thing in scene.truth.objects:
            assert mini_stickers.records[thing.row].zh_label in scene.zh_caption
        kinds.add(scene.truth.kind)
    assert len(kinds) == 5


def sticker(example: Stickers, *, label: str, zh_label: str, subgroup: str = "plant-other") -> Sticker:
    return replace(example.records[0], label=label, zh_label=zh_label, subgroup=subgroup)


@pytest.mark.parametrize(
    ("label", "zh_label", "noun", "colour", "wanted"),
    [
        ("green apple", "青苹果", "apple", "blue", "苹果"),
        ("black bird", "黑色的鸟", "bird", None, "鸟"),
        ("orange book", "橙色书本", "book", "red", "书本"),
        ("cucumber", "黄瓜", "cucumber", None, "黄瓜"),
        ("cucumber", "黄瓜", "cucumber", "red", None),
        ("apple", "", "apple", None, None),
    ],
)
def test_a_label_loses_its_own_colour_or_is_left_alone(
    mini_stickers: Stickers, label: str, zh_label: str, noun: str, colour: str | None, wanted: str | None
) -> None:
    record = sticker(mini_stickers, label=label, zh_label=zh_label)
    assert zh_noun(record, SceneObject(0, "1f34f", noun, colour)) == wanted


def test_captions_by_hand(mini_stickers: Stickers) -> None:
    records = [
        sticker(mini_stickers, label="frog", zh_label="青蛙", subgroup="animal-amphibian"),
        sticker(mini_stickers, label="tree", zh_label="树"),
    ]
    frog, tree = SceneObject(0, "a", "frog"), SceneObject(1, "b", "tree", "red")
    placed = SceneTruth("placed", (frog,), "3d", position="top left")
    counted = SceneTruth("counted", (frog,), "flat", count=2, background="blue")
    related = SceneTruth("related", (frog, tree), "noto", relation="above")
    plain = {"small": False, "style": False, "transparent": False}
    assert scene_caption(placed, records, **plain | {"small": True, "style": True}) == "左上角有一只小青蛙，立体风格"
    assert scene_caption(counted, records, **plain) == "两只青蛙，蓝色背景"
    assert scene_caption(related, records, **plain | {"transparent": True}) == "青蛙在红色的树的上面，透明背景"


def test_the_stream_mixes_languages_and_leaves_pictures_alone(mini_stickers: Stickers) -> None:
    english = StickerStream(mini_stickers, 5, scene_share=1.0)
    mixed = StickerStream(mini_stickers, 5, scene_share=1.0, zh_share=0.5)
    chinese = 0
    for number in range(60):
        one, two = english.example(number), mixed.example(number)
        assert np.array_equal(one.picture, two.picture)
        assert two.caption in (one.caption, Scenes(mini_stickers).scene(5, number).zh_caption)
        chinese += two.caption != one.caption
        assert mixed.example(number).caption == two.caption
    assert 15 < chinese < 45
    assert english.fingerprint != mixed.fingerprint


def test_backgrounds_are_named_in_the_captions_language() -> None:
    assert with_background("青蛙，立体风格", "red") == "青蛙，立体风格，红色背景"
    assert with_background("a frog", "orange") == "a frog, on an orange background"
