"""Since when a waiting job is passed over for jobs whose model a worker has loaded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Add the column; no job has been passed over yet."""
    op.add_column("jobs", sa.Column("passed_over", sa.Float))
