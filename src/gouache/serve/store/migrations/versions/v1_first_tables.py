"""The tables before there were migrations. No store is made by this step; those of that time begin at it."""

from __future__ import annotations

revision = "1"
down_revision = None


def upgrade() -> None:
    """Nothing."""
