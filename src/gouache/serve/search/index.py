"""What a worker does for the search by meaning: vectors of finished pictures, and of what users look for.

Pictures get theirs when the queue leaves time for it; questions are answered at once, by a thread of their own, also
while a picture is being painted.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Row, delete, exists, func, select, update

from gouache.errors import GouacheError, ModelNotFound, NotFound
from gouache.serve.search.embedding import Embedder, Vectors
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.files import Vault
from gouache.serve.store.tables import meanings, pictures, questions

BATCH = 8
KEPT_SECONDS = 3600.0
"""An answered question is remembered so long."""
RING = "question:"
log = logging.getLogger("gouache.worker")


class Index:
    """One worker's share.

    Args:
        database: holds vectors and questions.
        vault: holds the pictures.
        open_embedder: loads the model at the first need; None if there is none.
        tell: called with `question:<id>` when one is answered.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        open_embedder: Callable[[], Embedder | None],
        tell: Callable[[str], None],
    ) -> None:
        self.database, self.vault, self.open_embedder, self.tell = database, vault, open_embedder, tell
        self._embedder: Embedder | None = None
        self._failure: GouacheError | None = None
        self._lock = threading.Lock()
        self._done_to = 0
        with database.write(durable=False) as connection:
            # Answers of an earlier worker may be vectors of another model.
            connection.execute(delete(questions))

    def forget(self) -> None:
        """Let go of the model."""
        with self._lock:
            self._embedder = self._failure = None

    def catch_up(self) -> bool:
        """Give vectors to the next few pictures that have none; False if there was nothing to do."""
        newest = self.database.row(select(func.max(pictures.c.seq).label("seq")))
        if newest is None or (newest.seq or 0) <= self._done_to:
            return False
        with self._lock:
            embedder = self._opened()
            if embedder is None:
                self._done_to = newest.seq
                return False
            rows = self._without(embedder.space)
            self._done_to = rows[-1].seq if rows else newest.seq
            self._store(embedder, rows)
        return bool(rows)

    def _without(self, space: str) -> Sequence[Row[Any]]:
        known = exists().where(meanings.c.picture == pictures.c.id, meanings.c.space == space)
        query = select(pictures.c.seq, pictures.c.id, pictures.c.file, pictures.c.prompt)
        return self.database.rows(
            query.where(pictures.c.seq > self._done_to, ~known).order_by(pictures.c.seq).limit(BATCH)
        )

    def _store(self, embedder: Embedder, rows: Sequence[Row[Any]]) -> None:
        found: list[tuple[str, Vectors]] = []
        for row in rows:
            # One at a time: a damaged file must not keep its neighbours out.
            try:
                vectors = embedder.pictures([self.vault.read("pictures", row.file)], [row.prompt])
            except (GouacheError, NotFound) as error:
                log.warning("picture without a vector", extra={"picture": row.id, "error": str(error)})
                continue
            found.append((row.id, vectors[0]))
        if found:
            with self.database.write(durable=False) as connection:
                for picture, vector in found:
                    values = {"picture": picture, "space": embedder.space, "vector": packed(vector)}
                    insert_missing(connection, meanings, values)

    def answer(self) -> int:
        """Answer the questions that wait; gives how many."""
        open_ones = select(questions.c.id, questions.c.text).where(questions.c.vector.is_(None))
        rows = self.database.rows(open_ones.where(questions.c.error.is_(None)).limit(BATCH))
        if not rows:
            return 0
        with self._lock:
            values = self._answers([row.text for row in rows])
        with self.database.write(durable=False) as connection:
            for row, value in zip(rows, values, strict=True):
                connection.execute(update(questions).where(questions.c.id == row.id).values(value))
            connection.execute(delete(questions).where(questions.c.created < time.time() - KEPT_SECONDS))
        for row in rows:
            self.tell(RING + row.id)
        return len(rows)

    def _answers(self, texts: Sequence[str]) -> list[dict[str, object]]:
        embedder = self._opened()
        if embedder is None:
            error = self._failure or _nothing_to_compare()
            parts = [error.where, str(error.given), error.expected, error.cure]
            return [{"error": json.dumps(parts)} for _ in texts]
        return [{"space": embedder.space, "vector": packed(vector)} for vector in embedder.words(texts)]

    def _opened(self) -> Embedder | None:
        if self._embedder is None and self._failure is None:
            try:
                self._embedder = self.open_embedder()
            except GouacheError as error:
                self._failure = error
                log.warning("no search by meaning", extra={"error": str(error)})
        return self._embedder


def packed(vector: Vectors) -> bytes:
    """A vector as it is stored: float16, which moves a cosine by less than 0.001."""
    return vector.astype(np.float16).tobytes()


def _nothing_to_compare() -> ModelNotFound:
    return ModelNotFound(
        "meaning",
        given="neither a picture tower nor a trained model",
        expected="one of them",
        cure="Start the server with --search-tower FILE, or search by words.",
    )
