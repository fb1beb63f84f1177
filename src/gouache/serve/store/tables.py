"""The tables of the store. Times are seconds since 1970 in UTC; JSON stands as text."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = "6"
"""Version of the tables. Whoever changes a table counts it up and adds a step to `migrations/versions`."""

metadata = MetaData()
_Sequence = BigInteger().with_variant(Integer, "sqlite")

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("source", String(16), nullable=False),
    Column("label", String(256), nullable=False, default=""),
    Column("priority", Integer, nullable=False, default=0),
    Column("request", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("idempotency_key", String(256)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("worker", String(128)),
    Column("lease_until", Float),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("watched_until", Float, nullable=False, default=0.0),
    Column("picture", Integer, nullable=False, default=0),
    Column("pictures", Integer, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("passed_over", Float),
    UniqueConstraint("owner", "idempotency_key", name="one_job_per_key"),
    Index("jobs_by_turn", "state", "priority", "owner", "seq"),
    Index("jobs_by_owner", "owner", "seq"),
    Index("jobs_by_fingerprint", "owner", "fingerprint"),
    sqlite_autoincrement=True,
)

turns = Table(
    "turns",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("served", Float, nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("since", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("detail", Text, nullable=False, default=""),
    sqlite_autoincrement=True,
)

previews = Table(
    "previews",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("jpeg", LargeBinary, nullable=False),
)

boards = Table(
    "boards",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    UniqueConstraint("owner", "name", name="one_board_per_name"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("job", String(32), ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("owner", String(128), nullable=False),
    Column("created", Float, nullable=False),
    Column("file", String(64), nullable=False, unique=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("sampler", String(64), nullable=False, server_default=""),
    Column("kind", String(16), nullable=False, server_default=""),
    Column("recipe", Text, nullable=False),
    Column("starred", Boolean, nullable=False, default=False),
    Column("deleted", Float),
    Column("board", String(32), ForeignKey("boards.id", ondelete="SET NULL")),
    UniqueConstraint("job", "number", name="one_picture_per_number"),
    Index("pictures_by_owner", "owner", "seq"),
    sqlite_autoincrement=True,
)

tags = Table(
    "tags",
    metadata,
    Column("picture", String(40), ForeignKey("pictures.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(64), primary_key=True, index=True),
)

meanings = Table(
    "meanings",
    metadata,
    Column("picture", String(40), ForeignKey("pictures.id", ondelete="CASCADE"), primary_key=True),
    Column("space", String(80), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("payload", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("worker", String(128)),
    Column("lease_until", Float),
    Column("result", Text),
    Column("error", Text),
    Index("tasks_by_turn", "kind", "state", "created"),
)

presets = Table(
    "presets",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("prompt", Text, nullable=False, default=""),
    Column("negative_prompt", Text, nullable=False, default=""),
    Column("request", Text, nullable=False, default="{}"),
)

options = Table(
    "options",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("password", Text),
    Column("created", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("owner", String(128), nullable=False, index=True),
    Column("credential", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

attachments = Table(
    "attachments",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("owner", String(128), primary_key=True),
    Column("created", Float, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("path", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("modified", Float, nullable=False),
    Column("sha256", String(64), nullable=False),
)
