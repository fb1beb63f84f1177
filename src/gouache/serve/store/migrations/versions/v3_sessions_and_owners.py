"""Sessions and the end of tokens in the store; an account for everybody who has a token; owners of attachments."""

from __future__ import annotations

import re
import time

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

_NAMED = re.compile(r"sha256:([0-9a-f]{64})")
# As the tables stood at this step; those of `tables.py` go on changing.
_tokens = sa.table("tokens", sa.column("owner"), sa.column("created"))
_accounts = sa.table("accounts", *(sa.column(name) for name in ("name", "password", "created")))
_jobs = sa.table("jobs", *(sa.column(name) for name in ("owner", "request", "created")))
_attachments = sa.table("attachments", *(sa.column(name) for name in ("digest", "owner", "created")))


def upgrade() -> None:
    """Make the tables, and fill them with what the old ones imply."""
    op.add_column("tokens", sa.Column("expires", sa.Float))
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("credential", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_index("ix_sessions_owner", "sessions", ["owner"])
    op.create_table(
        "attachments",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("created", sa.Float, nullable=False),
    )
    connection = op.get_bind()
    known = set(connection.execute(sa.select(_accounts.c.name)).scalars())
    with_token = sa.select(_tokens.c.owner, sa.func.min(_tokens.c.created)).group_by(_tokens.c.owner)
    missing = [
        {"name": owner, "password": None, "created": created}
        for owner, created in connection.execute(with_token)
        if owner not in known
    ]
    if missing:
        connection.execute(sa.insert(_accounts), missing)
    # Whoever named an attachment in a job knew its hash before others could.
    named = sa.select(_jobs).where(_jobs.c.request.like("%sha256:%"))
    owned = {(digest, row.owner) for row in connection.execute(named) for digest in _NAMED.findall(row.request)}
    if owned:
        rows = [{"digest": digest, "owner": owner, "created": time.time()} for digest, owner in sorted(owned)]
        connection.execute(sa.insert(_attachments), rows)
