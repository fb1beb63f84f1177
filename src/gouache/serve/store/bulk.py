"""Changes to many pictures, all of them or none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, select, update

from gouache.errors import NotFound
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.gallery import note_change
from gouache.serve.store.tables import boards, pictures, tags

_AT_ONCE = 500
"""Ids in one statement: databases bound the values of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to do with each of the pictures; what is left out stays.

    Attributes:
        starred: whether they are starred.
        add_tags, remove_tags: tags that they get and lose.
        board: id of a board to put them on; "" takes them off theirs.
        deleted: True takes them out of every list, False brings them back.
    """

    starred: bool | None = None
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()
    board: str | None = None
    deleted: bool | None = None


def change_many(database: Database, ids: Sequence[str], owner: str, changes: Changes) -> list[str]:
    """Change pictures in one transaction.

    Args:
        database: of the gallery.
        ids: of the pictures; deleted ones may be among them.
        owner: whose they must be.
        changes: to make.

    Returns:
        The ids, each once.

    Raises:
        NotFound: one of them, or the board, is not this user's; then nothing is changed.
    """
    wanted = list(dict.fromkeys(ids))
    with database.write() as connection:
        _check(connection, wanted, owner, changes.board)
        for part in _parts(wanted):
            _change(connection, part, changes)
    return wanted


def _check(connection: Connection, ids: Sequence[str], owner: str, board: str | None) -> None:
    found: set[str] = set()
    for part in _parts(ids):
        mine = select(pictures.c.id).where(pictures.c.id.in_(part), pictures.c.owner == owner)
        found.update(connection.execute(mine).scalars())
    missing = next((one for one in ids if one not in found), None)
    if missing is not None:
        raise NotFound("picture", given=repr(missing)[:100], expected="ids of your pictures")
    own = select(boards.c.id).where(boards.c.id == board, boards.c.owner == owner)
    if board and connection.execute(own).first() is None:
        raise NotFound("board", given=repr(board), expected="the id of one of your boards")


def _change(connection: Connection, ids: Sequence[str], changes: Changes) -> None:
    values: dict[str, Any] = {} if changes.starred is None else {"starred": changes.starred}
    if changes.board is not None:
        values["board"] = changes.board or None
    if changes.deleted is False:
        values["deleted"] = None
    for is_given, what in (
        (changes.starred is not None, "star" if changes.starred else "unstar"),
        (bool(changes.add_tags or changes.remove_tags), "tags"),
        (changes.board is not None, "board"),
        (changes.deleted is not None, "delete" if changes.deleted else "restore"),
    ):
        if is_given:
            note_change(connection, ids, what)
    chosen = pictures.c.id.in_(ids)
    if values:
        connection.execute(update(pictures).where(chosen).values(values))
    if changes.deleted:
        # The time of the first deletion stays: files are kept so long from then on.
        still = and_(chosen, pictures.c.deleted.is_(None))
        connection.execute(update(pictures).where(still).values(deleted=time.time()))
    if changes.remove_tags:
        gone = and_(tags.c.picture.in_(ids), tags.c.tag.in_(changes.remove_tags))
        connection.execute(delete(tags).where(gone))
    for tag in dict.fromkeys(changes.add_tags):
        for picture in ids:
            insert_missing(connection, tags, {"picture": picture, "tag": tag})


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
