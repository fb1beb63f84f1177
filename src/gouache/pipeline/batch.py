"""Many requests from one: prompts from a file, prompt matrices, choices, and tables of settings."""

from __future__ import annotations

import itertools
import json
import random
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gouache.config import Config
from gouache.errors import InvalidInput, PictureError
from gouache.pipeline.request import MAX_COUNT, Request

_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_WILDCARD = re.compile(r"__([\w\-/]+)__")
DEEPEST = 32
"""Rounds of replacement, so that wildcards that name themselves end."""


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Requests' values from a file; see `prompts_in`.

    Raises:
        PictureError: no such file.
        InvalidInput: a line that is no JSON object, or nothing in it.
    """
    return prompts_in(read_text(path), where=str(path))


def read_text(path: Path) -> str:
    """A file of prompts.

    Raises:
        PictureError: no such file, or not one of text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        given = getattr(error, "strerror", None) or str(error)
        raise PictureError(str(path), given=given.lower(), expected="a text file of prompts in UTF-8") from error


def prompts_in(text: str, *, where: str) -> list[dict[str, Any]]:
    """Requests' values from text: one prompt a line, or JSONL with one object a line. Empty lines and # are skipped.

    Raises:
        InvalidInput: a line that is no JSON object, or nothing in it.
    """
    found = [line.read() for line in prompt_lines(text, where=where)]
    if not found:
        raise InvalidInput(where, given="no prompts", expected="one prompt a line, or one JSON object a line")
    return found


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of a file of prompts.

    Attributes:
        where: file and number, `prompts.jsonl:3`.
        text: without the space around it.
    """

    where: str
    text: str

    def read(self) -> dict[str, Any]:
        """The request's values in it.

        Raises:
            InvalidInput: it begins as a JSON object and is none.
        """
        if not (self.text.startswith("{") and '"' in self.text):
            return {"prompt": self.text}
        try:
            values = json.loads(self.text)
        except json.JSONDecodeError as error:
            raise InvalidInput(self.where, given=str(error), expected="a JSON object") from error
        return dict(values)


def prompt_lines(text: str, *, where: str) -> list[PromptLine]:
    """The lines of a file of prompts, unread; empty lines and those that begin with # are left out."""
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [PromptLine(f"{where}:{number}", words) for number, words in numbered if words and words[0] != "#"]


def with_steady_seeds(requests: Sequence[Request]) -> list[Request]:
    """Requests without a seed get one that follows from their prompt, so that a second run asks for the same pictures.

    Of those with equal prompts each has another seed, by how many of them stand before it.
    """
    seen: Counter[str] = Counter()
    found = []
    for request in requests:
        text = request.prompt
        digest = sha256(f"{seen[text]}/{text}".encode()).digest()
        seen[text] += 1
        found.append(
            request if request.seed is not None else request.replace({"seed": int.from_bytes(digest[:4], "big")})
        )
    return found


def matrix(prompt: str) -> list[str]:
    """A1111's prompt matrix: the first part with every selection of the parts behind the bars.

    >>> matrix("a city|night|rain")
    ['a city', 'a city, night', 'a city, rain', 'a city, night, rain']
    """
    first, *parts = (part.strip() for part in prompt.split("|"))
    if 2 ** len(parts) > MAX_COUNT:
        raise InvalidInput(
            "prompt matrix", given=f"{len(parts)} parts", expected=f"at most {MAX_COUNT.bit_length() - 1}"
        )
    return [
        ", ".join([first, *(part for k, part in enumerate(parts) if bits >> k & 1)]) for bits in range(2 ** len(parts))
    ]


def choose(prompt: str, seed: int, wildcards: Path | None = None) -> str:
    """Resolve ``{a|b}`` and ``__name__`` by chance, the same for the same seed.

    Args:
        prompt: with choices; they may nest.
        seed: decides.
        wildcards: folder of `name.txt` files, one choice a line.

    Raises:
        InvalidInput: a wildcard without a file.

    >>> choose("a {red|red} cat", 1)
    'a red cat'
    """
    draw = random.Random(f"choices/{seed}")
    for _ in range(DEEPEST):
        before = prompt
        prompt = _CHOICE.sub(lambda match: draw.choice(match[1].split("|")), prompt)
        prompt = _WILDCARD.sub(lambda match: draw.choice(_lines(match[1], wildcards)), prompt)
        if prompt == before:
            break
    return prompt


