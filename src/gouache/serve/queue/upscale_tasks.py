"""Upscaling of finished pictures, as the web server sees it: a worker does it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from gouache.errors import InvalidInput, QueueFull
from gouache.serve.http.errors import NobodyAnswers
from gouache.serve.queue.notify import Notifier, wait_until
from gouache.serve.queue.tasks import Task, Tasks, notified_as
from gouache.serve.store.files import FileStore, picture_to_upscale, upscaled_picture

MOST_WAITING = 64


class UpscaleTasks:
    """Has pictures made larger by the upscaler of a model.

    Args:
        tasks: holds the tasks.
        file_store: holds their pictures.
        notifier: notified when one is done.
        wake: wakes the workers.
        timeout: seconds to wait for one.
    """

    def __init__(
        self, tasks: Tasks, file_store: FileStore, notifier: Notifier, wake: Callable[[], None], timeout: float
    ) -> None:
        self.tasks, self.file_store, self.notifier, self.wake, self.timeout = (
            tasks,
            file_store,
            notifier,
            wake,
            timeout,
        )

    async def enlarge(self, png: bytes, factor: float, model: str) -> bytes:
        """A picture `factor` times as large on each side, as a PNG.

        Args:
            png: the picture.
            factor: above 0.
            model: its name in the catalog.

        Raises:
            InvalidInput: the model has no upscaler, or the result would be too large.
            QueueFull: too many wait.
            NoRoom: the disk is nearly full.
            NobodyAnswers: no worker runs, or it died.
        """
        task_id = uuid.uuid4().hex
        await asyncio.to_thread(self._add, task_id, png, factor, model)
        try:
            self.wake()
            done = await wait_until(
                self.notifier, notified_as(task_id), lambda: self._ended(task_id), seconds=self.timeout, every=0.25
            )
            if done is not None:
                return await asyncio.to_thread(self.file_store.read, "tasks", upscaled_picture(task_id))
        finally:
            await asyncio.to_thread(self._remove, task_id)
        raise NobodyAnswers(
            "upscaler",
            given=f"no answer for {self.timeout:g} s",
            expected="a worker that runs",
            cure="Use Lanczos, or start a worker.",
        )

    def _add(self, task_id: str, png: bytes, factor: float, model: str) -> None:
        waiting = self.tasks.open("upscale")
        if waiting >= MOST_WAITING:
            raise QueueFull(
                "upscaler",
                given=waiting,
                expected=f"fewer than {MOST_WAITING} pictures that wait",
                cure="Try again later.",
            )
        self.file_store.check_room()
        # The file first: a worker may claim the task the moment it is there.
        self.file_store.keep("tasks", picture_to_upscale(task_id), png)
        self.tasks.add(task_id, "upscale", {"model": model, "factor": factor})

    def _ended(self, task_id: str) -> Task | None:
        task = self.tasks.get(task_id)
        if task is not None and task.error is not None:
            # Whatever it was, the caller's picture, factor or model can't be used.
            raise InvalidInput.from_dict(task.error)
        return task if task is not None and task.state == "done" else None

    def _remove(self, task_id: str) -> None:
        self.tasks.remove(task_id)
        for name in (picture_to_upscale(task_id), upscaled_picture(task_id)):
            self.file_store.remove("tasks", name)
