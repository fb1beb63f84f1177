"""The words of sceneries, English and Chinese; `pipeline/prompts/scenery.py` reads with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Changes = Mapping[str, Any]
_WINTER, _AUTUMN, _SUMMER = {"season": "winter"}, {"season": "autumn"}, {"season": "summer"}
_NIGHT, _SUNSET, _DAY, _RAIN = {"light": "night"}, {"light": "sunset"}, {"light": "day"}, {"rain": True}

ADJECTIVES: dict[str, Changes] = {
    "snowy|snow[ -]covered|wintry|winter|frozen|icy": _WINTER,
    "autumn|autumnal|fall": _AUTUMN,
    "summer|spring|summery": _SUMMER,
    "rainy|stormy": _RAIN,
    "starry|star[ -]filled|moonlit|night|dark|nighttime|midnight": _NIGHT,
    "sunset|evening|sunrise|dusky": _SUNSET,
    "sunny|bright|clear|blue": _DAY,
    "sandy|deep|fresh|white|soft|fluffy|falling|fallen|heavy|light|pouring|cloudy|calm|rough|wide|open|big|large|huge|"
    "small|little|tall|high|green|grassy|lush|golden|flowery|blooming|quiet|busy|empty|dense|thick|magic|magical|"
    "enchanted|misty|foggy|tropical|lonely|cosy|cozy|beautiful|pretty|warm|cold|hot|vast|distant|rolling|rocky|pine|"
    "outer|red|yellow|orange|colou?rful|crowded|shallow|dry|bare|flat|late|early|old|city|sand": {},
}
"""What may stand before a scenery's noun, and what it says of it."""

_UPON, _IN = r"(?:on|at) (?:the )?top of|on|upon|atop", r"in|inside|within"
_BY, _FRONT = r"by|near|beside|next to|along|close to", r"in front of|against|before"
_OVER = r"over|above"
_UNDER, _THROUGH = r"under|underneath|beneath|below", r"through|across|among|amongst|amid|between|into"


@dataclass(frozen=True, slots=True)
class Noun:
    """Nouns of a scenery.

    Attributes:
        before: prepositions that make a scenery of them.
        nouns: themselves.
        changes: what they say.
        bare: whether they need no article.
        told: whether an adjective has to say something, for they don't.
    """

    before: str
    nouns: str
    changes: Changes
    bare: bool = False
    told: bool = False


