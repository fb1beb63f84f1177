"""Chinese captions of scenes, from the same truth as the English ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gouache.data.captions import ZH_STYLE_WORDS
from gouache.data.scene_rules import SceneObject, SceneTruth
from gouache.data.stickers import Sticker

COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
}
NUMBERS = {2: "两", 3: "三", 4: "四", 5: "五"}
RELATIONS = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}
PLACES = {
    "top left": "左上角",
    "top": "上方",
    "top right": "右上角",
    "left": "左边",
    "center": "中间",
    "right": "右边",
    "bottom left": "左下角",
    "bottom": "下方",
    "bottom right": "右下角",
}
TRANSPARENT = "透明"
_COLOUR = "[红橙黄绿蓝紫粉棕黑白灰青金银]"
_LEADING_COLOUR = re.compile(f"^{_COLOUR}色?的?(?=.)")


def scene_caption(
    truth: SceneTruth, records: Sequence[Sticker], *, small: bool, style: bool, transparent: bool
) -> str | None:
    """What the scene shows, in Chinese; None where a label is missing or speaks of a colour itself.

    Args:
        truth: the claims.
        records: of the stickers, by row.
        small: the English caption calls the object small.
        style, transparent: it names the style, or the missing ground.
    """
    nouns = [zh_noun(records[thing.row], thing) for thing in truth.objects]
    if any(noun is None for noun in nouns):
        return None
    words = [f"{COLOURS[t.colour]}的{n}" if t.colour else f"{n}" for t, n in zip(truth.objects, nouns, strict=True)]
    measure = "只" if records[truth.objects[0].row].subgroup.startswith("animal") else "个"
    if truth.count is not None:
        text = f"{NUMBERS[truth.count]}{measure}{words[0]}"
    elif truth.relation is not None:
        text = f"{words[0]}在{words[1]}的{RELATIONS[truth.relation]}"
    else:
        text = f"一{measure}{'小' if small else ''}{words[0]}"
    if truth.position is not None:
        text = f"{PLACES[truth.position]}有{text}"
    if style:
        text = f"{text}，{ZH_STYLE_WORDS[truth.style]}"
    if truth.background is not None or transparent:
        text = f"{text}，{background(truth.background)}"
    return text


def background(name: str | None) -> str:
    """The ground by name; None is transparent."""
    return f"{TRANSPARENT if name is None else COLOURS[name]}背景"


def zh_noun(record: Sticker, thing: SceneObject) -> str | None:
    """The Chinese label as the noun stands in the scene: without the colour that the English one lost.

    None where a colour is claimed and the label holds another one that can't be told apart from it.
    """
    noun = record.zh_label
    if record.label.lower() != thing.noun:
        noun = _LEADING_COLOUR.sub("", noun)
    if not noun or (thing.colour is not None and re.search(_COLOUR, noun)):
        return None
    return noun
