"""What pictures were painted with and from, as columns of their own, so that the gallery can be filtered by them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"

_AT_ONCE = 500
# As the table stood at this step.
_pictures = sa.table("pictures", *(sa.column(name) for name in ("seq", "recipe", "sampler", "kind")))


def upgrade() -> None:
    """Add the columns, and fill them from the recipes."""
    for name, length in (("sampler", 64), ("kind", 16)):
        op.add_column("pictures", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    connection = op.get_bind()
    fill = sa.update(_pictures).where(_pictures.c.seq == sa.bindparam("at"))
    fill = fill.values(sampler=sa.bindparam("with_sampler"), kind=sa.bindparam("of_kind"))
    last = 0
    while True:
        page = sa.select(_pictures.c.seq, _pictures.c.recipe).where(_pictures.c.seq > last).order_by(_pictures.c.seq)
        rows = connection.execute(page.limit(_AT_ONCE)).all()
        if not rows:
            return
        last = rows[-1].seq
        connection.execute(fill, [_values(row.seq, row.recipe) for row in rows])


def _values(seq: int, recipe: str) -> dict[str, object]:
    try:
        request = json.loads(recipe)["request"]
        sampler, kind = request.get("sampler") or "", _kind(request)
    except (ValueError, KeyError, TypeError, AttributeError):
        sampler, kind = "", ""
    return {"at": seq, "with_sampler": str(sampler)[:64], "of_kind": kind}


def _kind(request: dict[str, object]) -> str:
    """As `wanted.kind_of` said at this step."""
    named = {
        "interpolation": "interpolation",
        "outpaint": "outpaint",
        "mask": "inpaint",
        "inversion": "inversion",
        "init_image": "image",
        "control": "control",
        "image_prompts": "control",
    }
    return next((kind for field, kind in named.items() if request.get(field)), "text")
