"""A store that an older gouache wrote is upgraded, whole, and one of a newer gouache is refused."""

from __future__ import annotations

import sqlite3
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, select, text, update

from gouache.errors import GouacheError, InvalidInput, ModelNotFound, StoreError
from gouache.pipeline.request import Request
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.queue import JobQueue
from gouache.serve.queue.tasks import Tasks
from gouache.serve.settings import Limits
from gouache.serve.store import migrations, tables
from gouache.serve.store.accounts import Accounts
from gouache.serve.store.database import Database
from gouache.serve.store.gallery import Gallery

OLD = Path(__file__).parent / "old"
"""Dumps of stores that gouache itself filled, made with its code before there were migrations."""
NEW = ("sessions", "attachments", "pauses")
"""Tables that version 1 did not have."""
KEPT = [table for table in tables.metadata.sorted_tables if table.name not in ("meta", "tasks", *NEW)]


@pytest.fixture
def old_url(store_url: str) -> str:
    """A store of version 1, of each kind."""
    if store_url.startswith("sqlite"):
        file = sqlite3.connect(store_url.removeprefix("sqlite:///"))
        file.executescript((OLD / "v1_sqlite.sql").read_text(encoding="utf-8"))
        file.close()
    else:
        engine = create_engine(store_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in (OLD / "v1_postgresql.sql").read_text(encoding="utf-8").split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement.replace("%", "%%"))
        engine.dispose()
    return store_url


def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table that is there, without gouache's own code."""
    engine = create_engine(url)
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        rows = {
            table.name: [dict(row._mapping) for row in connection.execute(select(table))]
            for table in found.sorted_tables
        }
    engine.dispose()
    return rows


def test_nothing_of_an_old_store_is_lost(old_url: str) -> None:
    before = everything(old_url)
    Database(old_url).close()
    after = everything(old_url)
    for table in KEPT:
        assert before[table.name], f"the fixture has no row of {table.name}"
        columns = before[table.name][0].keys()
        kept = [{name: row[name] for name in columns} for row in after[table.name]]
        assert [row for row in kept if row in before[table.name]] == before[table.name]
        added = [row for row in kept if row not in before[table.name]]
        # Whoever has a token has an account.
        assert [row["name"] for row in added] == (["ada"] if table.name == "accounts" else [])
    assert {row["key"]: row["value"] for row in after["meta"]} == {
        row["key"]: row["value"] for row in before["meta"]
    } | {"schema": tables.SCHEMA}


def test_what_waited_for_a_worker_still_waits_and_answers_are_still_there(old_url: str) -> None:
    before = everything(old_url)
    database = Database(old_url)
    tasks = Tasks(database)
    try:
        assert len(everything(old_url)["tasks"]) == len(before["errands"]) + len(before["questions"])
        asked = {row["id"]: tasks.get(row["id"]) for row in before["errands"] + before["questions"]}
        assert {name[0]: task and task.state for name, task in asked.items()} == {
            "a": "waiting",
            "b": "failed",
            "c": "running",
            "1": "done",
            "2": "waiting",
            "3": "failed",
        }
        waiting, failed, answered, unknown = (asked[name] for name in ("a" * 32, "b" * 32, "1" * 64, "3" * 64))
        assert waiting is not None
        assert waiting.payload == {"model": "tiny", "factor": 2.5}
        assert answered is not None
        assert answered.payload == {"text": "a fox on water"}
        assert answered.result == {"space": "pictures:" + "cd" * 32, "vector": b64encode(b"\x00<\x00\x00").decode()}
        for task, kind, cure in (
            (failed, InvalidInput, "Try a smaller one."),
            (unknown, ModelNotFound, "Search by words."),
        ):
            assert task is not None
            error = GouacheError.from_dict(task.error or {})
            assert (type(error), error.cure) == (kind, cure)
        Leases(database).release("old:1:1")
        died = tasks.get("c" * 32)
        assert died is not None
        assert "took the worker down" in (died.error or {})["message"]
    finally:
        database.close()


def test_attachments_belong_to_whoever_named_them_and_tokens_go_on_without_an_end(old_url: str) -> None:
    digest = "ab" * 32
    engine = create_engine(old_url)
    with engine.begin() as connection:
        named = update(tables.jobs).where(tables.jobs.c.owner == "ada")
        connection.execute(named.values(request=f'{{"init_image":"sha256:{digest}"}}'))
    engine.dispose()
    Database(old_url).close()
    after = everything(old_url)
    assert [(row["digest"], row["owner"]) for row in after["attachments"]] == [(digest, "ada")]
    assert {row["expires"] for row in after["tokens"]} == {None}
    assert after["sessions"] == []


def test_an_upgraded_store_works_as_before(old_url: str) -> None:
    database = Database(old_url)
    try:
        jobs, leases, pictures = JobQueue(database, Limits()), Leases(database), Gallery(database)
        assert jobs.counts() == {"queued": 1, "running": 1, "done": 1, "failed": 1, "cancelled": 1}
        (picture,) = pictures.search(words="fox", tag="cold", starred=True)
        assert picture.parsed().request.prompt == "a red fox, 狐狸"
        (failed,) = jobs.listing(states=["failed"])
        assert failed.error_parts() == {
            "kind": "ModelNotFound",
            "where": "model",
            "given": "'gone'",
            "expected": "one of pocket",
            "cure": "Choose one of them.",
            "message": "model: given 'gone', expected one of pocket. Choose one of them.",
        }
        found = Accounts(database).by_token("an old token of sixteen characters")
        assert found is not None
        assert found.owner == "ada"
        assert len(database.secret()) == 32
        again, new = jobs.submit(Request(prompt="a red fox, 狐狸", seed=1), owner="ada", source="v1", key="k1")
        assert (again.state, new) == ("done", False)
        added, _ = jobs.submit(Request(prompt="new", seed=1), owner="ada", source="v1", priority=9)
        assert added.seq == 6
        claimed = leases.claim("w", 60)
        assert claimed is not None
        assert claimed.id == added.id
        assert leases.release("old:1:1") == 1
    finally:
        database.close()


def test_an_upgraded_store_has_the_tables_of_a_new_one(old_url: str) -> None:
    database = Database(old_url)
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    database.close()


def test_processes_that_start_together_upgrade_once(old_url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            Database(old_url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [row["value"] for row in everything(old_url)["meta"] if row["key"] == "schema"] == [tables.SCHEMA]


def test_a_newer_store_is_refused_by_name_and_left_alone(store_url: str) -> None:
    database = Database(store_url)
    newer = str(int(tables.SCHEMA) + 1)
    with database.write() as connection:
        connection.execute(update(tables.meta).where(tables.meta.c.key == "schema").values(value=newer))
    database.close()
    before = everything(store_url)
    with pytest.raises(StoreError, match=f"tables of version {newer}, expected version {tables.SCHEMA} or older"):
        Database(store_url)
    assert everything(store_url) == before


def test_a_step_that_fails_leaves_the_store_as_it_was(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(old_url)

    class Broken:
        revision = "broken"

        class module:  # noqa: N801
            @staticmethod
            def upgrade() -> None:
                from alembic import op

                op.drop_table("tags")
                op.get_bind().execute(text("SELECT nonsense"))

    monkeypatch.setattr(tables, "SCHEMA", "broken")
    monkeypatch.setattr(ScriptDirectory, "iterate_revisions", lambda *_: [Broken])
    with pytest.raises(Exception, match="nonsense"):
        Database(old_url)
    assert everything(old_url) == before


def test_the_newest_step_is_the_version_of_the_tables() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_heads() == [tables.SCHEMA]
