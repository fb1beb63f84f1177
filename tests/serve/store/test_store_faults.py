"""What counts as a store that is away, who is told so, and who waits for it; each by a fault that is really there."""

from __future__ import annotations

import base64
import io
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from sqlalchemy.exc import DBAPIError, IntegrityError
from tests.serve.served import Lock, SmallDisk, can_mount

from gouache.errors import StoreAway
from gouache.pipeline.request import Request
from gouache.serve.queue.leases import Leases
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database
from gouache.serve.store.file_store import DiskStore, NoRoom
from gouache.serve.store.outages import outlast
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

with_small_disk = pytest.mark.skipif(not can_mount(), reason="a small disk needs leave to mount one")


def write(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('big' || random(), hex(zeroblob(100000)))")


def lock(database: Database, path: Path) -> None:
    other = Lock(path)
    other.take()
    threading.Timer(4.0, other.give).start()
    del database


def take_the_last_page(database: Database, path: Path) -> None:
    """SQLite's own limit gives the very error of a full disk."""
    del path
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


def damage(database: Database, path: Path) -> None:
    database.engine.dispose()
    path.write_bytes(b"no database" * 1000)


def become_a_folder(database: Database, path: Path) -> None:
    database.engine.dispose()
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink()
    path.mkdir()


def only_read(database: Database, path: Path) -> None:
    del path
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lock, "a lock that somebody else holds"),
        (take_the_last_page, "a full disk"),
        (damage, "a damaged file"),
        (become_a_folder, "a file that can't be opened"),
        (only_read, "a file that can't be written"),
    ],
)
def test_a_database_that_cant_be_used_is_away(
    fault: Callable[[Database, Path], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite3"
    database = Database(f"sqlite:///{path}")
    write(database)
    fault(database, path)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(StoreAway, match=said):
            write(database)
        assert database.away
    assert time.monotonic() - begun < 3.5
    database.close()


def test_an_error_of_our_own_is_not_taken_for_an_outage(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    for statement, kind in (
        ("SELECT * FROM nowhere", DBAPIError),
        ("INSERT INTO meta VALUES ('schema', 'x')", IntegrityError),
    ):
        with pytest.raises(kind) as caught, database.write() as connection:
            connection.exec_driver_sql(statement)
        assert not isinstance(caught.value, StoreAway)
    assert not database.away
    database.close()


def test_after_a_fault_the_store_is_as_before(tmp_path: Path) -> None:
    """A transaction that failed leaves nothing open: neither its lock nor its rows."""
    path = tmp_path / "store.sqlite3"
    database = Database(f"sqlite:///{path}")
    take_the_last_page(database, path)

    def half() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO meta VALUES ('half', 'x')")
            connection.exec_driver_sql("INSERT INTO meta VALUES ('big', hex(zeroblob(1000000)))")

    with pytest.raises(StoreAway):
        half()
    other = sqlite3.connect(path, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.rollback()
    assert other.execute("SELECT count(*) FROM meta WHERE key = 'half'").fetchone() == (0,)
    other.close()
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")
    database.check()
    assert not database.away
    database.close()


def test_who_comes_while_the_store_is_locked_is_told_in_their_own_words(
    make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client()
    body = {"prompt": "x", "width": 64, "height": 64}
    with Lock(tmp_path / "data0" / "studio.sqlite3"):
        for path, sent in (
            ("/v1/jobs", {"request": body}),
            ("/sdapi/v1/txt2img", body),
            ("/v1/images/generations", {"prompt": "x"}),
            ("/v1/boards", {"name": "cats"}),
        ):
            begun = time.monotonic()
            answer = client.post(path, json=sent)
            assert time.monotonic() - begun < 2
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), answer.text
            told = answer.json()
            if path.startswith("/sdapi"):
                assert (told["detail"], told["error"]) == (told["errors"], "error")
            else:
                assert told["error"]["type"] == "server_error"
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "the store has a lock that somebody else holds"})
        assert client.get("/v1/jobs").json() == {"jobs": []}, "who only reads is not in the way of who writes"
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/jobs", json={"request": body}).status_code == 202


def test_probes_answer_head_and_options(make_client: MakeClient) -> None:
    client = make_client()
    for path in ("/healthz", "/readyz"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == client.get(path).headers["content-length"]
        options = client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


def test_what_must_be_done_is_done_once_the_store_is_back(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    with_lock, tries = Lock(tmp_path / "store.sqlite3"), []
    with_lock.take()
    threading.Timer(0.8, with_lock.give).start()
    database.away = True  # So that each try is short.

    def work() -> str:
        tries.append(time.monotonic())
        write(database)
        return "done"

    assert outlast(work, who="test") == "done"
    assert len(tries) > 1
    with pytest.raises(StoreAway), Lock(tmp_path / "store.sqlite3"):
        outlast(work, who="test", seconds=0.2)
    database.close()


def test_a_claim_whose_answer_was_lost_is_given_back_uncounted(studio: Studio) -> None:
    job, _ = studio.submit(Request(prompt="x", seed=1), owner="ada", source="v1")
    leases = Leases(studio.database)
    assert leases.claim("host:1:1", 60) is not None
    assert leases.take_back("host:2:2") == 0
    assert leases.take_back("host:1:1") == 1
    seen = studio.jobs.get(job.id)
    assert (seen.state, seen.attempts, seen.worker) == ("queued", 0, None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk", 1)
    yield made
    made.remove()


@with_small_disk
def test_a_disk_that_is_full_or_read_only_is_away_and_leaves_nothing_half_written(small_disk: SmallDisk) -> None:
    store = DiskStore(small_disk.folder)
    small_disk.fill()
    with pytest.raises(NoRoom, match="no space left"):
        store.keep("pictures", f"{'0' * 32}-0000.png", bytes(2**20))
    with pytest.raises(NoRoom):
        store.attach(bytes(2**20))
    small_disk.empty()
    store.keep("pictures", f"{'0' * 32}-0000.png", b"picture")
    small_disk.become_read_only()
    with pytest.raises(StoreAway, match="read-only"):
        store.keep("pictures", f"{'1' * 32}-0000.png", b"other")
    assert [path.name for path in (small_disk.folder / "pictures").iterdir()] == [f"{'0' * 32}-0000.png"]


@with_small_disk
def test_every_route_that_writes_files_says_that_the_disk_is_full(make_client: MakeClient, tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "data0", 4)
    try:
        client = make_client(limits=Limits(free_bytes=1))
        buffer = io.BytesIO()
        Image.effect_noise((512, 512), 90).save(buffer, "PNG")
        picture = base64.b64encode(buffer.getvalue()).decode()
        body = {"prompt": "x", "width": 64, "height": 64}
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/v1/attachments", {"content": buffer.getvalue()}),
            ("PUT", "/v1/training/sets/cats/one.png", {"content": buffer.getvalue()}),
            ("POST", "/v1/jobs", {"json": {"request": {**body, "prompt": "x" * 19_000}}}),
            ("POST", "/v1/boards", {"json": {"name": "cats"}}),
            ("POST", "/sdapi/v1/txt2img", {"json": body}),
            ("POST", "/sdapi/v1/img2img", {"json": {**body, "init_images": [picture]}}),
            ("POST", "/sdapi/v1/options", {"json": {"CLIP_stop_at_last_layers": 2}}),
            ("POST", "/v1/images/generations", {"json": {"prompt": "x"}}),
            ("POST", "/v1/images/edits", {"data": {"prompt": "x"}, "files": {"image": buffer.getvalue()}}),
            ("POST", "/v1/images/variations", {"files": {"image": buffer.getvalue()}}),
        ]
        disk.fill()
        for method, path, sent in requests:
            begun = time.monotonic()
            answer = client.request(method, path, **sent)
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "2"), (path, answer.text)
            assert time.monotonic() - begun < 2, path
            assert str(tmp_path) not in answer.text
        disk.empty()
        assert client.request("PUT", "/v1/training/sets/cats/one.png", content=buffer.getvalue()).status_code < 300
        assert client.post("/v1/jobs", json={"request": body}).status_code == 202
    finally:
        disk.remove()
