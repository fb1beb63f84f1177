"""What a worker does for the search by meaning: vectors of finished pictures, and of what users look for.

Pictures get theirs when the queue leaves time for it; texts get theirs at once, by a thread of their own, also
while a picture is being painted.
"""

from __future__ import annotations

import logging
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Row, exists, func, select

from gouache.errors import GouacheError, ModelNotFound, NotFound
from gouache.serve.queue.tasks import Task, TaskOutcome, TaskQueue
from gouache.serve.search.vectors import Embedder, Vectors
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.file_store import FileStore
from gouache.serve.store.tables import meanings, pictures

BATCH = 8
log = logging.getLogger("gouache.worker")


class Index:
    """One worker's share.

    Args:
        database: holds the vectors.
        file_store: holds the pictures.
        tasks: where texts come from that somebody looks for.
        open_embedder: loads the model at the first need; None if there is none.
    """

    def __init__(
        self,
        database: Database,
        file_store: FileStore,
        tasks: TaskQueue,
        open_embedder: Callable[[], Embedder | None],
    ) -> None:
        self.database, self.file_store, self.tasks, self.open_embedder = database, file_store, tasks, open_embedder
        self._embedder: Embedder | None = None
        self._failure: GouacheError | None = None
        self._lock = threading.Lock()
        self._done_to = 0
        # Those of an earlier worker may be vectors of another model.
        tasks.forget("embed")

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
                vectors = embedder.pictures([self.file_store.read("pictures", row.file)], [row.prompt])
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
        """Turn the texts that wait into vectors; gives how many."""
        return self.tasks.run("embed", self._vectors, BATCH)

    def _vectors(self, texts: Sequence[Task]) -> list[TaskOutcome]:
        with self._lock:
            embedder = self._opened()
            if embedder is None:
                # Given and not raised: an error that is kept would grow a longer traceback with every search.
                return [self._failure or _nothing_to_compare()] * len(texts)
            vectors = embedder.words([task.payload["text"] for task in texts])
        return [{"space": embedder.space, "vector": b64encode(packed(one)).decode("ascii")} for one in vectors]

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
