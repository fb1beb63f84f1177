"""Finished pictures: listed once each, searched, tagged, put on boards, deleted with a way back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Select, delete, func, insert, literal, select, update

from gouache.errors import Conflict, NotFound
from gouache.pipeline.output.recipe import Recipe
from gouache.serve.queue.job import Job
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.tables import boards, events, meanings, pictures, tags
from gouache.serve.store.wanted import Wanted, kind_of

MOST_COMPARED = 100_000
"""Pictures that a search by meaning compares: the newest that fit the other conditions."""
_AT_ONCE = 8192
_IDS_AT_ONCE = 500
"""Ids in one statement: databases bound the values of one."""
UNDO_SECONDS = 30 * 24 * 3600
"""A deleted picture's file is kept so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One row of the table; `number` is its place in its job, from 0."""

    seq: int
    id: str
    job: str
    number: int
    owner: str
    created: float
    file: str
    bytes: int
    sha256: str
    width: int
    height: int
    prompt: str
    seed: int
    model: str
    sampler: str
    kind: str
    recipe: str
    starred: bool
    deleted: float | None
    board: str | None

    def parsed(self) -> Recipe:
        """Its recipe."""
        return Recipe.from_json(self.recipe, where=f"picture {self.id}")


_COLUMNS = [pictures.c[field.name] for field in fields(Picture)]


def picture_id(job: Job, number: int, *, partial: bool = False) -> str:
    """The id of a job's picture: the same at a second attempt, so that nothing is listed twice.

    One that is kept half painted has another (`p` at its end): a retry paints that one whole, and browsers keep what
    they saw under an id.
    """
    return f"{job.id}-{number:04d}{'p' if partial else ''}"


def drop_partial(connection: Connection, job_id: str) -> list[str]:
    """Take a job's half-painted pictures off the list, inside a transaction; gives their files."""
    partial = (pictures.c.job == job_id, pictures.c.id.like("%p"))
    files = [row.file for row in connection.execute(select(pictures.c.file).where(*partial))]
    note_change(connection, [row.id for row in connection.execute(select(pictures.c.id).where(*partial))], "delete")
    connection.execute(delete(pictures).where(*partial))
    return files


def row_of(
    job: Job, number: int, file: str, data: bytes, size: tuple[int, int], recipe: Recipe, *, partial: bool = False
) -> dict[str, object]:
    """The columns of a new picture."""
    return {
        "id": picture_id(job, number, partial=partial),
        "job": job.id,
        "number": number,
        "owner": job.owner,
        "created": time.time(),
        "file": file,
        "bytes": len(data),
        "sha256": sha256(data).hexdigest(),
        "width": size[0],
        "height": size[1],
        "prompt": recipe.request.prompt,
        "seed": recipe.request.seed or 0,
        "model": recipe.model.name,
        "sampler": recipe.request.sampler or "",
        "kind": kind_of(recipe.request),
        "recipe": recipe.to_json(),
    }


