"""The one place where a server's event streams get their news from: it looks for all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from gouache.errors import NotFound, StoreAway
from gouache.serve.live.news import News, NewsReader, missed_by, open_jobs
from gouache.serve.queue.notify import Notifier, within
from gouache.serve.queue.order import QueueOrder
from gouache.serve.queue.queue import JobQueue
from gouache.serve.store.database import Database
from gouache.serve.store.gallery import Gallery

LOOK_SECONDS = 1.0
"""Longest time between two looks at the store, while anybody follows: other servers' workers tell this one nothing."""
BESIDE_SECONDS = 2.0
"""The same for training runs and downloads."""
WATCH_SECONDS = 10.0
"""A job's previews are drawn for so long after the last word that somebody looks."""
KEEP_ALIVE_SECONDS = 15.0
ALIVE = "event: alive\ndata: {}\n\n"
"""An event and no comment, which browsers keep from the page: it is to notice a connection that is none any more."""
MOST_PENDING = 2000
"""Messages that a reader may be behind; then its stream ends, and it comes back for what it missed."""
QUEUE, GALLERY = "queue", "gallery"
"""Names under which the notifier tells that a user's queue, or pictures, were changed here."""
log = logging.getLogger("gouache.live")


class Stream:
    """What one reader is still to be sent.

    Args:
        owner: who reads.
        previews: whether previews are wanted.
        is_admin: whether training and downloads are this reader's business.
    """

    def __init__(self, owner: str, *, previews: bool, is_admin: bool) -> None:
        self.owner, self.previews, self.is_admin = owner, previews, is_admin
        self.id = secrets.token_hex(8)
        self.seq = 0
        self._pending: dict[tuple[str, str], str] = {}
        self._ready = asyncio.Event()
        self._ended = False

    def push(self, kind: str, key: str, data: str, seq: int) -> None:
        """Something to be sent, in place of what waits and is older.

        Args:
            kind, key, data: as `News`.
            seq: the newest event that what was pushed so far accounts for.
        """
        # A job's end must not be sent before its last picture, nor a preview after its end: the newest goes last.
        self._pending.pop((kind, key), None)
        self._pending[kind, key] = f"event: {kind}\ndata: {data}\n"
        self.seq = max(self.seq, seq)
        if len(self._pending) > MOST_PENDING:
            self.end()
        self._ready.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._ready.set()

    async def chunks(self) -> AsyncGenerator[str]:
        """Server-sent events, many at once if many wait; `alive` where nothing happens."""
        while not self._ended:
            await within(self._ready, KEEP_ALIVE_SECONDS)
            self._ready.clear()
            messages, self._pending = list(self._pending.values()), {}
            if self._ended:
                return
            if not messages:
                yield ALIVE
                continue
            # The number stands on the last one: whoever comes back with it has seen all of them.
            messages[-1] = f"id: {self.seq}\n{messages[-1]}"
            yield "\n".join((*messages, ""))


