"""Whose the pictures are that came with requests. Their hashes stand in recipes, and recipes are shared."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from sqlalchemy import Connection, delete, select

from gouache.serve.store.database import Database, insert_missing
from gouache.serve.store.file_store import FileStore, not_uploaded
from gouache.serve.store.tables import attachments, jobs

NAMED = re.compile(r"sha256:([0-9a-f]{64})")
"""An attachment in the JSON of a request."""


class Attachments:
    """Pictures that came with requests, each user's own.

    Equal bytes are one file, however many users sent them; only who sent them may name them.

    Args:
        database: knows whose they are.
        file_store: holds them.
    """

    def __init__(self, database: Database, file_store: FileStore) -> None:
        self.database, self.file_store = database, file_store

    def keep(self, owner: str, data: bytes) -> str:
        """Store a picture; gives the `sha256:<hex>` that names it in this user's requests.

        Raises:
            NoRoom: the disk is nearly full.
        """
        name = self.file_store.attach(data)
        with self.database.write() as connection:
            _own(connection, [(name.removeprefix("sha256:"), owner)])
        return name

    def read(self, owner: str, name: str) -> bytes:
        """The bytes behind `sha256:<hex>`.

        Raises:
            PictureError: this user sent no such picture. Whether somebody else did is not told.
        """
        digest = name.removeprefix("sha256:")
        mine = select(attachments.c.digest).where(attachments.c.digest == digest, attachments.c.owner == owner)
        if name.startswith("sha256:") and ("\0" in digest or self.database.row(mine) is None):
            raise not_uploaded(name)
        return self.file_store.attachment(name)

    def forget_gone(self) -> None:
        """Forget whose those were that are no longer kept."""
        kept = set(self.file_store.names("attachments"))
        known = {row.digest for row in self.database.rows(select(attachments.c.digest).distinct())}
        # Younger rows may belong to a file that came after the look.
        for digest in known - kept:
            old = attachments.c.created < time.time() - 60
            with self.database.write() as connection:
                connection.execute(delete(attachments).where(attachments.c.digest == digest, old))


def own_by_jobs(connection: Connection) -> None:
    """Give attachments to those whose jobs name them: for backups that say nothing of it."""
    named = select(jobs.c.owner, jobs.c.request).where(jobs.c.request.like("%sha256:%"))
    rows = connection.execute(named).all()
    _own(connection, sorted({(digest, row.owner) for row in rows for digest in NAMED.findall(row.request)}))


def _own(connection: Connection, owned: Iterable[tuple[str, str]]) -> None:
    now = time.time()
    for digest, owner in owned:
        insert_missing(connection, attachments, {"digest": digest, "owner": owner, "created": now})
