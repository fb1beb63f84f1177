"""Folders with models that were added while the studio runs: kept in its store, so that every worker knows them."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select

from gouache.errors import InvalidInput
from gouache.serve.store.database import Database, upsert
from gouache.serve.store.tables import meta

MOST = 20
_KEY = "model folders"


def added_folders(database: Database) -> list[Path]:
    """Those that were added, the first first."""
    row = database.row(select(meta.c.value).where(meta.c.key == _KEY))
    return [] if row is None else [Path(place) for place in json.loads(row.value)]


def add_folder(database: Database, place: str) -> Path:
    """Add one; a second time changes nothing.

    Raises:
        InvalidInput: no folder that can be read, a whole disk or home, or too many.
    """
    try:
        path = Path(place.strip()).expanduser()
        known = path.is_absolute() and path.is_dir() and bool([*path.iterdir()] or True)
    except (OSError, RuntimeError, ValueError):
        known = False
    if not known:
        cure = "Give its whole path, as this machine writes it."
        raise InvalidInput("path", given="no folder that can be read", expected="a folder of this machine", cure=cure)
    path = path.resolve()
    if path in (Path(path.anchor), Path.home()):
        cure = "Name the folder in which the models lie."
        raise InvalidInput("path", given="a whole disk or home", expected="a folder of models", cure=cure)
    folders = added_folders(database)
    if path not in folders:
        if len(folders) >= MOST:
            raise InvalidInput("path", given=f"folder {MOST + 1}", expected=f"at most {MOST}", cure="Remove another.")
        _write(database, [*folders, path])
    return path


def remove_folder(database: Database, number: int) -> None:
    """Take one off the list; its files stay.

    Args:
        number: its place in the list, from 0.

    Raises:
        InvalidInput: there is none.
    """
    folders = added_folders(database)
    if not 0 <= number < len(folders):
        raise InvalidInput("number", given=number, expected="the place of a folder in the list")
    _write(database, folders[:number] + folders[number + 1 :])


def _write(database: Database, folders: list[Path]) -> None:
    with database.write() as connection:
        upsert(connection, meta, {"key": _KEY}, {"value": json.dumps([str(path) for path in folders])})
