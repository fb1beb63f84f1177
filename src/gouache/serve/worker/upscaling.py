"""Pictures that a worker makes larger by the upscaler of a model, beside painting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gouache.errors import ModelNotFound
from gouache.serve.models.catalog import ModelCatalog, ModelEntry
from gouache.serve.models.facts import place
from gouache.serve.queue.tasks import KEPT_SECONDS, Task, TaskOutcome, TaskQueue
from gouache.serve.store.file_store import FileStore, picture_to_upscale, upscaled_picture

if TYPE_CHECKING:
    from gouache.pipeline.generate.upscaler_files import PictureUpscaler


class Upscaling:
    """One worker's share.

    Args:
        tasks: where they come from.
        file_store: holds their pictures.
        catalog: the models.
    """

    def __init__(self, tasks: TaskQueue, file_store: FileStore, catalog: ModelCatalog) -> None:
        self.tasks, self.file_store, self.catalog = tasks, file_store, catalog
        self._loaded: tuple[str, PictureUpscaler] | None = None
        self._forget_old()

    def forget(self) -> None:
        """Let go of the network."""
        self._loaded = None

    def run_one(self) -> bool:
        """Run the oldest task that nobody has; False if there is none."""
        return self.tasks.run("upscale", self._run) > 0

    def _run(self, tasks: Sequence[Task]) -> list[TaskOutcome]:
        from gouache.pipeline.generate.enlarge import enlarge_picture
        from gouache.pipeline.inputs.images import read_picture
        from gouache.pipeline.output.metadata import encode_picture

        (task,) = tasks
        network = self._network(self.catalog.find(task.payload["model"]))
        picture = read_picture(self.file_store.read("tasks", picture_to_upscale(task.id)))
        larger = enlarge_picture(picture, task.payload["factor"], network)
        self.file_store.keep("tasks", upscaled_picture(task.id), encode_picture(larger, "png"))
        return [{}]

    def _network(self, entry: ModelEntry) -> PictureUpscaler:
        from gouache.checkpoints.identify import identify
        from gouache.pipeline.generate.upscaler_files import load_part

        key = f"{entry.name}\n{entry.path}\n{entry.modified}"
        if self._loaded is None or self._loaded[0] != key:
            path = place(entry)
            if path is None:
                raise ModelNotFound("upscaler", given=entry.name, expected="a model that lies on disk")
            self._loaded = (key, load_part(path, identify(path)))
        return self._loaded[1]

    def _forget_old(self) -> None:
        """What servers left behind that died while they waited."""
        old = time.time() - KEPT_SECONDS
        self.tasks.forget("upscale", before=old)
        for path in (self.file_store.root / "tasks").iterdir():
            if path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
