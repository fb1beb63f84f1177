"""What a worker makes of pictures beside painting: larger ones, by the upscaler of a model, and control pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gouache.errors import GouacheError, ModelNotFound
from gouache.serve.models.catalog import ModelCatalog, ModelEntry
from gouache.serve.models.facts import place
from gouache.serve.queue.tasks import KEPT_SECONDS, Task, TaskKind, TaskOutcome, TaskQueue
from gouache.serve.store.file_store import FileStore, given_picture, made_picture

if TYPE_CHECKING:
    from gouache.pipeline.generate.upscaler_files import PictureUpscaler


class Upscaling:
    """One worker's share of pictures to make larger.

    Args:
        tasks: where they come from.
        file_store: holds their pictures.
        catalog: the models.
    """

    def __init__(self, tasks: TaskQueue, file_store: FileStore, catalog: ModelCatalog) -> None:
        self.tasks, self.file_store, self.catalog = tasks, file_store, catalog
        self._loaded: tuple[str, PictureUpscaler] | None = None
        forget_old(tasks, "upscale", file_store)

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
        picture = read_picture(self.file_store.read("tasks", given_picture(task.id)))
        larger = enlarge_picture(picture, task.payload["factor"], network)
        self.file_store.keep("tasks", made_picture(task.id), encode_picture(larger, "png"))
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


class Drawing:
    """One worker's share of control pictures.

    Args:
        tasks: where they come from.
        file_store: holds their pictures.
        hide_places: takes out of an error's text where this server's files lie.
    """

    def __init__(self, tasks: TaskQueue, file_store: FileStore, hide_places: Callable[[str], str]) -> None:
        self.tasks, self.file_store, self.hide_places = tasks, file_store, hide_places
        forget_old(tasks, "draw", file_store)

    def run_one(self) -> bool:
        """Run the oldest task that nobody has; False if there is none."""
        return self.tasks.run("draw", self._run) > 0

    def _run(self, tasks: Sequence[Task]) -> list[TaskOutcome]:
        from gouache.pipeline.inputs.images import on_background, read_picture
        from gouache.pipeline.inputs.preprocessors import drawn
        from gouache.pipeline.output.metadata import encode_picture

        (task,) = tasks
        picture = read_picture(self.file_store.read("tasks", given_picture(task.id)))
        try:
            made = drawn(task.payload["preprocessor"], on_background(picture, "white"))
        except GouacheError as error:
            parts = {name: self.hide_places(text) for name, text in error.to_dict().items()}
            return [type(error).from_dict(parts)]
        self.file_store.keep("tasks", made_picture(task.id), encode_picture(made, "png"))
        return [{}]


def forget_old(tasks: TaskQueue, kind: TaskKind, file_store: FileStore) -> None:
    """Remove what servers left behind that died while they waited."""
    old = time.time() - KEPT_SECONDS
    tasks.forget(kind, before=old)
    file_store.drop_old("tasks", old)
