"""What a user keeps under a name: texts laid around a prompt (a style), and parts of a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select

from gouache.errors import InvalidInput, NotFound, unknown_name
from gouache.pipeline.request import Request
from gouache.serve.store.database import Database, upsert
from gouache.serve.store.tables import presets

MOST = 1000
"""Presets of one user."""
LONGEST = 100_000
"""Characters of a preset's request as JSON."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset.

    Attributes:
        name: the user's own.
        prompt, negative_prompt: texts; `{prompt}` in them stands for what is written on the page.
        request: fields of a request; None for a mere style.
    """

    name: str
    prompt: str = ""
    negative_prompt: str = ""
    request: Mapping[str, Any] | None = None


class Presets:
    """Every user's presets.

    Args:
        database: the store.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def all(self, owner: str) -> list[Preset]:
        """A user's presets, by name."""
        rows = self.database.rows(select(presets).where(presets.c.owner == owner).order_by(presets.c.name))
        return [Preset(row.name, row.prompt, row.negative_prompt, json.loads(row.request) or None) for row in rows]

    def styles(self, owner: str) -> dict[str, tuple[str, str]]:
        """Prompt and negative prompt by name, of those that are styles."""
        found = self.all(owner)
        return {
            one.name: (one.prompt, one.negative_prompt)
            for one in found
            if one.request is None or one.prompt or one.negative_prompt
        }

    def put(self, owner: str, preset: Preset) -> Preset:
        """Store a preset; it replaces one of the same name.

        Raises:
            ConfigError: its request has an unknown field, or a value out of range.
            InvalidInput: it is too long, or the user has too many.
        """
        text = "{}" if preset.request is None else json.dumps(_checked(preset.request), ensure_ascii=False)
        if len(text) > LONGEST:
            raise InvalidInput("request", given=f"{len(text)} characters", expected=f"at most {LONGEST}")
        with self.database.write() as connection:
            others = select(func.count()).where(presets.c.owner == owner, presets.c.name != preset.name)
            if connection.execute(others).scalar_one() >= MOST:
                cure = "Delete some first."
                raise InvalidInput("presets", given=f"{MOST} others", expected=f"at most {MOST}", cure=cure)
            values = {"prompt": preset.prompt, "negative_prompt": preset.negative_prompt, "request": text}
            upsert(connection, presets, {"owner": owner, "name": preset.name}, values)
        return Preset(preset.name, preset.prompt, preset.negative_prompt, json.loads(text) or None)

    def delete(self, owner: str, name: str) -> None:
        """Forget a preset.

        Raises:
            NotFound: the user has none of this name.
        """
        with self.database.write() as connection:
            gone = delete(presets).where(presets.c.owner == owner, presets.c.name == name)
            if not connection.execute(gone).rowcount:
                raise NotFound("preset", given=repr(name), expected="the name of one of your presets")

    def laid_around(self, owner: str, request: Request, names: Iterable[str]) -> Request:
        """The request with styles around its prompt and negative prompt, one after the other.

        Raises:
            UnknownName: no style of this name.
        """
        known = self.styles(owner)
        prompt, negative = request.prompt, request.negative_prompt or ""
        for name in names:
            if name not in known:
                raise unknown_name("styles", name, known)
            prompt, negative = merged(known[name][0], prompt), merged(known[name][1], negative)
        changed = {"prompt": prompt} | ({"negative_prompt": negative} if negative else {})
        return request.replace(changed)


def merged(style: str, text: str) -> str:
    """A style's text around another: `{prompt}` stands for that, else the style follows behind a comma.

    >>> merged("{prompt}, in oil", "a fox"), merged("in oil", "a fox"), merged("", "a fox")
    ('a fox, in oil', 'a fox, in oil', 'a fox')
    """
    if "{prompt}" in style:
        return style.replace("{prompt}", text)
    return ", ".join(part.strip() for part in (text, style) if part.strip())


def _checked(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as a request has them; what it needs a starting picture for may lack it here."""
    stand_in = {} if request.get("init_image") else {"init_image": "sha256:" + "0" * 64}
    whole = Request.from_dict({**stand_in, **request}, where="request")
    values = whole.model_dump(mode="json", include=set(request), exclude_unset=True)
    return {name: values[name] for name in request if name in values}
