"""Search by meaning, as the web server sees it: it has no model, so a worker turns the question into a vector."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select

from gouache.errors import ModelNotFound, QueueFull
from gouache.serve.http.errors import NobodyAnswers
from gouache.serve.queue.notify import Bell, within
from gouache.serve.search.embedding import Compared
from gouache.serve.search.index import RING
from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.gallery import Picture, Pictures, Wanted
from gouache.serve.store.tables import questions

LONGEST_QUESTION = 200
MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What a search by meaning found.

    Attributes:
        pictures: nearest first, each with its cosine, -1..1.
        compared: "pictures" where a picture tower looked at them, "prompts" where only their prompts were compared.
        model: sha256 of the model that compared.
    """

    pictures: list[tuple[Picture, float]]
    compared: Compared
    model: str


class Meaning:
    """Finds pictures by what they show.

    Args:
        database: holds questions and vectors.
        pictures: the gallery.
        bell: rings when a question is answered.
        wake: wakes the workers.
        patience: seconds to wait for one.
    """

    def __init__(
        self, database: Database, pictures: Pictures, bell: Bell, wake: Callable[[], None], patience: float
    ) -> None:
        self.database, self.pictures, self.bell, self.wake, self.patience = database, pictures, bell, wake, patience

    async def search(self, text: str, wanted: Wanted, *, limit: int = 50) -> Found:
        """The pictures nearest to a text.

        Args:
            text: what they should show, at most `LONGEST_QUESTION` characters; the rest is cut off.
            wanted: other conditions.
            limit: how many.

        Raises:
            ModelNotFound: this studio has no model to compare with.
            NobodyAnswers: no worker runs.
        """
        space, vector = await self._vector(text.strip()[:LONGEST_QUESTION])
        near = await asyncio.to_thread(self.pictures.nearest, vector, space, wanted, limit)
        compared, _, model = space.partition(":")
        return Found(near, "pictures" if compared == "pictures" else "prompts", model)

    async def _vector(self, text: str) -> tuple[str, NDArray[np.float32]]:
        question = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            ticket = self.bell.ticket(RING + question)
            answer = await asyncio.to_thread(self._look, question, text)
            if answer is not None:
                return answer
            # The bell rings for workers of this server; those of others are only seen by looking.
            await within(ticket, 0.1)
        raise NobodyAnswers(
            "meaning",
            given=f"no answer for {self.patience:g} s",
            expected="a worker that runs",
            cure="Search by words, or start a worker.",
        )

    def _check_room(self) -> None:
        """Where nobody answers, questions must not fill the store."""
        waiting = self.database.row(select(func.count()).select_from(questions).where(questions.c.vector.is_(None)))
        if waiting is not None and waiting[0] >= MOST_WAITING:
            raise QueueFull(
                "questions", given=waiting[0], expected=f"fewer than {MOST_WAITING} that wait", cure="Search by words."
            )

    def _look(self, question: str, text: str) -> tuple[str, NDArray[np.float32]] | None:
        """The answer if it is there; writes the question down if it isn't."""
        row = self.database.row(select(questions).where(questions.c.id == question))
        if row is None:
            self._check_room()
            with self.database.write(durable=False) as connection:
                insert_missing(connection, questions, {"id": question, "text": text, "created": time.time()})
            self.wake()
            return None
        if row.error is not None:
            with self.database.write(durable=False) as connection:
                connection.execute(delete(questions).where(questions.c.id == question))
            where, given, expected, cure = json.loads(row.error)
            raise ModelNotFound(where, given=given, expected=expected, cure=cure)
        return None if row.vector is None else (row.space, np.frombuffer(row.vector, np.float16).astype(np.float32))
