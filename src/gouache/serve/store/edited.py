"""Pictures that no job painted: composed of others in an editor.

A row of the gallery belongs to a job, so each gets one that was done the moment it came.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from hashlib import sha256

from sqlalchemy import insert

from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe, package_versions
from gouache.pipeline.request import Request
from gouache.serve.queue.job import COLUMNS, Job
from gouache.serve.queue.queue import note
from gouache.serve.store.database import Database
from gouache.serve.store.gallery import Picture, picture_id, row_of
from gouache.serve.store.tables import jobs, pictures

EDITED = "edited"
EDITED_NOTE = "edited by hand"
"""How the note on such a picture begins."""


def recipe_of_edited(parents: Sequence[Picture]) -> Recipe:
    """The recipe of the first parent with a note, or one that says no more than the note."""
    told = EDITED_NOTE + (f" from {', '.join(parent.id for parent in parents)}" if parents else "")
    if not parents:
        return Recipe(
            request=Request(),
            model=ModelRef(name="", family=""),
            machine=Machine(device="", dtype="", processor="", threads=0),
            versions=package_versions(),
            notes=(told,),
        )
    first = parents[0].parsed()
    # Neither the digests of its steps nor that of its pixels are this picture's.
    return first.model_copy(update={"notes": (*first.notes, told), "steps": (), "pixels": None})


def job_of_edited(owner: str, recipe: Recipe, data: bytes) -> dict[str, object]:
    """The columns of its job."""
    now = time.time()
    return {
        "id": uuid.uuid4().hex,
        "state": "done",
        "owner": owner,
        "source": "edit",
        "label": EDITED,
        "priority": 0,
        "request": recipe.request.to_json(),
        # No client's repeated request may be taken for this one.
        "fingerprint": sha256(b"edited\0" + data).hexdigest(),
        "attempts": 0,
        "created": now,
        "started": now,
        "finished": now,
        "cancel_requested": False,
        "picture": 1,
        "pictures": 1,
    }


def file_of_edited(job: dict[str, object]) -> str:
    """The name of the picture's file."""
    return f"{job['id']}-0000.png"


def list_edited(
    database: Database, values: dict[str, object], recipe: Recipe, data: bytes, size: tuple[int, int]
) -> str:
    """List the picture, whose file is stored already; gives its id."""
    with database.write() as connection:
        job = Job(**connection.execute(insert(jobs).values(**values).returning(*COLUMNS)).one()._mapping)
        row = row_of(job, 0, file_of_edited(values), data, size, recipe)
        connection.execute(insert(pictures).values(**row | {"kind": EDITED}))
        note(connection, job.id, "picture", str(row["id"]))
        note(connection, job.id, "done")
    return picture_id(job, 0)
