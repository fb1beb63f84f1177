"""One job on its way through a worker: painted, kept, and stopped where its owner says so."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from PIL import Image

from gouache.errors import InvalidInput, StoreAway, StoreError
from gouache.pipeline.generate.generation import Event, Painted, Progress
from gouache.pipeline.request import Request
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.queue.job import Job, Orders
from gouache.serve.queue.leases import Leases
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import FileStore
from gouache.serve.store.gallery import picture_id, row_of
from gouache.serve.store.outages import outlast
from gouache.serve.worker.loaded_models import LoadedModels, Painter, lend_refiner, weights_sha256

PROGRESS_SECONDS = 0.1
PREVIEW_SECONDS = 0.5
PREVIEW_SIDE = 512
_Made = TypeVar("_Made")


class Stopped(Exception):
    """Told to stop; the job goes back into the queue."""


class LeaseLost(Exception):
    """Somebody else has the job now."""


class _Cancelled(Exception):
    """The owner wants none of it, while the store or the disk doesn't take what there is."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a worker lends to a job.

    Attributes:
        database, leases, file_store, catalog, models: the worker's own.
        tell: called with the job's id whenever something about it changed.
        is_over: whether the worker's time is up.
    """

    database: Database
    leases: Leases
    file_store: FileStore
    catalog: ModelCatalog
    models: LoadedModels
    tell: Callable[[str], None]
    is_over: Callable[[], bool]


class JobRun:
    """One job on its way through a worker.

    A store that is away, or a full disk, ends nothing: painting goes on without reports, and what is finished is
    offered again until it is taken, the job is somebody else's, or the worker's time is up.

    Args:
        context: of the worker.
        job: that it holds.
    """

    def __init__(self, context: JobContext, job: Job) -> None:
        self.context, self.job, self.leases = context, job, context.leases
        self.request = job.parsed()
        self._reported = self._previewed = 0.0
        self._watched = self._ending = False

    def paint(self) -> None:
        """Paint every picture; the last one is listed in the transaction that marks the job done.

        Raises:
            Stopped: the worker's time is up.
            LeaseLost: the job is somebody else's by now.
            GouacheError: it can't be painted.
        """
        try:
            self._paint()
        except _Cancelled:
            self._ending = True
            self._insist(lambda: self.leases.cancelled(self.job))

    def _paint(self) -> None:
        context = self.context
        entry = self._insist(lambda: context.catalog.find(self.request.model))
        names = self.request.pictures()
        attachments = self._insist(lambda: {name: context.file_store.attachment(name) for name in names})
        painter = context.models.get(entry)
        if entry.sha256 is None:
            with contextlib.suppress(StoreAway):  # The next job does it.
                context.catalog.remember_hash(entry, weights_sha256(painter))
        request = self.request.replace({"model": entry.name})
        if request.refiner is not None:
            second = context.catalog.find(request.refiner)
            request = request.replace({"refiner": second.name})
            lend_refiner(painter, second.name, context.models.get(second, beside=entry))
        try:
            if self.job.source == "explain":
                self._explain(painter, request, attachments)
            else:
                self._paint_all(painter, request, attachments)
        finally:
            if request.refiner is not None:
                lend_refiner(painter, request.refiner, None)

    def _explain(self, painter: Painter, request: Request, attachments: dict[str, bytes]) -> None:
        """Keep what each part of the model did for the picture, which is in there and not in the gallery."""
        from gouache.pipeline.explain.data import to_data
        from gouache.pipeline.explain.explanation import explain
        from gouache.pipeline.pipeline import Pipeline

        if not isinstance(painter, Pipeline):
            raise InvalidInput("model", given=request.model, expected="one whose parts can be watched")

        def look(progress: Progress) -> None:
            self._check()
            self._progress(progress, 0)

        seen = explain(painter, request, attachments, look)
        data = to_data(replace(seen, painted=_placeless(seen.painted))).to_json().encode()
        self._insist(lambda: self.context.file_store.keep("explanations", self.job.id, data))
        self._insist(lambda: self._list(None, is_last=True))
        self.context.tell(self.job.id)

    def _paint_all(self, painter: Painter, request: Request, attachments: dict[str, bytes]) -> None:
        first: int | None = 0
        while first is not None:
            events = painter.run(_from(request, first), attachments)
            try:
                first = self._follow(events, first)
            finally:
                _close(events)

    def _follow(self, events: Iterator[Event], first: int) -> int | None:
        """Keep what comes; gives the number of the picture to go on with after a skip, None at the job's end.

        Args:
            events: of a run whose first picture is the job's number `first`.
            first: that number.
        """
        last: Painted | None = None
        for event in events:
            if last is not None:
                self._keep(last, first, is_last=False)
                last = None
            if self._is_cancelled():
                return self._end_early(event, first)
            if isinstance(event, Progress):
                self._progress(event, first)
            else:
                last = event
        if last is None:
            raise StoreError(f"job {self.job.id}", given="no picture", expected="at least one from the model")
        self._keep(last, first, is_last=True)
        return None

    def _insist(self, work: Callable[[], _Made]) -> _Made:
        """Do what the job can't do without, as often as the store needs; harmless if it is done twice."""
        return outlast(work, who=f"job {self.job.id}", check=self._check)

    def _check(self) -> None:
        """Whether there is still a point in going on: painting, or offering what the store doesn't take."""
        if self._is_cancelled() and not self._ending:
            raise _Cancelled(f"job {self.job.id}")

    def _check_time(self) -> None:
        if self.context.is_over():
            raise Stopped(f"job {self.job.id}")

    def _is_cancelled(self) -> bool:
        try:
            orders = self.leases.orders(self.job)
        except StoreAway:  # Nobody else can have taken the job, or ordered anything.
            orders = Orders(held=True, cancel=False, watched=False)
        if not orders.held:
            raise LeaseLost(f"job {self.job.id}")
        self._check_time()
        self._watched = orders.watched
        return orders.cancel

    def _end_early(self, event: Event, first: int) -> int | None:
        """Cancel, with or without the picture as it stands, or skip to the next; gives that one's number."""
        self._ending = True
        ending = self._insist(lambda: self.leases.ending(self.job))
        following = first + event.picture + 1
        if ending == "drop":
            self._insist(lambda: self.leases.cancelled(self.job))
            return None
        if isinstance(event, Painted) and following == self.job.pictures:
            self._keep(event, first, is_last=True)  # It was finished a moment before.
            return None
        kept = event if isinstance(event, Painted) else event.partial and event.partial()
        row = None if kept is None else self._stored(kept, first, partial=kept is not event)
        if ending == "keep" or following == self.job.pictures or self.request.interpolation is not None:
            self._insist(lambda: self.leases.cancelled(self.job, row))
            return None
        self._insist(lambda: self._go_on(row))
        self._ending = False
        self.context.tell(self.job.id)
        return following

    def _go_on(self, row: dict[str, object] | None) -> None:
        with self.context.database.write() as connection:
            if not self.leases.go_on(connection, self.job):
                raise LeaseLost(f"job {self.job.id}")
            if row is not None:
                self.leases.add_picture(connection, row)

    def _progress(self, event: Progress, first: int) -> None:
        now = time.monotonic()
        jpeg = None
        if self._watched and now - self._previewed >= PREVIEW_SECONDS:
            jpeg, self._previewed = _jpeg(event.preview()), now
        elif now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        with contextlib.suppress(StoreAway):  # The next report says more.
            self.leases.progress(self.job, picture=first + event.picture, step=event.step, steps=event.steps, jpeg=jpeg)
        self.context.tell(self.job.id)

    def _keep(self, painted: Painted, first: int, *, is_last: bool) -> None:
        row = self._stored(painted, first)
        try:
            self._insist(lambda: self._list(row, is_last=is_last))
        except _Cancelled:
            if row is not None:
                self.context.file_store.discard(str(row["file"]))
            raise
        self.context.tell(self.job.id)

    def _list(self, row: dict[str, object] | None, *, is_last: bool) -> None:
        with self.context.database.write() as connection:
            if row is not None:
                self.leases.add_picture(connection, row)
            if is_last and not self.leases.finish(connection, self.job):
                raise LeaseLost(f"job {self.job.id}")

    def _stored(self, painted: Painted, first: int, *, partial: bool = False) -> dict[str, object] | None:
        """Write the file, give its row; None if an earlier attempt listed this picture, whose file stays."""
        number = first + painted.picture
        painted = _placeless(painted)
        if self._insist(lambda: self.leases.has_picture(self.job, number)):
            return None
        # PNG holds every recipe whole; other formats are made of it when they are asked for.
        data = painted.encode("png")
        file = f"{picture_id(self.job, number, partial=partial)}.png"
        self._insist(lambda: self.context.file_store.keep("pictures", file, data))
        return row_of(self.job, number, file, data, painted.image.size, painted.recipe, partial=partial)


def _placeless(painted: Painted) -> Painted:
    """Pictures travel: where the model lies on this server is no part of them. It is found again by name and hash."""
    recipe = painted.recipe
    placeless = {
        name: ref.model_copy(update={"path": None})
        for name, ref in (("model", recipe.model), ("refiner", recipe.refiner))
        if ref is not None
    }
    return replace(painted, recipe=recipe.model_copy(update=placeless))


def _from(request: Request, first: int) -> Request:
    """The rest of a request, from picture number `first` on: with the seeds that they would have had."""
    if first == 0:
        return request
    counted = "subseed" if request.subseed_strength else "seed"
    return request.replace({counted: (getattr(request, counted) or 0) + first, "count": request.count - first})


def _close(events: object) -> None:
    close = getattr(events, "close", None)
    if close is not None:
        close()


def _jpeg(picture: Image.Image) -> bytes:
    """A small JPEG; what is transparent has any colour, and is shown as white."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    small = picture.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
