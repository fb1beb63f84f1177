"""Making finished pictures larger, as the web server sees it: a worker does it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable

from sqlalchemy import func, insert, select

from gouache.errors import InvalidInput, QueueFull
from gouache.serve.http.errors import NobodyAnswers
from gouache.serve.queue.notify import Bell, within
from gouache.serve.queue.tasks import RING, asked_file, made_file, remove
from gouache.serve.store.database import Database
from gouache.serve.store.files import Vault
from gouache.serve.store.tables import errands

MOST_WAITING = 64


class Enlarging:
    """Has pictures made larger by the upscaler of a model.

    Args:
        database: holds the errands.
        vault: holds their pictures.
        bell: rings when one is done.
        wake: wakes the workers.
        patience: seconds to wait for one.
    """

    def __init__(self, database: Database, vault: Vault, bell: Bell, wake: Callable[[], None], patience: float) -> None:
        self.database, self.vault, self.bell, self.wake, self.patience = database, vault, bell, wake, patience

    async def enlarge(self, png: bytes, factor: float, model: str) -> bytes:
        """A picture `factor` times as large on each side, as a PNG.

        Args:
            png: the picture.
            factor: above 0.
            model: its name on the shelf.

        Raises:
            InvalidInput: the model has no upscaler, or the result would be too large.
            QueueFull: too many wait.
            NoRoom: the disk is nearly full.
            NobodyAnswers: no worker runs, or it died.
        """
        errand = uuid.uuid4().hex
        await asyncio.to_thread(self._write_down, errand, png, factor, model)
        try:
            self.wake()
            until = time.monotonic() + self.patience
            while time.monotonic() < until:
                ticket = self.bell.ticket(RING + errand)
                if await asyncio.to_thread(self._is_done, errand):
                    return await asyncio.to_thread(self.vault.read, "errands", made_file(errand))
                # The bell rings for workers of this server; those of others are only seen by looking.
                await within(ticket, 0.25)
        finally:
            await asyncio.to_thread(remove, self.database, self.vault, errand)
        raise NobodyAnswers(
            "upscaler",
            given=f"no answer for {self.patience:g} s",
            expected="a worker that runs",
            cure="Use Lanczos, or start a worker.",
        )

    def _write_down(self, errand: str, png: bytes, factor: float, model: str) -> None:
        waiting = self.database.row(select(func.count()).select_from(errands).where(~errands.c.done))
        if waiting is not None and waiting[0] >= MOST_WAITING:
            raise QueueFull(
                "upscaler",
                given=waiting[0],
                expected=f"fewer than {MOST_WAITING} pictures that wait",
                cure="Try again later.",
            )
        self.vault.check_room()
        self.vault.keep("errands", asked_file(errand), png)
        with self.database.write(durable=False) as connection:
            values = {"id": errand, "created": time.time(), "model": model, "factor": factor, "done": False}
            connection.execute(insert(errands).values(values))

    def _is_done(self, errand: str) -> bool:
        row = self.database.row(select(errands.c.done, errands.c.error).where(errands.c.id == errand))
        if row is None:
            return False
        if row.error is not None:
            where, given, expected, cure = json.loads(row.error)
            raise InvalidInput(where, given=given, expected=expected, cure=cure)
        return bool(row.done)
