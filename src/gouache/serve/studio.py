"""Everything a server process holds, put together once."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import select

from gouache.errors import GouacheError, ModelNotFound, NotFound, QueueFull
from gouache.files import write_bytes
from gouache.pipeline.output.a1111_text import infotext_of
from gouache.pipeline.output.infotext import format_infotext
from gouache.pipeline.output.metadata import OWN, PARAMETERS, ImageKind
from gouache.pipeline.request import Request
from gouache.serve.decoding.operations import Facts
from gouache.serve.decoding.processes import Decoding
from gouache.serve.http.visitors import Buckets
from gouache.serve.live.feed import GALLERY, QUEUE, Feed
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.models.downloads import Pulls
from gouache.serve.models.uploads import Placed, Uploads
from gouache.serve.queue.admission import admit
from gouache.serve.queue.cached_views import CachedJobView
from gouache.serve.queue.job import FINISHED, Ending, Job, Source
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.notify import Notifier, wait_until
from gouache.serve.queue.order import QueueOrder
from gouache.serve.queue.queue import JobQueue, fingerprint_of
from gouache.serve.queue.tasks import PictureTasks, Tasks
from gouache.serve.search.query import SemanticSearch
from gouache.serve.settings import Settings
from gouache.serve.store.accounts import Accounts
from gouache.serve.store.attachments import Attachments
from gouache.serve.store.database import Database, upsert
from gouache.serve.store.edited import file_of_edited, job_of_edited, list_edited, recipe_of_edited
from gouache.serve.store.file_store import thumbnail_of
from gouache.serve.store.gallery import Gallery, Picture
from gouache.serve.store.object_store import open_file_store
from gouache.serve.store.presets import Presets
from gouache.serve.store.tables import options
from gouache.serve.store.upkeep import Housekeeping
from gouache.serve.training.runs import TrainingRuns
from gouache.serve.training.sets import DataSet, TrainingSets
from gouache.serve.worker.supervisor import WORKER_COMMAND, Supervisor

DUPLICATE_SECONDS = 3600.0
SET_SECONDS = 600.0
"""Longest time to look at a zip of training pictures."""
SEARCH_SECONDS = 10.0
"""Longest wait for a worker that turns a text into a vector."""
DEFAULT_MODEL = "sd_model_checkpoint"
"""A1111's name of the option, so that both know the same choice."""
log = logging.getLogger("gouache.studio")


