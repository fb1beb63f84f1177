"""What nobody needs any longer goes, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gouache.errors import PictureError
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe
from gouache.pipeline.request import Request
from gouache.serve.queue.job import Job
from gouache.serve.store.file_store import DiskStore, FileStore
from gouache.serve.store.gallery import UNDO_SECONDS, row_of
from gouache.serve.store.upkeep import ATTACHMENT_SECONDS, EVERY_SECONDS, FIRST_SECONDS, SHORT_SECONDS
from gouache.serve.studio import Studio

DAY = 24 * 3600.0


def png(shade: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, "PNG")
    return buffer.getvalue()


def submitted(studio: Studio, name: str) -> Job:
    job, _ = studio.submit(Request(prompt="x", init_image=name), owner="ada", source="v1")
    return job


def end(studio: Studio, job: Job, picture: bytes | None = None) -> None:
    """Bring a job to its end, with a picture or as failed."""
    held = studio.leases.claim("w", 60)
    assert held is not None
    assert held.id == job.id
    if picture is None:
        studio.leases.fail(held, {"message": "no"})
        return
    name = f"{job.id}-0000.png"
    studio.file_store.keep("pictures", name, picture)
    machine = Machine(device="cpu", dtype="float32", processor="x", threads=1)
    model = ModelRef(name="m", family="sd1")
    recipe = Recipe(request=job.parsed(), model=model, machine=machine, versions={}, steps=())
    with studio.database.write() as connection:
        row = row_of(held, 0, name, picture, read_picture(picture).size, recipe)
        studio.leases.add_picture(connection, row)
        assert studio.leases.finish(connection, held)


def kept(studio: Studio) -> set[str]:
    return {path.name for path in (studio.settings.data / "attachments").iterdir()}


def test_attachments_stay_while_a_job_waits_may_be_retried_or_has_pictures(studio: Studio) -> None:
    names = {
        word: studio.attachments.keep("ada", png(shade))
        for shade, word in enumerate(("failed", "done", "open", "unused"))
    }
    digests = {word: name.removeprefix("sha256:") for word, name in names.items()}
    now = time.time()
    failed = submitted(studio, names["failed"])
    end(studio, failed)
    done = submitted(studio, names["done"])
    end(studio, done, png(9))
    submitted(studio, names["open"])
    assert studio.housekeeping.clean(now + ATTACHMENT_SECONDS - 60) == (0, 0)
    assert kept(studio) == set(digests.values())
    # A week later the failed job's picture and the one that no job ever named go.
    assert studio.housekeeping.clean(now + ATTACHMENT_SECONDS + 60) == (0, 2)
    assert kept(studio) == {digests["done"], digests["open"]}
    with pytest.raises(PictureError, match="Upload it again"):
        studio.retry(failed.id, "ada")
    assert studio.jobs.get(failed.id).state == "failed"
    # The done job's stays with its picture: through its deletion, until that can't be undone any longer.
    studio.pictures.delete(f"{done.id}-0000", "ada")
    assert studio.housekeeping.clean(now + UNDO_SECONDS - 60) == (0, 0)
    restored = studio.pictures.restore(f"{done.id}-0000", "ada")
    assert restored.job == done.id
    studio.thumbnail(restored)
    studio.pictures.delete(f"{done.id}-0000", "ada")
    assert studio.housekeeping.clean(now + UNDO_SECONDS + 60) == (1, 1)
    assert kept(studio) == {digests["open"]}
    for catalog in ("pictures", "thumbnails"):
        assert list((studio.settings.data / catalog).iterdir()) == []
    assert studio.pictures.search(deleted=True) == []


def test_uploading_naming_and_retrying_count_from_then_on(studio: Studio) -> None:
    name = studio.attachments.keep("ada", png(1))
    path = studio.settings.data / "attachments" / name.removeprefix("sha256:")

    def age() -> float:
        return time.time() - path.stat().st_mtime

    def grow_old() -> None:
        os.utime(path, (time.time() - 6 * DAY,) * 2)

    grow_old()
    assert studio.attachments.keep("ada", png(1)) == name
    assert age() < 60
    grow_old()
    job = submitted(studio, name)
    assert age() < 60
    end(studio, job)
    grow_old()
    assert studio.retry(job.id, "ada").state == "queued"
    assert age() < 60


def test_one_that_is_renewed_at_the_last_moment_stays(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renewal falls between the look at its age and its removal."""
    name = studio.attachments.keep("ada", png(1)).removeprefix("sha256:")
    path = studio.settings.data / "attachments" / name
    os.utime(path, (1.0, 1.0))
    rename = Path.rename

    def renewed_before(self: Path, target: Path) -> Path:
        if self == path:
            os.utime(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renewed_before)
    assert studio.file_store.drop_attachments((), time.time() - DAY) == 0
    assert kept(studio) == {name}


def test_what_a_crash_left_aside_goes_the_next_time(studio: Studio) -> None:
    name = studio.attachments.keep("ada", png(1)).removeprefix("sha256:")
    path = studio.settings.data / "attachments" / name
    os.utime(path, (1.0, 1.0))
    path.rename(path.with_name(f".{name}"))
    assert studio.file_store.drop_attachments((), time.time() - DAY) == 1
    assert kept(studio) == set()


def test_a_full_disk_shortens_the_wait_and_takes_nothing_that_is_needed(studio: Studio) -> None:
    unused, named = studio.attachments.keep("ada", png(1)), studio.attachments.keep("ada", png(2))
    submitted(studio, named)
    assert isinstance(studio.file_store, DiskStore)
    studio.file_store.reserve = 2**62  # More than any disk has: nothing new is taken.
    now = time.time()
    assert studio.housekeeping.clean(now + SHORT_SECONDS - 60) == (0, 0)
    assert studio.housekeeping.clean(now + SHORT_SECONDS + 60) == (0, 1)
    assert kept(studio) == {named.removeprefix("sha256:")}
    assert unused != named


def test_the_thread_begins_and_ends_with_the_server(studio: Studio) -> None:
    assert 0 < FIRST_SECONDS < EVERY_SECONDS < ATTACHMENT_SECONDS
    studio.housekeeping.start()
    studio.housekeeping.stop()


def test_other_files_are_left_alone(studio: Studio) -> None:
    file_store: FileStore = studio.file_store
    other = studio.settings.data / "attachments" / "notes.txt"
    other.write_text("mine")
    os.utime(other, (1.0, 1.0))
    assert file_store.drop_attachments((), time.time()) == 0
    assert other.is_file()
