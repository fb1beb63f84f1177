"""Which pictures of the gallery are meant: conditions, and how many there are for each choice of a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Row, func, select

from gouache.errors import InvalidInput
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import Request
from gouache.serve.store.database import Database
from gouache.serve.store.tables import pictures, tags

Kind = Literal["text", "image", "inpaint", "outpaint", "inversion", "interpolation", "control", "edited"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_WORDS = 20
MOST_CHOICES = 500
"""Choices of one filter that are counted: the most frequent ones."""


def kind_of(request: Request) -> Kind:
    """What a picture was painted from: words alone, a picture, a part of one, ...

    >>> kind_of(Request(prompt="a cat"))
    'text'
    """
    if request.interpolation is not None:
        return "interpolation"
    if request.outpaint is not None:
        return "outpaint"
    if request.mask is not None:
        return "inpaint"
    if request.inversion is not None:
        return "inversion"
    if request.init_image is not None:
        return "image"
    return "control" if request.control or request.image_prompts else "text"


def filtered_by(recipe: str) -> dict[str, str]:
    """The columns of a picture that filters look at, of its recipe's JSON; empty texts where it can't be read."""
    try:
        request = Recipe.from_json(recipe).request
    except InvalidInput:
        return {"sampler": "", "kind": ""}
    return {"sampler": request.sampler or "", "kind": kind_of(request)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which pictures to list; every condition that is given must hold.

    Attributes:
        owner: whose; None for anybody's.
        words: each must stand in the prompt, in any case.
        tag, board, starred: as the user marked them; an empty board means none.
        model, sampler, seed, kind: what the picture was painted by, and from.
        since, until: painted at or after, and before, these seconds since 1970.
        deleted: those that were deleted instead.
        before: only pictures with a smaller `seq`, to go on from a page.
        after: only pictures with a larger `seq`: what is new.
    """

    owner: str | None = None
    words: str = ""
    tag: str | None = None
    board: str | None = None
    starred: bool | None = None
    model: str | None = None
    sampler: str | None = None
    seed: int | None = None
    kind: Kind | None = None
    since: float | None = None
    until: float | None = None
    deleted: bool = False
    before: int | None = None
    after: int | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        """The conditions in SQL."""
        found: list[ColumnElement[bool]] = [
            pictures.c.deleted.is_not(None) if self.deleted else pictures.c.deleted.is_(None)
        ]
        found += [pictures.c.prompt.icontains(word, autoescape=True) for word in self.words.split()[:MOST_WORDS]]
        if self.tag is not None:
            found.append(pictures.c.id.in_(select(tags.c.picture).where(tags.c.tag == self.tag)))
        if self.board is not None:
            found.append(pictures.c.board == self.board if self.board else pictures.c.board.is_(None))
        equal: dict[str, object] = {
            "owner": self.owner,
            "starred": self.starred,
            "model": self.model,
            "sampler": self.sampler,
        }
        equal |= {"seed": self.seed, "kind": self.kind}
        found += [pictures.c[name] == value for name, value in equal.items() if value is not None]
        if self.since is not None:
            found.append(pictures.c.created >= self.since)
        if self.until is not None:
            found.append(pictures.c.created < self.until)
        if self.before is not None:
            found.append(pictures.c.seq < self.before)
        if self.after is not None:
            found.append(pictures.c.seq > self.after)
        return found


@dataclass(frozen=True, slots=True)
class Counts:
    """How many pictures there are, and for each filter how many by its choices, the most frequent first.

    Each filter is counted as if it were open while the others hold: those are the numbers of what one would get by
    another choice. Boards are ids, and "" stands for pictures on none.
    """

    total: int
    starred: int
    models: dict[str, int]
    samplers: dict[str, int]
    kinds: dict[str, int]
    boards: dict[str, int]
    tags: dict[str, int]


def counts(database: Database, wanted: Wanted) -> Counts:
    """Count what fits.

    Args:
        database: of the gallery.
        wanted: the conditions; `before` and `after` are left aside.
    """
    wanted = replace(wanted, before=None, after=None)
    total = database.row(select(func.count()).select_from(pictures).where(*wanted.clauses()))
    starred = replace(wanted, starred=True)
    of_starred = database.row(select(func.count()).select_from(pictures).where(*starred.clauses()))
    return Counts(
        total=0 if total is None else int(total[0]),
        starred=0 if of_starred is None else int(of_starred[0]),
        models=_by(database, pictures.c.model, replace(wanted, model=None)),
        samplers=_by(database, pictures.c.sampler, replace(wanted, sampler=None)),
        kinds=_by(database, pictures.c.kind, replace(wanted, kind=None)),
        boards=board_counts(database, replace(wanted, board=None)),
        tags=tag_counts(database, replace(wanted, tag=None)),
    )


def _by(database: Database, column: ColumnElement[Any], wanted: Wanted) -> dict[str, int]:
    number = func.count().label("number")
    query = select(column.label("choice"), number).where(*wanted.clauses()).group_by(column)
    return _choices(database.rows(query.order_by(number.desc(), column).limit(MOST_CHOICES)))


def board_counts(database: Database, wanted: Wanted) -> dict[str, int]:
    """How many of the pictures are on each board, by its id; "" stands for none."""
    return _by(database, pictures.c.board, wanted)


def tag_counts(database: Database, wanted: Wanted) -> dict[str, int]:
    """How many of the pictures have each tag, the most frequent first."""
    number = func.count().label("number")
    query = select(tags.c.tag.label("choice"), number).join(pictures, pictures.c.id == tags.c.picture)
    query = query.where(*wanted.clauses()).group_by(tags.c.tag).order_by(number.desc(), tags.c.tag)
    return _choices(database.rows(query.limit(MOST_CHOICES)))


def _choices(rows: Iterable[Row[Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for row in rows:
        found[row.choice or ""] += row.number
    return dict(found)
