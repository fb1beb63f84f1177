"""The grammar of the `parameters` text that A1111 writes into pictures: prompt, negative prompt and one line of pairs.

It is lossy in a few places (see `is_lossless`); the complete request travels beside it as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gouache.errors import RecipeError

NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_PAIRS = 3
_STEPS = re.compile(r"Steps: \d+\s*(,|$)")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Infotext:
    """What stands in the text.

    Attributes:
        prompt: the prompt.
        negative_prompt: the negative prompt.
        values: the pairs of the last line, in order; values as text.
    """

    prompt: str = ""
    negative_prompt: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def format_infotext(info: Infotext) -> str:
    """Write the text.

    >>> print(format_infotext(Infotext("a cat", "a dog", {"Steps": "20", "Lora hashes": "x: 12"})))
    a cat
    Negative prompt: a dog
    Steps: 20, Lora hashes: "x: 12"
    """
    lines = [info.prompt]
    if info.negative_prompt:
        lines.append(f"{NEGATIVE} {info.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in info.values.items()))
    return "\n".join(lines).strip()


def _quoted(value: str) -> str:
    risky = any(mark in value for mark in ",\n:") or value.startswith('"') or value != value.strip()
    return json.dumps(value, ensure_ascii=False) if risky else value


def parse_infotext(text: str) -> Infotext:
    """Read the text; the inverse of `format_infotext` wherever `is_lossless`.

    A last line with fewer than three pairs belongs to the prompt, unless a line above it is one of pairs that begins
    with `Steps: `: extensions write lines of their own below that one.
    """
    *lines, last = text.strip().replace("\r\n", "\n").split("\n")
    values = _pairs(last)
    if len(values) < FEWEST_PAIRS:
        lines, values = _pairs_above([*lines, last])
    start = next((k for k, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE)
    return Infotext("\n".join(lines[:start]), negative.removeprefix(" "), values)


def _pairs_above(lines: list[str]) -> tuple[list[str], dict[str, str]]:
    """The lines of prompts and the pairs, where the line of pairs isn't the last; without one all are prompts."""
    for k in range(len(lines) - 1, -1, -1):
        if lines[k].startswith(NEGATIVE):
            break
        if _STEPS.match(lines[k]):
            values = _pairs(lines[k])
            if len(values) >= FEWEST_PAIRS:
                below = [_pairs(line) for line in lines[k + 1 :]]
                return lines[:k], values | {key: one for pairs in below for key, one in pairs.items()}
    return lines, {}


def _pairs(line: str) -> dict[str, str]:
    """Read left to right, so that a long line of something else takes no longer than its length."""
    values: dict[str, str] = {}
    position = 0
    while position < len(line):
        match = _PAIR.match(line, position)
        end = _json_end(line, match) if match else None
        if match and end is not None:
            values[match[1]] = line[match.start(2) : end]
            position = line.find(",", end) + 1 or len(line)
        elif match:
            values[match[1]] = _unquoted(match[2])
            position = match.end()
        else:
            comma = line.find(",", position)
            position = len(line) if comma < 0 else comma + 1
    return values


def _json_end(line: str, match: re.Match[str]) -> int | None:
    """Where a list or an object of JSON ends that stands there without quotes; None for other values."""
    start = match.start(2)
    if line[start : start + 1] not in ("[", "{"):
        return None
    try:
        end = _DECODER.raw_decode(line, start)[1]
    except (ValueError, RecursionError):
        return None
    return end if not line[end:].strip() or line[end:].lstrip().startswith(",") else None


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except json.JSONDecodeError:
            return value
    return value.strip()


def is_lossless(info: Infotext) -> bool:
    """Whether the grammar can carry this: prompts without outer blanks or a line that looks like the next part."""
    texts = (info.prompt, info.negative_prompt)
    return (
        len(info.values) >= FEWEST_PAIRS
        and all(text == text.strip() and "\r" not in text for text in texts)
        and not any(line.startswith(NEGATIVE) for line in info.prompt.split("\n"))
        and all(_PAIR.fullmatch(f"{key}: x") and key.strip() == key for key in info.values)
    )


def require_values(info: Infotext, where: str) -> Infotext:
    """The same, or an error if the text held no pairs at all.

    Raises:
        RecipeError: there are none.
    """
    if not info.values:
        raise RecipeError(
            where,
            given="text without Steps, Sampler and Seed",
            expected="the parameters of a generation",
            cure="The picture may have been edited by a program that drops them.",
        )
    return info
