"""What nobody needs any longer goes: pictures that were deleted long ago, and pictures that came with requests."""

from __future__ import annotations

import logging
import re
import threading
import time

from sqlalchemy import or_, select

from gouache.serve.queue.job import OPEN
from gouache.serve.store.database import Database
from gouache.serve.store.files import FileStore, NoRoom
from gouache.serve.store.gallery import UNDO_SECONDS, Gallery
from gouache.serve.store.tables import jobs, pictures

ATTACHMENT_SECONDS = 7 * 24 * 3600
"""An attachment stays so long after it came and after the last job that names it ended."""
SHORT_SECONDS = 3600
"""The same while the disk is nearly full."""
FIRST_SECONDS, EVERY_SECONDS = 60, 3600
_NAMED = re.compile(r"sha256:([0-9a-f]{64})")
_AT_ONCE = 1000
log = logging.getLogger("gouache.housekeeping")


class Housekeeping:
    """Cleans up a minute after the start and once an hour, in a thread of its own.

    Several servers of one store may do so at once.

    Args:
        database, file_store, gallery: of the studio.
    """

    def __init__(self, database: Database, file_store: FileStore, gallery: Gallery) -> None:
        self.database, self.file_store, self.gallery = database, file_store, gallery
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True, name="housekeeping")
        self._thread.start()

    def stop(self) -> None:
        """End; what is being done is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause = FIRST_SECONDS
        while not self._stop.wait(pause):
            pause = EVERY_SECONDS
            try:
                self.clean()
            except Exception:  # The studio goes on without it.
                log.exception("cleaning up")

    def clean(self, now: float | None = None) -> tuple[int, int]:
        """Remove what nobody needs.

        Args:
            now: seconds since 1970; the clock's without it.

        Returns:
            How many pictures and how many attachments went.
        """
        now = time.time() if now is None else now
        files = self.gallery.purge(now - UNDO_SECONDS)
        for file in files:
            self.file_store.discard(file)
        before = now - self._patience()
        attachments = self.file_store.drop_attachments(self.needed(before), before)
        if files or attachments:
            log.info("cleaned up", extra={"pictures": len(files), "attachments": attachments})
        return len(files), attachments

    def _patience(self) -> float:
        try:
            self.file_store.check_room()
        except NoRoom:
            return SHORT_SECONDS
        return ATTACHMENT_SECONDS

    def needed(self, before: float) -> set[str]:
        """Digests of attachments that stay.

        They are those that an open job names, a job that ended after `before` and may be retried, or one whose pictures
        are kept, so that their recipes can be followed.
        """
        kept = select(pictures.c.id).where(pictures.c.job == jobs.c.id).exists()
        stays = or_(jobs.c.state.in_(OPEN), jobs.c.finished >= before, kept)
        query = select(jobs.c.request).where(jobs.c.request.like("%sha256:%"), stays)
        found: set[str] = set()
        with self.database.read() as connection:
            for part in connection.execute(query).partitions(_AT_ONCE):
                found.update(digest for row in part for digest in _NAMED.findall(row.request))
        return found
