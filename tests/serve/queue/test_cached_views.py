"""The quick look at a job says what the models would say, and never yesterday's news; on both kinds of store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from gouache.errors import NotFound
from gouache.pipeline.request import Request
from gouache.serve.api.jobs import seen
from gouache.serve.api.views import JobView
from gouache.serve.queue.job import Job
from gouache.serve.settings import Settings
from gouache.serve.store.tables import jobs
from gouache.serve.studio import Studio


@pytest.fixture
def studio(settings: Settings, store_url: str) -> Iterator[Studio]:
    made = Studio(settings.model_copy(update={"store": store_url}))
    yield made
    made.close()


def handed_in(studio: Studio, **fields: object) -> Job:
    request = Request.from_dict(
        {"prompt": 'a "fox"\n狐狸', "seed": 2**62, "mask": {"blur": 3}, "init_image": "a", **fields}
    )
    return studio.jobs.submit(request, owner="ada", source="v1", label="note", priority=3)[0]


def same(studio: Studio, job_id: str) -> JobView:
    """What the quick look says, after checking that it is what the slow one says."""
    quick = JobView.from_json(studio.cached_view.at(job_id, "ada").decode(), where="reply")
    slow = seen(studio, studio.jobs.get(job_id))
    without = {"eta_seconds": None}
    assert quick.model_copy(update=without) == slow.model_copy(update=without)
    return quick


def test_it_agrees_with_the_models_in_every_state(studio: Studio) -> None:
    first, second = handed_in(studio), handed_in(studio, count=2)
    assert same(studio, first.id).position == 0
    assert same(studio, second.id).position == 1
    running = studio.leases.claim("host:1:1", 30)
    assert running is not None
    assert same(studio, first.id).state == "running"
    studio.leases.progress(running, picture=0, step=3, steps=10)
    assert same(studio, first.id).progress == pytest.approx(0.3)
    parts = {"kind": "InvalidInput", "message": "m", "where": "w", "given": "g", "expected": "e", "cure": "c"}
    studio.leases.fail(running, parts)
    assert same(studio, first.id).error is not None


def test_a_change_is_seen_at_once(studio: Studio) -> None:
    job = handed_in(studio)
    assert same(studio, job.id).state == "queued"
    assert studio.cached_view.at(job.id, "ada") is studio.cached_view.at(job.id, "ada")
    studio.jobs.cancel(job.id)
    assert same(studio, job.id).state == "cancelled"


def test_somebody_elses_job_and_no_job_are_not_found(studio: Studio) -> None:
    job = handed_in(studio)
    studio.cached_view.at(job.id, "ada")
    for name, owner in ((job.id, "eve"), ("0" * 32, "ada"), ("' OR 1=1 --", "ada")):
        with pytest.raises(NotFound):
            studio.cached_view.at(name, owner)


def test_a_change_that_began_before_the_look_and_ended_after_it_is_seen(studio: Studio) -> None:
    job = handed_in(studio)
    with studio.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(label="changed"))
        assert same(studio, job.id).label == "note"
    assert same(studio, job.id).label == "changed"


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_server_that_was_started_anew_is_looked_at_again(studio: Studio) -> None:
    job = handed_in(studio)
    same(studio, job.id)
    with studio.database.write() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    assert same(studio, job.id).state == "queued"