NOUNS = (
    Noun(
        rf"{_IN}|on|{_THROUGH}|{_FRONT}|during",
        "snow|winter|snowfall|snowstorm|snowfields?|snowdrift",
        _WINTER,
        bare=True,
    ),
    Noun("on", "ice", _WINTER),
    Noun(rf"{_IN}|at|near", "arctic|antarctic|north pole|south pole", _WINTER),
    Noun(rf"{_IN}|on|{_THROUGH}|{_FRONT}|{_UNDER}|during", "autumn|fall", _AUTUMN, bare=True),
    Noun(
        rf"{_IN}|on|{_THROUGH}|{_FRONT}",
        "(?:autumn|fall|fallen|falling|colou?rful) (?:leaves|foliage)",
        _AUTUMN,
        bare=True,
    ),
    Noun("in|among|amongst|amid", "leaves", _AUTUMN, bare=True),
    Noun(rf"{_IN}|during|{_UNDER}|{_THROUGH}", "rain|downpour|drizzle|rainstorm|storm|thunderstorm", _RAIN, bare=True),
    Noun(r"at|by|in|on|during", "night|midnight|night ?time", _NIGHT, bare=True),
    Noun(
        rf"at|in|on|by|during|{_UNDER}|{_FRONT}",
        "sunset|sunrise|dusk|dawn|twilight|evening|golden hour|setting sun|rising sun|sundown",
        _SUNSET,
        bare=True,
    ),
    Noun(rf"{_UNDER}|by|in", "stars|starlight|moonlight|moonshine", _NIGHT, bare=True),
    Noun(_UNDER, "moon|full moon|milky way|northern lights|aurora", _NIGHT),
    Noun(_UNDER, "sky|skies|heavens", {}, told=True),
    Noun(rf"{_UNDER}|in", "sun|sunshine|sunlight", _DAY),
    Noun(rf"{_IN}|on", "day|morning|afternoon|weather|landscape|scenery|scene|world", {}, told=True),
    Noun(_IN, "spring|summer|springtime|summertime", {"place": "meadow"}, bare=True),
    Noun(
        rf"{_UPON}|at|{_BY}|in|{_FRONT}|{_OVER}",
        "beach|beaches|sea ?shore|shore|coast|coastline|sands?|sea ?side|beachfront|ocean shore",
        {"place": "beach"},
    ),
    Noun(
        rf"{_UPON}|{_IN}|{_THROUGH}|{_OVER}",
        "sea|ocean|seas|water|waters|lake|river|pond|waves|harbou?r|high seas",
        {"place": "sea"},
    ),
    Noun(rf"at|{_BY}|{_FRONT}", "sea|ocean|water|waves|lake|river|pond", {"place": "beach"}),
    Noun(r"at", "sea", {"place": "sea"}, bare=True),
    Noun(_UNDER, "water|sea|ocean|waves|surface", {"place": "underwater"}, bare=True),
    Noun(
        rf"{_UPON}|{_IN}|at|{_THROUGH}|near",
        r"bottom of the (?:sea|ocean|lake)|sea ?floor|seabed|ocean floor|deep sea|depths|coral reef|reef",
        {"place": "underwater"},
    ),
    Noun(
        rf"{_UPON}|{_IN}|at|{_THROUGH}|{_FRONT}|{_OVER}",
        r"grass|meadows?|grassland|prairie|fields?|pasture|lawn|garden|park|farm|backyard|yard|savannah?|countryside|"
        r"flowers|wild ?flowers|fields? of \w+|flower (?:field|meadow|garden|bed)",
        {"place": "meadow"},
    ),
    Noun(rf"{_IN}|on|{_THROUGH}", "grass|flowers|wildflowers", {"place": "meadow"}, bare=True),
    Noun(rf"{_UPON}|{_IN}|at|up|{_OVER}", "hills?|hill ?top|hill ?side", {"place": "hill"}),
    Noun(
        rf"{_UPON}|{_IN}|at|{_BY}|{_FRONT}|{_THROUGH}|up|{_OVER}|at the foot of",
        "mountains?|mountain ?top|mountain ?side|mountain range|alps|peaks?|(?:mountain )?valley",
        {"place": "mountains"},
    ),
    Noun(rf"{_UPON}|{_IN}|at|{_THROUGH}|near|{_OVER}", "desert|dunes?|sand dunes?|sahara", {"place": "desert"}),
    Noun(
        rf"{_IN}|at|{_THROUGH}|{_FRONT}|near|{_OVER}|on the edge of",
        "forests?|woods?|woodland|jungle|rain ?forest|trees|pines|middle of (?:the|a) (?:forest|woods|jungle)",
        {"place": "forest"},
    ),
    Noun(rf"{_IN}|across|{_FRONT}|through|high in|up in", "sky|skies|air|heavens", {"place": "sky"}),
    Noun(rf"{_IN}|{_UPON}|above|over|{_THROUGH}", "clouds|sea of clouds", {"place": "sky"}, bare=True),
    Noun(_UPON, "cloud", {"place": "sky"}),
    Noun(rf"{_IN}|{_THROUGH}|floating in", "space|outer space|orbit|zero gravity", {"place": "space"}, bare=True),
    Noun(rf"{_IN}|{_THROUGH}", "universe|cosmos|galaxy|solar system|stars|planets", {"place": "space"}),
    Noun(rf"{_UPON}|over", "moon|moon's surface|surface of the moon|lunar surface", {"place": "moon"}),
    Noun(_IN, "room|living room|bedroom|nursery|playroom|house|apartment|parlou?r", {"place": "room"}),
    Noun("at", "home", {"place": "room"}, bare=True),
    Noun(
        rf"{_UPON}|{_IN}|at|along|down|across|through|by",
        "streets?|roads?|sidewalk|pavement|highway|avenue|alley|side of the road",
        {"place": "street"},
    ),
    Noun(rf"{_IN}|{_THROUGH}|{_FRONT}|{_OVER}", "city|town|city street|big city|downtown", {"place": "street"}),
)
ALONE: dict[str, Changes] = {
    "underwater": {"place": "underwater"},
    "indoors": {"place": "room"},
    "downtown": {"place": "street"},
}
"""Words that are a phrase by themselves."""
NAMES = {"bridge at night", "cityscape at dusk", "face in clouds"}
"""Things that are called so: labels that models are trained on."""
_NO_THINGS = """
beach beaches sea seas ocean oceans lake river water waters shore coast forest forests wood woods jungle desert
meadow meadows field fields garden park sky skies space street streets road roads city town cityscape skyline
landscape scenery scene view room bedroom snow snowfall rain storm night day morning evening afternoon sunset
sunrise dusk dawn winter autumn summer spring hill hills mountain mountains valley countryside walk stroll trip
time fun vacation holiday holidays party life love dream dreams weather season world hand hands lost alone once
only live made born deep high here it he she they we you i who what this that
海 大海 海滩 沙滩 海洋 海边 海面 湖 河 森林 树林 丛林 沙漠 草地 草原 花园 田野 公园
天空 太空 宇宙 街道 街 马路 公路 城市 房间 雪 雪地 雪景 风景 景色 雨 夜 夜晚 夜空
星空 日落 夕阳 日出 黄昏 早晨 冬天 秋天 夏天 春天 山 高山 雪山 群山 小山 山丘 生活
梦 爱情 故事 童话
"""
NO_THINGS = frozenset(_NO_THINGS.split())
"""Words that leave no thing to lay on a scenery."""
ENDS = r"(?:in|on|of|the|and|or|to|by|from|with|at|over|into|out|off|an?|as|for|like|than|but|not|no)"
HEAD = re.compile(r"\s(?:with|of|and|in|on|at|by|near|under|from|to|for|wearing|holding|that|who|next|above|below)\b|,")
OF_THE_SKY = re.compile(
    r"moon|crescent|sun|stars?|comet|rainbow|shooting star|planet|月亮|月|太阳|星星|星|满月|彩虹|流星|彗星"
)
FLIERS = re.compile(
    r"(?:air|aero)?planes?|jets?|helicopters?|balloons?|ufos?|kites?|bats?|clouds?|fireworks?|parachutes?|飞机|直升机|热气球|气球|"
    r"风筝|蝙蝠|云|烟花"
)
SWIMMERS = re.compile(
    r"\w*fish(?:es)?|sharks?|octopus|octopuses|squids?|crabs?|lobsters?|shrimps?|coral|seahorses?|sea ?horse|turtles?|"
    r"mermaids?|submarines?|whales?|dolphins?|divers?|shells?|eels?|rays?|.*(?:鱼|鲨|章鱼|乌贼|螃蟹|虾|珊瑚|海马|海龟|鲸|海豚|水母|潜水艇)"
)