class Feed:
    """Tells every stream of a server what concerns its reader.

    Args:
        database, jobs, order, gallery: of the studio.
        notifier: says that something may have changed.

    Attributes:
        beside: what administrators are told beside the queue: JSON by kind of event.
        is_away: whether the store could not be used at the last look.
    """

    def __init__(
        self,
        database: Database,
        jobs: JobQueue,
        order: QueueOrder,
        gallery: Gallery,
        notifier: Notifier,
    ) -> None:
        self.database, self.jobs, self.order, self.gallery = database, jobs, order, gallery
        self.beside: Callable[[], Mapping[str, str]] = dict
        self.reader = NewsReader(database, order, gallery)
        self.looks = 0
        """Times it looked at the store."""
        self._streams: dict[str, Stream] = {}
        self._changed: set[str] = set()
        self._wake, self._turn = asyncio.Event(), asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.is_away = self._closed = False
        self._told_beside: dict[str, str] = {}
        self._looked_at = self._beside_at = 0.0
        self._watched_at: dict[str, float] = {}
        notifier.follow(self._hear)

    async def open(self, owner: str, *, previews: bool, is_admin: bool, after: int | None) -> tuple[Stream, str]:
        """Begin to follow; gives the stream and the message that goes before everything else.

        Args:
            owner: who.
            previews, is_admin: as `Stream`.
            after: the last event that this reader saw before; None for somebody new.

        Raises:
            StoreAway: nothing can be told now.
        """
        stream = Stream(owner, previews=previews, is_admin=is_admin)
        async with self._turn:
            if self._task is None or self._task.done():
                await asyncio.to_thread(self.reader.catch_up)
                self._changed.clear()
                self._streams[stream.id] = stream  # The task ends when it finds none.
                self._task = asyncio.create_task(self._run(), name="feed")
            else:
                self._streams[stream.id] = stream
            seq = self.reader.seq
        try:
            state = await asyncio.to_thread(open_jobs, self.database, self.order, owner)
            missed: list[News] | None = []
            if after is not None:
                missed = await asyncio.to_thread(missed_by, self.database, self.gallery, owner, after, seq)
            beside = {}
            if is_admin:
                found = await asyncio.to_thread(self.beside)
                self._told_beside = {**found, **self._told_beside}
                beside = {kind: json.loads(data) for kind, data in found.items()}
        except BaseException:
            self.drop(stream)
            raise
        first = {"stream": stream.id, "user": owner, "admin": is_admin, "previews": previews, **state, **beside}
        # Whoever shows lists that reach further back reads them again where not everything that was missed is told.
        told = [f"event: hello\ndata: {json.dumps(first | {'afresh': missed is None, 'time': time.time()})}\n"]
        told += [f"event: {news.kind}\ndata: {news.data}\n" for news in missed or ()]
        told[-1] = f"id: {seq}\n{told[-1]}"
        if previews:
            self.reader.show_again()
            self._wake.set()
        return stream, "\n".join((*told, ""))

    def drop(self, stream: Stream) -> None:
        """Nobody reads this one any more."""
        self._streams.pop(stream.id, None)
        self._wake.set()

    def close(self) -> None:
        """End every stream: the server stops."""
        self._closed = True
        for stream in self._streams.values():
            stream.end()

    def want_previews(self, stream_id: str, owner: str, wanted: bool) -> None:
        """Whether a stream is to have previews from now on.

        Raises:
            NotFound: no such stream of this user.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.owner != owner:
            raise NotFound("stream", given=repr(stream_id)[:40], expected="the id that `hello` told")
        stream.previews = wanted
        if wanted:
            self.reader.show_again()
            self._wake.set()

    def _hear(self, name: str) -> None:
        if self._streams and not name.startswith("task:"):
            self._changed.add(name)
            self._wake.set()

    async def _run(self) -> None:
        while self._streams and not self._closed:
            pause = LOOK_SECONDS / 4 if self.reader.is_late else LOOK_SECONDS
            await within(self._wake, pause)
            self._wake.clear()
            changed, self._changed = self._changed, set()
            try:
                # Who begins to follow meanwhile would be told neither what is being read nor that it was missed.
                async with self._turn:
                    await self._look(changed)
                self._tell_away(away=False)
            except StoreAway:
                self._changed |= changed
                self._tell_away(away=True)
            except Exception:  # Whatever it was, those who follow must hear of what comes next.
                log.exception("looking for news")
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, changed: set[str]) -> None:
        now = time.monotonic()
        look = now - self._looked_at >= LOOK_SECONDS or bool(changed & {"", QUEUE})
        self._looked_at = now if look else self._looked_at
        owners = {stream.owner for stream in self._streams.values()}
        viewers = {stream.owner for stream in self._streams.values() if stream.previews}
        found = await asyncio.to_thread(self._read, changed - {"", QUEUE, GALLERY}, owners, viewers, look)
        seq = self.reader.seq
        for news in found:
            for stream in self._streams.values():
                if stream.owner == news.owner and (news.kind != "preview" or stream.previews):
                    stream.push(news.kind, news.key, news.data, seq)
        if now - self._beside_at >= BESIDE_SECONDS and any(stream.is_admin for stream in self._streams.values()):
            self._beside_at = now
            for kind, data in (await asyncio.to_thread(self.beside)).items():
                if self._told_beside.get(kind) != data:
                    self._told_beside[kind] = data
                    self._tell_all(kind, data, lambda stream: stream.is_admin)

    def _read(self, changed: set[str], owners: set[str], viewers: set[str], look: bool) -> list[News]:
        self.looks += 1
        if self.database.away:
            self.database.check()
        found = self.reader.read(changed, owners, viewers, look=look)
        now = time.monotonic()
        for job_id in self.reader.watched(viewers):
            if now - self._watched_at.get(job_id, 0.0) > WATCH_SECONDS / 2:
                self._watched_at[job_id] = now
                self.jobs.watch(job_id, WATCH_SECONDS)
        if len(self._watched_at) > MOST_PENDING:
            self._watched_at.clear()
        return found

    def _tell_away(self, *, away: bool) -> None:
        if away != self.is_away:
            self.is_away = away
            self._tell_all("outage" if away else "back", "{}")

    def _tell_all(self, kind: str, data: str, to: Callable[[Stream], bool] = lambda _: True) -> None:
        for stream in self._streams.values():
            if to(stream):
                stream.push(kind, "", data, self.reader.seq)


async def follow(feed: Feed, stream: Stream, first: str) -> AsyncIterator[str]:
    """Everything that a reader is sent, from the first message on."""
    try:
        yield first
        async with contextlib.aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        feed.drop(stream)
