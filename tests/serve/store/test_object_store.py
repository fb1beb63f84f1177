"""Files in an object store: the promises that the disk makes, against moto's server."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

import pytest
from tests.serve.objects import CREDENTIALS, ObjectService, full_service
from tests.serve.served import frozen

from gouache.errors import NotFound, PictureError, StoreAway, StoreError
from gouache.serve.settings import Settings
from gouache.serve.store import object_store
from gouache.serve.store.file_store import DiskStore, FileStore, NoRoom
from gouache.serve.store.object_store import ObjectStore, open_file_store, place_of

PICTURE = f"{'0' * 32}-0000.png"


@pytest.fixture(params=["disk", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "disk":
        return DiskStore(tmp_path)
    return ObjectStore(request.getfixturevalue("objects").new_bucket())


def test_what_is_kept_is_read_listed_and_removed(store: FileStore) -> None:
    store.keep("pictures", PICTURE, b"first")
    store.keep("pictures", PICTURE, b"second")
    store.keep("thumbnails", f"{'0' * 32}-0000.webp", b"small")
    assert store.read("pictures", PICTURE) == b"second"
    assert (store.names("pictures"), store.names("attachments")) == ([PICTURE], [])
    store.discard(PICTURE)
    store.discard(PICTURE)  # Somebody else was faster.
    assert store.names("pictures") == store.names("thumbnails") == []
    with pytest.raises(NotFound):
        store.read("pictures", PICTURE)


@pytest.mark.parametrize("bad", ["../secret", "a/b", "", ".", "x.png", f"{PICTURE}/.."])
def test_names_that_gouache_did_not_make_are_refused(store: FileStore, bad: str) -> None:
    for use in (
        lambda: store.read("pictures", bad),
        lambda: store.keep("pictures", bad, b""),
        lambda: store.remove("pictures", bad),
    ):
        with pytest.raises(NotFound):
            use()


def test_attachments_are_named_by_their_hash_and_dropped_when_nobody_needs_them(store: FileStore) -> None:
    names = [store.attach(data) for data in (b"one", b"two", b"one")]
    assert names[0] == names[2] == f"sha256:{sha256(b'one').hexdigest()}"
    assert store.attachment(names[1]) == b"two"
    store.renew(names)
    digests = [name.removeprefix("sha256:") for name in names]
    assert store.drop_attachments({digests[0]}, time.time() - 60) == 0
    assert store.drop_attachments({digests[0]}, time.time() + 60) == 1
    assert store.attachment(names[0]) == b"one"
    for gone in ("../x", "sha256:../x", f"sha256:{'0' * 64}"):
        with pytest.raises(PictureError):
            store.attachment(gone)
    with pytest.raises(PictureError, match="Upload it again"):
        store.renew([f"sha256:{'0' * 64}"])


def test_an_attachment_that_was_set_aside_is_put_back_for_whoever_names_it(
    objects: ObjectService, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(objects.new_bucket())
    digests = [store.attach(data).removeprefix("sha256:") for data in (b"read", b"renewed", b"needed", b"left")]
    assert store.drop_attachments((), time.time() + 60) == 4
    assert store.attachment(f"sha256:{digests[0]}") == b"read"
    store.renew([f"sha256:{digests[1]}"])
    assert store.drop_attachments({digests[2]}, time.time() - 60) == 0
    monkeypatch.setattr(object_store, "ASIDE_SECONDS", -60.0)
    assert store.drop_attachments((), time.time() - 60) == 0
    assert store.names("attachments") == sorted(digests[:3])


def test_files_of_old_tasks_are_dropped(store: FileStore) -> None:
    store.keep("tasks", PICTURE, b"given")
    store.drop_old("tasks", time.time() - 60)
    assert store.names("tasks") == [PICTURE]
    store.drop_old("tasks", time.time() + 60)
    assert store.names("tasks") == []


def test_a_store_that_hangs_or_is_gone_is_away_and_comes_back(
    objects: ObjectService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "REPLY_SECONDS", 0.0)
    url = objects.new_bucket()
    store = ObjectStore(url)
    with frozen(objects.processes()):
        begun = time.monotonic()
        with pytest.raises(StoreAway, match="object store: given no connection") as caught:
            store.keep("pictures", PICTURE, b"data")
        assert time.monotonic() - begun < 6
    assert url not in str(caught.value)
    assert PICTURE not in str(caught.value)
    store.keep("pictures", PICTURE, b"data")
    assert store.read("pictures", PICTURE) == b"data"


def test_a_store_without_room_says_so_and_still_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_service() as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        store = ObjectStore("s3://bucket")
        with pytest.raises(NoRoom, match="no room left") as caught:
            store.keep("pictures", PICTURE, b"data")
    assert "bucket" not in str(caught.value)


def test_a_place_that_can_not_be_used_is_refused_at_the_start(
    objects: ObjectService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for url in ("http://bucket/x", "s3://", "bucket", "s3://bucket/a?b=c", "s3:///x"):
        with pytest.raises(StoreError, match="s3://BUCKET"):
            open_file_store(tmp_path, url)
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID") as caught:
        ObjectStore("s3://key:hush@bucket/x")
    assert "hush" not in str(caught.value)
    assert place_of("s3://bucket/a/b/") == "bucket/a/b"
    with pytest.raises(StoreError, match="no such bucket"):
        ObjectStore("s3://nobody-made-this/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreAway, match="no connection"):
        ObjectStore(objects.new_bucket())


def test_errors_do_not_tell_where_the_files_lie(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, files="s3://secret/place")
    hidden = settings.hide_places("NoSuchKey: s3://secret/place/pictures/x and secret/place/tasks")
    assert "secret" not in hidden


@pytest.fixture
def objects(object_service: ObjectService, monkeypatch: pytest.MonkeyPatch) -> ObjectService:
    for name, value in object_service.environment.items():
        monkeypatch.setenv(name, value)
    return object_service
