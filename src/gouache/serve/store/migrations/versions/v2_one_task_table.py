"""One table `tasks` in place of `errands` (pictures to upscale) and `questions` (texts to turn into vectors)."""

from __future__ import annotations

import base64
import json

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

# As the tables stood at this step; those of `tables.py` go on changing.
_tasks = sa.table(
    "tasks",
    *(
        sa.column(name)
        for name in ("id", "kind", "state", "payload", "created", "attempts", "worker", "result", "error")
    ),
)
_errands = sa.table(
    "errands", *(sa.column(name) for name in ("id", "created", "model", "factor", "worker", "done", "error"))
)
_questions = sa.table("questions", *(sa.column(name) for name in ("id", "text", "created", "space", "vector", "error")))


def upgrade() -> None:
    """Make the table, move every row, drop the old ones."""
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("lease_until", sa.Float),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("tasks_by_turn", "tasks", ["kind", "state", "created"])
    connection = op.get_bind()
    moved = [_of_errand(row) for row in connection.execute(sa.select(_errands))]
    moved += [_of_question(row) for row in connection.execute(sa.select(_questions))]
    if moved:
        connection.execute(sa.insert(_tasks), moved)
    op.drop_table("errands")
    op.drop_table("questions")


def _of_errand(row: sa.Row[tuple[object, ...]]) -> dict[str, object]:
    state = "waiting" if row.worker is None else "running"
    if row.done:
        state = "done" if row.error is None else "failed"
    return {
        "id": row.id,
        "kind": "upscale",
        "state": state,
        "payload": json.dumps({"model": row.model, "factor": row.factor}),
        "created": row.created,
        "attempts": 0 if row.worker is None else 1,
        "worker": row.worker if state == "running" else None,
        "result": "{}" if state == "done" else None,
        "error": _error(row.error, "InvalidInput"),
    }


def _of_question(row: sa.Row[tuple[object, ...]]) -> dict[str, object]:
    result = None
    if row.vector is not None:
        vector = base64.b64encode(row.vector).decode("ascii")
        result = json.dumps({"space": row.space, "vector": vector})
    return {
        "id": row.id,
        "kind": "embed",
        "state": "failed" if row.error is not None else "waiting" if result is None else "done",
        "payload": json.dumps({"text": row.text}),
        "created": row.created,
        "attempts": 0,
        "worker": None,
        "result": result,
        "error": _error(row.error, "ModelNotFound"),
    }


def _error(stored: str | None, kind: str) -> str | None:
    """Errors were lists of four texts; their kind went without saying."""
    if stored is None:
        return None
    where, given, expected, cure = json.loads(stored)
    message = f"{where}: given {given}, expected {expected}. {cure}".strip()
    parts = {"kind": kind, "where": where, "given": given, "expected": expected, "cure": cure, "message": message}
    return json.dumps(parts)
