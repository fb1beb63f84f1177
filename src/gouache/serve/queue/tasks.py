"""What a worker does beside painting: making finished pictures larger by a model's own upscaler.

The web server has no networks, so that none can take it down. It writes an errand down, a worker runs it once, and
one that takes its worker down is not run again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from gouache.errors import GouacheError, ModelNotFound
from gouache.serve.models.catalog import ModelEntry, Shelf
from gouache.serve.models.facts import place
from gouache.serve.store.database import Database
from gouache.serve.store.files import Vault
from gouache.serve.store.tables import errands

if TYPE_CHECKING:
    from gouache.pipeline.generate.upscalers import PictureUpscaler

RING = "errand:"
KEPT_SECONDS = 3600.0
log = logging.getLogger("gouache.worker")


def asked_file(errand: str) -> str:
    """The name of the picture that came with an errand."""
    return f"{errand}-0000.png"


def made_file(errand: str) -> str:
    """The name of the picture that an errand made."""
    return f"{errand}-0001.png"


class Errands:
    """One worker's share.

    Args:
        database: holds them.
        vault: holds their pictures.
        shelf: the models.
        worker: the worker's name.
        tell: called with `errand:<id>` when one is done.
    """

    def __init__(
        self, database: Database, vault: Vault, shelf: Shelf, worker: str, tell: Callable[[str], None]
    ) -> None:
        self.database, self.vault, self.shelf, self.worker, self.tell = database, vault, shelf, worker, tell
        self._loaded: tuple[str, PictureUpscaler] | None = None
        self._forget_old()

    def forget(self) -> None:
        """Let go of the network."""
        self._loaded = None

    def run_one(self) -> bool:
        """Run the oldest errand that nobody has; False if there is none."""
        row = self.database.row(select(errands).where(errands.c.worker.is_(None)).order_by(errands.c.created).limit(1))
        if row is None:
            return False
        with self.database.write(durable=False) as connection:
            mine = update(errands).where(errands.c.id == row.id, errands.c.worker.is_(None))
            if not connection.execute(mine.values(worker=self.worker)).rowcount:
                return True  # Another worker was quicker.
        start = time.perf_counter()
        error = self._run(row.id, row.model, row.factor)
        with self.database.write(durable=False) as connection:
            connection.execute(update(errands).where(errands.c.id == row.id).values(done=True, error=error))
        log.info("errand done", extra={"errand": row.id, "seconds": round(time.perf_counter() - start, 4)})
        self.tell(RING + row.id)
        return True

    def _run(self, errand: str, model: str, factor: float) -> str | None:
        """Make the picture; gives the error as JSON if it can't be made."""
        from gouache.pipeline.generate.upscale import enlarge_picture
        from gouache.pipeline.inputs.images import read_picture
        from gouache.pipeline.output.metadata import encode_picture

        try:
            network = self._network(self.shelf.find(model))
            picture = read_picture(self.vault.read("errands", asked_file(errand)))
            larger = enlarge_picture(picture, factor, network)
            self.vault.keep("errands", made_file(errand), encode_picture(larger, "png"))
        except GouacheError as error:
            return _written(error)
        except Exception as error:  # An errand must never take the worker's thread down.
            log.exception("errand failed", extra={"errand": errand})
            return json.dumps(["upscaler", f"{type(error).__name__}: {error}"[:300], "no such fault", ""])
        return None

    def _network(self, entry: ModelEntry) -> PictureUpscaler:
        from gouache.checkpoints.identify import identify
        from gouache.pipeline.generate.upscalers import load_part

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
        with self.database.write(durable=False) as connection:
            connection.execute(delete(errands).where(errands.c.created < old))
        for path in (self.vault.root / "errands").iterdir():
            if path.stat().st_mtime < old:
                path.unlink(missing_ok=True)


def _written(error: GouacheError) -> str:
    return json.dumps([error.where, str(error.given), error.expected, error.cure])


def remove(database: Database, vault: Vault, errand: str) -> None:
    """Forget an errand and its pictures."""
    with database.write(durable=False) as connection:
        connection.execute(delete(errands).where(errands.c.id == errand))
    for name in (asked_file(errand), made_file(errand)):
        vault.remove("errands", name)
