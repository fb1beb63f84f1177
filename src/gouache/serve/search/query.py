"""Search by meaning, as the web server sees it: it has no model, so a worker turns the text into a vector."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from gouache.errors import ModelNotFound, QueueFull
from gouache.serve.http.replies import NobodyAnswers
from gouache.serve.queue.notify import Notifier, wait_until
from gouache.serve.queue.tasks import Tasks, notified_as
from gouache.serve.search.vectors import Comparison
from gouache.serve.store.gallery import Gallery, Picture
from gouache.serve.store.wanted import Wanted

LONGEST_TEXT = 200
MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """What a search by meaning found.

    Attributes:
        pictures: nearest first, each with its cosine, -1..1.
        compared: "pictures" where a picture tower looked at them, "prompts" where only their prompts were compared.
        model: sha256 of the model that compared.
    """

    pictures: list[tuple[Picture, float]]
    compared: Comparison
    model: str


class SemanticSearch:
    """Finds pictures by what they show.

    Args:
        tasks: holds the texts that wait for a vector.
        pictures: the gallery.
        notifier: notified when a vector is there.
        wake: wakes the workers.
        timeout: seconds to wait for one.
    """

    def __init__(
        self, tasks: Tasks, pictures: Gallery, notifier: Notifier, wake: Callable[[], None], timeout: float
    ) -> None:
        self.tasks, self.pictures, self.notifier, self.wake, self.timeout = tasks, pictures, notifier, wake, timeout

    async def search(self, text: str, wanted: Wanted, *, limit: int = 50) -> FoundPicture:
        """The pictures nearest to a text.

        Args:
            text: what they should show, at most `LONGEST_TEXT` characters; the rest is cut off.
            wanted: other conditions.
            limit: how many.

        Raises:
            ModelNotFound: this studio has no model to compare with.
            NobodyAnswers: no worker runs.
        """
        space, vector = await self._vector(text.strip()[:LONGEST_TEXT])
        near = await asyncio.to_thread(self.pictures.nearest, vector, space, wanted, limit)
        compared, _, model = space.partition(":")
        return FoundPicture(near, "pictures" if compared == "pictures" else "prompts", model)

    async def _vector(self, text: str) -> tuple[str, NDArray[np.float32]]:
        # The id is that of the text, so that equal searches share a task, and its answer for as long as it is kept.
        task_id = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        # Nothing is handed in yet that would be worth waiting for: a store that is away now is told at once.
        found = await asyncio.to_thread(self._look, task_id, text) or await wait_until(
            self.notifier, notified_as(task_id), lambda: self._look(task_id, text), seconds=self.timeout, every=0.1
        )
        if found is None:
            raise NobodyAnswers(
                "meaning",
                given=f"no answer for {self.timeout:g} s",
                expected="a worker that runs",
                cure="Search by words, or start a worker.",
            )
        return found

    def _look(self, task_id: str, text: str) -> tuple[str, NDArray[np.float32]] | None:
        """The answer if it is there; adds the task if it isn't."""
        task = self.tasks.get(task_id)
        if task is None:
            self._check_room()
            self.tasks.add(task_id, "embed", {"text": text})
            self.wake()
            return None
        if task.error is not None:
            self.tasks.remove(task_id)  # The next search tries again.
            raise ModelNotFound.from_dict(task.error)
        if task.result is None:
            return None
        vector = np.frombuffer(b64decode(task.result["vector"]), np.float16)
        return task.result["space"], vector.astype(np.float32)

    def _check_room(self) -> None:
        """Where nobody answers, searches must not fill the store."""
        waiting = self.tasks.open("embed")
        if waiting >= MOST_WAITING:
            raise QueueFull(
                "questions", given=waiting, expected=f"fewer than {MOST_WAITING} that wait", cure="Search by words."
            )