class Gallery:
    """The gallery.

    Args:
        database: where the rows lie; the files are in the `FileStore`.
        changed: called after pictures were starred, tagged, put on a board, deleted or restored.
    """

    def __init__(self, database: Database, changed: Callable[[], None] = lambda: None) -> None:
        self.database, self.changed = database, changed

    def get(self, picture: str, owner: str | None = None) -> Picture:
        """One picture that isn't deleted.

        Raises:
            NotFound: no such picture, or somebody else's.
        """
        row = self.database.row(select(*_COLUMNS).where(pictures.c.id == picture, pictures.c.deleted.is_(None)))
        if row is None or (owner is not None and row.owner != owner):
            raise _missing(picture)
        return Picture(**row._mapping)

    def of_job(self, job_id: str) -> list[Picture]:
        """A job's pictures in order, deleted ones left out."""
        query = select(*_COLUMNS).where(pictures.c.job == job_id, pictures.c.deleted.is_(None))
        return [Picture(**row._mapping) for row in self.database.rows(query.order_by(pictures.c.number))]

    def ids_of_jobs(self, job_ids: Sequence[str]) -> dict[str, list[str]]:
        """Picture ids by job."""
        found: dict[str, list[str]] = {job_id: [] for job_id in job_ids}
        query = select(pictures.c.job, pictures.c.id).where(pictures.c.job.in_(job_ids), pictures.c.deleted.is_(None))
        for row in self.database.rows(query.order_by(pictures.c.number)):
            found[row.job].append(row.id)
        return found

    def search(
        self,
        *,
        owner: str | None = None,
        words: str = "",
        tag: str | None = None,
        board: str | None = None,
        starred: bool | None = None,
        deleted: bool = False,
        limit: int = 50,
        before: int | None = None,
    ) -> list[Picture]:
        """Pictures, newest first; conditions as in `Wanted`."""
        wanted = Wanted(owner=owner, words=words, tag=tag, board=board, starred=starred, deleted=deleted, before=before)
        return self.find(wanted, limit)

    def find(self, wanted: Wanted, limit: int) -> list[Picture]:
        """Pictures, newest first."""
        query = select(*_COLUMNS).where(*wanted.clauses()).order_by(pictures.c.seq.desc()).limit(limit)
        return [Picture(**row._mapping) for row in self.database.rows(query)]

    def newest_by_model(self, owner: str) -> dict[str, str]:
        """The id of the newest picture that each model painted for a user, by the model's name in requests."""
        mine = (pictures.c.owner == owner, pictures.c.deleted.is_(None))
        newest = select(func.max(pictures.c.seq)).where(*mine).group_by(pictures.c.model)
        query = select(pictures.c.id, pictures.c.model, pictures.c.recipe).where(pictures.c.seq.in_(newest))
        found = {}
        for row in self.database.rows(query.order_by(pictures.c.seq)):
            asked = json.loads(row.recipe).get("request", {}).get("model")
            found[str(asked or row.model)] = str(row.id)
        return found

    def nearest(
        self, vector: NDArray[np.float32], space: str, wanted: Wanted, limit: int
    ) -> list[tuple[Picture, float]]:
        """The pictures whose stored vectors make the smallest angles with `vector`, nearest first.

        Every vector is compared, of at most `MOST_COMPARED` pictures.

        Args:
            vector: of length 1, in the space. [D]
            space: which vectors.
            wanted: other conditions.
            limit: how many at most.

        Returns:
            Pictures and cosines, -1..1.
        """
        query = (
            select(meanings.c.picture, meanings.c.vector)
            .join(pictures, pictures.c.id == meanings.c.picture)
            .where(meanings.c.space == space, *wanted.clauses())
            .order_by(pictures.c.seq.desc())
            .limit(MOST_COMPARED)
        )
        names, scores = self._compared(query, vector)
        best = np.argsort(-scores, kind="stable")[:limit]
        scored = {names[k]: float(scores[k]) for k in best}
        rows = self.database.rows(select(*_COLUMNS).where(pictures.c.id.in_(list(scored))))
        found = {row.id: Picture(**row._mapping) for row in rows}
        return [(found[name], score) for name, score in scored.items() if name in found]

    def _compared(self, query: Select[Any], vector: NDArray[np.float32]) -> tuple[list[str], NDArray[np.float32]]:
        names: list[str] = []
        scores = [np.zeros(0, np.float32)]
        with self.database.read() as connection:
            for part in connection.execute(query).partitions(_AT_ONCE):
                names += [row[0] for row in part]
                matrix = np.frombuffer(b"".join(row[1] for row in part), np.float16)
                scores.append(matrix.reshape(len(part), -1).astype(np.float32) @ vector)
        return names, np.concatenate(scores)

    def chosen(self, ids: Sequence[str], owner: str) -> list[Picture]:
        """Pictures that aren't deleted, in the order of their ids.

        Raises:
            NotFound: no such picture, or somebody else's.
        """
        found: dict[str, Picture] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            part = pictures.c.id.in_(ids[start : start + _IDS_AT_ONCE])
            mine = select(*_COLUMNS).where(part, pictures.c.owner == owner, pictures.c.deleted.is_(None))
            found |= {row.id: Picture(**row._mapping) for row in self.database.rows(mine)}
        missing = next((one for one in ids if one not in found), None)
        if missing is not None:
            raise _missing(missing[:100])
        return [found[one] for one in dict.fromkeys(ids)]

    def by_sha256(self, digest: str, owner: str) -> Picture | None:
        """The owner's picture whose file has these bytes, if there is one that isn't deleted."""
        same = (pictures.c.owner == owner, pictures.c.sha256 == digest, pictures.c.deleted.is_(None))
        row = self.database.row(select(*_COLUMNS).where(*same).order_by(pictures.c.seq.desc()).limit(1))
        return None if row is None else Picture(**row._mapping)

    def count(self) -> int:
        """How many there are, deleted ones left out."""
        row = self.database.row(select(func.count()).select_from(pictures).where(pictures.c.deleted.is_(None)))
        return 0 if row is None else int(row[0])

    def listed(self, ids: Sequence[str]) -> list[Picture]:
        """Those of some pictures that aren't deleted, the oldest first."""
        query = select(*_COLUMNS).where(pictures.c.id.in_(ids), pictures.c.deleted.is_(None)).order_by(pictures.c.seq)
        return [Picture(**row._mapping) for row in self.database.rows(query)]

    def tags_of(self, picture: str) -> list[str]:
        """A picture's tags, sorted."""
        rows = self.database.rows(select(tags.c.tag).where(tags.c.picture == picture).order_by(tags.c.tag))
        return [row.tag for row in rows]

    def tags_of_all(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Tags, sorted, by picture."""
        found: dict[str, list[str]] = {name: [] for name in names}
        for row in self.database.rows(select(tags).where(tags.c.picture.in_(names)).order_by(tags.c.tag)):
            found[row.picture].append(row.tag)
        return found

    def change(
        self,
        picture: str,
        owner: str | None,
        *,
        starred: bool | None = None,
        new_tags: Iterable[str] | None = None,
        board: str | None = None,
    ) -> Picture:
        """Star it, set its tags, put it on a board ("" takes it off).

        Raises:
            NotFound: no such picture or board.
        """
        found = self.get(picture, owner)
        with self.database.write() as connection:
            row = update(pictures).where(pictures.c.id == picture)
            if starred is not None:
                connection.execute(row.values(starred=starred))
            if new_tags is not None:
                connection.execute(delete(tags).where(tags.c.picture == picture))
                for tag in sorted(set(new_tags)):
                    connection.execute(insert(tags).values(picture=picture, tag=tag))
            if board is not None:
                wanted = select(boards.c.id).where(boards.c.id == board, boards.c.owner == found.owner)
                if board and connection.execute(wanted).first() is None:
                    raise _no_board(board)
                connection.execute(row.values(board=board or None))
            for is_given, what in (
                (starred is not None, "star" if starred else "unstar"),
                (new_tags is not None, "tags"),
                (board is not None, "board"),
            ):
                if is_given:
                    note_change(connection, [picture], what)
        self.changed()
        return self.get(picture, owner)

    def delete(self, picture: str, owner: str | None = None) -> None:
        """Take it out of every list; `restore` brings it back.

        Raises:
            NotFound: no such picture.
        """
        self.get(picture, owner)
        with self.database.write() as connection:
            connection.execute(update(pictures).where(pictures.c.id == picture).values(deleted=time.time()))
            note_change(connection, [picture], "delete")
        self.changed()

    def purge(self, before: float) -> list[str]:
        """Forget pictures that were deleted before a time; gives their files, which nothing names any longer."""
        gone = pictures.c.deleted < before
        with self.database.write() as connection:
            files = [row.file for row in connection.execute(select(pictures.c.file).where(gone))]
            connection.execute(delete(pictures).where(gone))
        return files

    def restore(self, picture: str, owner: str | None = None) -> Picture:
        """Undo a deletion.

        Raises:
            NotFound: no such picture, or its file is gone.
        """
        with self.database.write() as connection:
            mine = update(pictures).where(pictures.c.id == picture)
            mine = mine if owner is None else mine.where(pictures.c.owner == owner)
            if not connection.execute(mine.values(deleted=None)).rowcount:
                raise _missing(picture)
            note_change(connection, [picture], "restore")
        self.changed()
        return self.get(picture, owner)

    def boards(self, owner: str) -> dict[str, str]:
        """Name by id of the owner's boards."""
        query = select(boards).where(boards.c.owner == owner).order_by(boards.c.name)
        return {row.id: row.name for row in self.database.rows(query)}

    def add_board(self, owner: str, name: str) -> str:
        """Make a board, or find the one of this name; gives its id."""
        with self.database.write() as connection:
            insert_missing(connection, boards, {"id": uuid.uuid4().hex, "owner": owner, "name": name})
            query = select(boards.c.id).where(boards.c.owner == owner, boards.c.name == name)
            return str(connection.execute(query).scalar_one())

    def rename_board(self, board: str, owner: str, name: str) -> None:
        """Give a board another name.

        Raises:
            NotFound: no such board.
            Conflict: another board has this name.
        """
        mine = (boards.c.id == board, boards.c.owner == owner)
        taken = select(boards.c.id).where(boards.c.owner == owner, boards.c.name == name, boards.c.id != board)
        with self.database.write() as connection:
            if connection.execute(select(boards.c.id).where(*mine)).first() is None:
                raise _no_board(board)
            if connection.execute(taken).first() is not None:
                cure = "Choose another name, or put the pictures on that board."
                raise Conflict("name", given=repr(name), expected="a name that no other board has", cure=cure)
            connection.execute(update(boards).where(*mine).values(name=name))

    def delete_board(self, board: str, owner: str) -> None:
        """Forget a board; its pictures stay.

        Raises:
            NotFound: no such board.
        """
        with self.database.write() as connection:
            mine = (boards.c.id == board, boards.c.owner == owner)
            if connection.execute(select(boards.c.id).where(*mine)).first() is None:
                raise _no_board(board)
            on_it = connection.execute(select(pictures.c.id).where(pictures.c.board == board)).scalars().all()
            for start in range(0, len(on_it), _IDS_AT_ONCE):
                note_change(connection, on_it[start : start + _IDS_AT_ONCE], "board")
            connection.execute(update(pictures).where(pictures.c.board == board).values(board=None))
            connection.execute(delete(boards).where(*mine))
        self.changed()


def _no_board(board: str) -> NotFound:
    return NotFound("board", given=repr(board)[:100], expected="the id of one of your boards")


CHANGED = "gallery"
"""The kind of event that says what became of a finished picture."""


def note_change(connection: Connection, ids: Sequence[str], change: str) -> None:
    """Write down what became of pictures, so that those hear of it who show them elsewhere.

    Args:
        connection: inside the transaction in which it happens.
        ids: of the pictures.
        change: a word: star, unstar, tags, board, delete or restore.
    """
    if not ids:
        return
    now, said = literal(time.time()), literal(f"{change} ") + pictures.c.id
    rows = select(pictures.c.job, now, literal(CHANGED), said).where(pictures.c.id.in_(ids))
    connection.execute(insert(events).from_select(["job", "time", "kind", "detail"], rows))


def _missing(picture: str) -> NotFound:
    return NotFound("picture", given=repr(picture), expected="the id of one of your pictures")


def describe(picture: Picture) -> str:
    """One line of JSON for an export."""
    plain = {name: getattr(picture, name) for name in ("id", "job", "file", "sha256", "seed", "model")}
    return json.dumps(plain | {"recipe": json.loads(picture.recipe)}, ensure_ascii=False)