CHINESE: tuple[tuple[str, Changes], ...] = (
    (
        "雪地(?:里面?|中|上)|雪(?:里|中)|(?:大|暴|飞|风)雪(?:里|中)|冰天雪地(?:里|中)?|下雪天|雪天|下雪时|冬[天日季]里?|冰面?上",
        _WINTER,
    ),
    ("雪夜里?", {**_WINTER, **_NIGHT}),
    ("沙滩[上边]|海滩[上边]|海岸[上边]?|海边|岸边|海滨|湖边|河边|水边|江边", {"place": "beach"}),
    ("(?:大海|海面|海)上空", {"place": "sea", "aloft": True}),
    ("海上|海面上?|(?:大海|海洋|池塘|波浪|浪花)上|(?:湖|水|河|江)面?上", {"place": "sea"}),
    ("(?:大海|海洋|海水?|湖水?|河水?|水|池塘)(?:里面?|中)", {"place": "sea", "within": True}),
    ("海底|水下|水底|深海(?:里|中)?|海面下|珊瑚礁(?:上|里|中)", {"place": "underwater"}),
    (
        "草地上|草坪上|草原上|牧场上|(?:草丛|花园|花丛|花海|田野|公园|院子)(?:里|中)|田野上|农场(?:里|上)|[春夏][天日季]里?",
        {"place": "meadow"},
    ),
    ("雪山(?:上|下|前|中|里)", {"place": "mountains", **_WINTER}),
    ("小?山丘上|小?山上|山坡上|山顶上?|丘陵上", {"place": "hill"}),
    ("(?:大|高|群)?山(?:里|之?中|之?间|脚下|前)", {"place": "mountains"}),
    ("沙漠(?:里|中|上)|沙丘上|戈壁滩?上|大漠(?:里|中)", {"place": "desert"}),
    ("(?:森林|树林|丛林|林子)(?:里面?|中|间)|林[中间]", {"place": "forest"}),
    (
        "天空(?:中|里|上)?|空中|天上|蓝天(?:上|中)|高空中?|(?:白云|云朵|云层|云)(?:中|里|上|间)|云端|云海[上中]",
        {"place": "sky"},
    ),
    ("夜空(?:中|里)|星空(?:中|里)", {"place": "sky", **_NIGHT}),
    (
        "(?:夜空|星空|繁星|星光|月光|月亮|月)之?下|夜色(?:中|下|里)|夜(?:里|晚|间)|晚上|深夜里?|午夜|半夜|黑夜(?:里|中)|[星月]夜里?",
        _NIGHT,
    ),
    (
        "日落(?:时分?|下|中)?|(?:夕阳|落日|晚霞)(?:下|中|里)|黄昏(?:时分?|下|中|里)?|傍晚(?:时分?)?|日出时分?|朝阳下",
        _SUNSET,
    ),
    ("(?:外?太空|宇宙|银河|星海|星际)(?:里|中|间)", {"place": "space"}),
    ("月球(?:上|表面)|月亮上", {"place": "moon"}),
    ("雨夜里?", {**_RAIN, **_NIGHT}),
    ("[大暴小细]?雨(?:中|里)|下雨天|雨天里?|下雨时", _RAIN),
    ("(?:房间|屋子|卧室|客厅|房子|家)(?:里面?|内|中)|屋(?:里|内)|室内", {"place": "room"}),
    ("城市上空", {"place": "street", "aloft": True}),
    ("大?街上|街头|街道上|街边|(?:马路|公路|路)(?:上|边)|城市(?:里|中)|城里|小巷里", {"place": "street"}),
    ("秋[天日季]里?|(?:落叶|红叶|秋叶|枫叶|枫林)(?:中|里|上)", _AUTUMN),
    ("(?:蓝天|阳光|太阳|天空)下|晴天|白天", _DAY),
)
"""What names a scenery in Chinese, with the word that makes a place of it."""