class Studio:
    """The store, the files, the models and the workers of one server.

    Args:
        settings: what to serve.
        worker_command: starts a worker.
    """

    def __init__(self, settings: Settings, worker_command: Sequence[str] = WORKER_COMMAND) -> None:
        self.settings = settings
        self.file_store = open_file_store(settings.data, settings.files, settings.limits.free_bytes)
        self.database = Database(settings.store_url)
        self.attachments = Attachments(self.database, self.file_store)
        self.decoding = Decoding()
        self.jobs = JobQueue(self.database, settings.limits, self.file_store.discard)
        self.order = QueueOrder(self.database, settings.workers)
        self.cached_view = CachedJobView(self.database)
        self.leases = Leases(self.database)
        self.notifier = Notifier()
        self.pictures = Gallery(self.database, partial(self.notifier.notify, GALLERY))
        self.feed = Feed(self.database, self.jobs, self.order, self.pictures, self.notifier)
        self.housekeeping = Housekeeping(self.database, self.file_store, self.pictures)
        self.accounts = Accounts(self.database)
        self.presets = Presets(self.database)
        self.catalog = ModelCatalog(settings.model_folders, self.database, settings.default_model)
        self.secret = self.database.secret()
        self.failures = Buckets(settings.limits.failed_logins_per_minute)
        self.submissions = Buckets(settings.limits.jobs_per_minute)
        self.streams: Counter[str] = Counter()
        """Event streams that each user follows."""
        self.started = time.time()
        self.supervisor = Supervisor(settings, self.leases, self.notifier.notify, worker_command)
        sets, models = TrainingSets(settings.data / "training"), settings.data / "models"
        self.training = TrainingRuns(settings.data / "runs", sets, models, self.catalog)
        self.pulls = Pulls(self.catalog.refresh)
        self.uploads = Uploads(settings.uploads_folder, settings.limits.free_bytes, self._file_arrived)
        timeout = min(SEARCH_SECONDS, settings.wait)
        tasks, wake = Tasks(self.database), self.supervisor.wake_beside
        self.semantic_search = SemanticSearch(tasks, self.pictures, self.notifier, wake, timeout)
        shared = (tasks, self.file_store, self.notifier, wake, settings.wait)
        self.upscale_tasks, self.draw_tasks = PictureTasks("upscale", *shared), PictureTasks("draw", *shared)

    def submit(
        self,
        request: Request,
        *,
        owner: str,
        source: Source,
        key: str | None = None,
        label: str = "",
        priority: int = 0,
        fingerprint: str | None = None,
        is_retry: bool = False,
    ) -> tuple[Job, bool]:
        """Check a request, accept it and wake a worker.

        Args:
            is_retry: the client says that it sent this before: then an equal job of the last hour is the one meant.

        Returns:
            The job, and whether it is new; errors as `admit` and `JobQueue.submit`.
        """
        if is_retry and key is None and fingerprint is not None:
            duplicate = self.jobs.recent_duplicate(owner, fingerprint, since=time.time() - DUPLICATE_SECONDS)
            if duplicate is not None:
                return duplicate, False
        self._take_turn(owner)
        fingerprint = fingerprint or fingerprint_of(request.to_json())
        if request.model is None and (chosen := self.default_model(owner)) != self.catalog.default:
            request = request.replace({"model": chosen})
        self.file_store.check_room()
        admitted = admit(request, self.settings, self.catalog, partial(self.attachments.read, owner))
        self.file_store.renew(request.pictures())
        job, new = self.jobs.submit(
            admitted, owner=owner, source=source, key=key, label=label, priority=priority, fingerprint=fingerprint
        )
        self.supervisor.wake()
        if new:
            self.notifier.notify(job.id)
            log.info("job accepted", extra={"job": job.id, "owner": owner, "source": source})
        return job, new

    def _take_turn(self, owner: str) -> None:
        wait = self.submissions.take(owner)
        if wait:
            raise QueueFull(
                "jobs a minute",
                given="too many",
                expected=f"at most {self.settings.limits.jobs_per_minute}",
                cure=f"Try again in {wait:.0f} s.",
            )

    def cancel(self, job_id: str, owner: str | None, *, ending: Ending = "drop") -> Job:
        """Cancel one job by its id; arguments and errors as `JobQueue.cancel`."""
        job = self.jobs.cancel(job_id, owner, ending=ending)
        self.notifier.notify(job_id)
        return job

    def retry(self, job_id: str, owner: str | None) -> Job:
        """Put a failed or cancelled job back and wake a worker; arguments and errors as `JobQueue.retry`.

        Raises:
            PictureError: a picture that it starts from is no longer kept.
        """
        self.file_store.check_room()
        self.file_store.renew(self.jobs.get(job_id, owner).parsed().pictures())
        job = self.jobs.retry(job_id, owner)
        self.supervisor.wake()
        self.notifier.notify(job_id)
        return job

    def cancel_waiting(self, owner: str) -> int:
        """Cancel every job of a user that waits; gives how many."""
        cancelled = self.order.cancel_waiting(owner)
        for job_id in cancelled:
            self.notifier.notify(job_id)
        return len(cancelled)

    def pause(self, owner: str, paused: bool) -> None:
        """Let a user's waiting jobs wait on, or be taken again."""
        if paused:
            self.order.pause(owner)
        else:
            self.order.resume(owner)
            self.supervisor.wake()
        self.notifier.notify(QUEUE)

    @property
    def upload_pixels(self) -> int:
        """How many pixels a picture from outside may have, by whatever way it comes."""
        return 4 * self.settings.limits.pixels

    def attach(self, owner: str, data: bytes, where: str = "attachment") -> tuple[str, Facts]:
        """Check a picture and keep it for its owner's requests; blocks, see `Decoding.beside`.

        Args:
            owner: who sent it.
            data: its bytes.
            where: what to call it in an error.

        Returns:
            The name for a request, and what `operations.check` tells of it.

        Raises:
            PictureError: no picture, or too large.
            NoRoom: the disk is nearly full.
        """
        facts, _ = self.decoding.run(owner, "check", data, {"where": where, "max_pixels": self.upload_pixels})
        return self.attachments.keep(owner, data), facts

    def encoded(self, picture: Picture, kind: ImageKind, quality: int = 95) -> bytes:
        """A finished picture's file: as it is stored (PNG), or encoded anew; blocks."""
        data = self.file_store.read("pictures", picture.file)
        if kind == "png":
            return data
        wanted = {"kind": kind, "quality": quality, "max_pixels": None}
        return self.decoding.run(picture.owner, "encode", data, wanted)[1]

    def thumbnail(self, picture: Picture) -> bytes:
        """A small WebP of a finished picture, made at the first call; blocks."""
        name = thumbnail_of(picture.file)
        try:
            return self.file_store.read("thumbnails", name)
        except NotFound:
            data = self.file_store.read("pictures", picture.file)
            made = self.decoding.run(picture.owner, "thumbnail", data, {})[1]
            self.file_store.keep("thumbnails", name, made)
            return made

    def add_to_set(self, owner: str, name: str, file: str, data: bytes) -> DataSet:
        """Put a file into a set of training pictures; blocks. Arguments and errors as `TrainingSets.add`."""
        wanted = {"root": str(self.training.sets.root), "name": name, "file": file}
        return DataSet(**self.decoding.run(owner, "add_to_set", data, wanted, SET_SECONDS)[0])

    def set_thumbnail(self, owner: str, name: str, file: str) -> Path:
        """A small WebP of a picture to train on, made at the first call; blocks. Errors as `TrainingSets.picture`."""
        sets = self.training.sets
        path = sets.thumbnail(name, file)
        if not path.is_file():
            made = self.decoding.run(owner, "thumbnail", sets.picture(name, file).read_bytes(), {})[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, made, force=True)
        return path

    def keep_edited(self, owner: str, data: bytes, parents: Sequence[str]) -> Picture:
        """Put a picture that was composed of others into the gallery; blocks, see `Decoding.beside`.

        Args:
            owner: whose it is.
            data: its bytes; it is stored as a PNG with the recipe of its first parent inside.
            parents: ids of the owner's pictures that it was made of.

        Raises:
            PictureError: no picture, or too large.
            NotFound: a parent that isn't one of the owner's pictures.
            QueueFull: too many in a minute.
            NoRoom: the disk is nearly full.
        """
        self._take_turn(owner)
        self.file_store.check_room()
        recipe = recipe_of_edited([self.pictures.get(parent, owner) for parent in parents])
        wanted = {"where": "body", "max_pixels": self.upload_pixels}
        facts, _ = self.decoding.run(owner, "check", data, wanted)
        size = (facts["width"], facts["height"])
        texts = {PARAMETERS: format_infotext(infotext_of(recipe)), OWN: recipe.to_json()}
        anew = {"width": size[0], "height": size[1], "crops": False, "resample": 0, "texts": texts}
        _, whole = self.decoding.run(owner, "resize", data, {**anew, "max_pixels": self.upload_pixels})
        job = job_of_edited(owner, recipe, whole)
        self.file_store.keep("pictures", file_of_edited(job), whole)
        made = list_edited(self.database, job, recipe, whole, size)
        self.notifier.notify(str(job["id"]))
        return self.pictures.get(made, owner)

    async def wait_for(self, job_id: str, seconds: float) -> Job:
        """Wait until a job is finished, at most so long; gives it as it stands then."""

        def finished() -> Job | None:
            job = self.jobs.get(job_id)
            return job if job.state in FINISHED else None

        found = await wait_until(self.notifier, job_id, finished, seconds=seconds, every=0.25)
        if found is not None:
            return found
        return await asyncio.to_thread(self.jobs.get, job_id)

    def default_model(self, owner: str) -> str:
        """The model of a user's requests that name none: the one they chose, while it is there, else the studio's."""
        chosen = json.loads(self.options(owner).get(DEFAULT_MODEL, "null"))
        try:
            return self.catalog.find(chosen).name if chosen else self.catalog.default
        except ModelNotFound:
            return self.catalog.default

    def set_default_model(self, owner: str, name: str) -> str:
        """Choose it, for every interface; gives its full name.

        Raises:
            ModelNotFound: no such model here.
        """
        found = self.catalog.find(name).name
        self.set_options(owner, {DEFAULT_MODEL: json.dumps(found)})
        return found

    def hidden(self, error: GouacheError) -> GouacheError:
        """The same error without the places where files lie."""
        parts = error.to_dict()
        return type(error).from_dict({name: self.settings.hide_places(text) for name, text in parts.items()})

    def told(self, error: GouacheError) -> str:
        """The error as whoever uses the page may read it."""
        return str(self.hidden(error))

    def _file_arrived(self, placed: Placed) -> None:
        """A weight file was put among the models: list it, under the hash by which recipes will know it."""
        self.catalog.refresh()
        log.info("model added", extra={"model": placed.name, "kind": placed.kind, "sha256": placed.sha256})
        entry = next((entry for entry in self.catalog.entries() if entry.path == placed.path.resolve()), None)
        if entry is not None and not placed.recorded:
            self.catalog.remember_hash(entry, placed.sha256)

    def options(self, owner: str) -> dict[str, str]:
        """A user's stored options, as JSON texts by key."""
        rows = self.database.rows(select(options).where(options.c.owner == owner))
        return {row.key: row.value for row in rows}

    def set_options(self, owner: str, values: dict[str, str]) -> None:
        """Store options."""
        with self.database.write() as connection:
            for key, value in values.items():
                upsert(connection, options, {"owner": owner, "key": key}, {"value": value})

    def close(self) -> None:
        """Stop the workers and let go of the store."""
        self.supervisor.stop()
        self.cached_view.close()
        self.decoding.close()
        self.database.close()