def with_choices(request: Request, wildcards: Path | None) -> list[Request]:
    """One request for each picture, since each seed chooses for itself.

    Raises:
        InvalidInput: a wildcard without a file.
    """
    first = secrets.randbelow(2**32) if request.seed is None else request.seed
    seeds = range(first, first + request.count)
    return [
        request.replace({"prompt": choose(request.prompt, seed, wildcards), "seed": seed, "count": 1}) for seed in seeds
    ]


def has_choices(prompt: str) -> bool:
    """Whether `choose` would find anything to decide in a prompt.

    >>> has_choices("a {red|blue} cat"), has_choices("a __colour__ cat"), has_choices("a {red} cat")
    (True, True, False)
    """
    return bool(_CHOICE.search(prompt) or _WILDCARD.search(prompt))


def wildcard_names(folder: Path | None) -> list[str]:
    """What a folder has files for: names as `__name__` has them, with slashes for folders inside it."""
    if folder is None or not folder.is_dir():
        return []
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.txt") if path.is_file())
    return sorted(name for name in names if _WILDCARD.fullmatch(f"__{name}__"))


def _lines(name: str, folder: Path | None) -> list[str]:
    path = None if folder is None else (folder / f"{name}.txt").resolve()
    inside = path is not None and folder is not None and path.is_relative_to(folder.resolve())
    if path is None or not inside or not path.is_file():
        raise InvalidInput(
            f"wildcard __{name}__",
            given="no file for it",
            expected=f"{name}.txt in the folder of wildcards",
            cure="Name the folder with --wildcards.",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(str(path), given=str(error), expected="a text file, one choice a line, in UTF-8") from error
    lines = [line.strip() for line in text.splitlines()]
    choices = [line for line in lines if line and not line.startswith("#")]
    if not choices:
        raise InvalidInput(str(path), given="no lines", expected="one choice a line")
    return choices


_VALUE = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?=,|$)|([^,]+)')


def read_axis(text: str) -> tuple[str, list[str]]:
    """``field=value,value`` as the field and its values; a value with a comma stands in double quotes, as in CSV.

    >>> read_axis('sampler=euler,"DPM++ 2M"')
    ('sampler', ['euler', 'DPM++ 2M'])
    >>> read_axis('prompt=cat, "dog, red"')
    ('prompt', ['cat', 'dog, red'])
    """
    name, equals, values = text.partition("=")
    parts = [quoted.replace('""', '"') or plain for quoted, plain in _VALUE.findall(values)]
    if not equals or not parts:
        raise InvalidInput("axis", given=repr(text), expected="FIELD=VALUE,VALUE", cure="For example steps=5,10,20.")
    return name.strip().replace("-", "_"), [part.strip() for part in parts]


def with_value(request: Request, name: str, text: str) -> Request:
    """The request with one field set from text; `mask.blur` sets a field of a group, `prompt` replaces words `old>new`.

    Raises:
        ConfigError: no such field or value.
    """
    if name == "prompt" and ">" in text:
        old, new = text.split(">", 1)
        if old not in request.prompt:
            raise InvalidInput("axis", given=repr(text), expected=f"words of the prompt {request.prompt!r} before >")
        return request.replace({"prompt": request.prompt.replace(old, new)})
    value: Any = text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    group, dot, inner = name.partition(".")
    if not dot:
        return request.replace({name: value if not isinstance(value, dict) else text})
    held = getattr(request, group, None)
    if held is not None and not isinstance(held, Config):
        raise InvalidInput("axis", given=name, expected=f"{group}: it is no group of settings", cure=f"Write {group}=.")
    fields = {} if held is None else held.model_dump(exclude_unset=True)
    return request.replace({group: {**fields, inner: value}})


def table(request: Request, axes: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[tuple[str, ...], Request]]:
    """Every combination of the axes' values, the last axis fastest, with the request of each.

    Raises:
        InvalidInput: more than `MAX_COUNT` combinations.
    """
    cells: list[tuple[tuple[str, ...], Request]] = []
    for values in itertools.product(*(axis[1] for axis in axes)):
        if len(cells) >= MAX_COUNT:
            raise InvalidInput("grid", given=f"more than {MAX_COUNT} pictures", expected=f"at most {MAX_COUNT}")
        one = request
        for (name, _), value in zip(axes, values, strict=True):
            one = with_value(one, name, value)
        cells.append((values, one))
    return cells


def requests_of(base: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> list[Request]:
    """One request for each set of values, on top of shared ones."""
    return [Request.from_dict({**base, **values}, where="request") for values in prompts]
