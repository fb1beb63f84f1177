"""Users whose waiting jobs are not claimed for a while."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Make the table; nobody has paused yet."""
    op.create_table(
        "pauses",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
    )
