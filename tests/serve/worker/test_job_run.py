"""A job that is stopped while it is painted: what becomes of the picture under way, and of those after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from PIL import Image

from gouache.pipeline.generate.generation import Event, Progress
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.pipeline import Pipeline, untrained_bundle
from gouache.pipeline.request import Request
from gouache.serve.queue.job import Ending, Job
from gouache.serve.store.gallery import Picture
from gouache.serve.studio import Studio
from gouache.serve.worker.job_run import JobContext, JobRun, _jpeg
from gouache.serve.worker.loaded_models import LoadedModels

SMALL = {"prompt": "a", "seed": 5, "width": 32, "height": 32, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(untrained_bundle())


class Hand:
    """A painter during whose work somebody presses a button: at one step of one picture, once."""

    def __init__(self, pipeline: Pipeline, studio: Studio, ending: Ending, picture: int, step: int) -> None:
        self.pipeline, self.studio, self.ending, self.at = pipeline, studio, ending, (picture, step)
        self.job = ""

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        for event in self.pipeline.run(request, attachments):
            if self.job and isinstance(event, Progress) and (event.picture, event.step) == self.at:
                self.studio.jobs.cancel(self.job, ending=self.ending)
                self.job = ""
            yield event


def painted(
    studio: Studio, pipeline: Pipeline, ending: Ending, *, picture: int = 0, step: int = 2, **changes: object
) -> tuple[Job, list[Picture]]:
    job, _ = studio.jobs.submit(Request.from_dict({**SMALL, **changes}), owner="ada", source="v1")
    hand = Hand(pipeline, studio, ending, picture, step)
    hand.job = job.id
    attempt(studio, hand)
    return studio.jobs.get(job.id), studio.pictures.of_job(job.id)


def attempt(studio: Studio, hand: Hand) -> None:
    models = LoadedModels(lambda *_: hand, 2**30)
    context = JobContext(
        studio.database, studio.leases, studio.file_store, studio.catalog, models, lambda _: None, lambda: False
    )
    held = studio.leases.claim("host:1:1", 60)
    assert held is not None
    JobRun(context, held).paint()


def pixels(studio: Studio, picture: Picture) -> bytes:
    return read_picture(studio.file_store.read("pictures", picture.file)).tobytes()


def test_cancelling_drops_the_picture_under_way(studio: Studio, pipeline: Pipeline) -> None:
    job, kept = painted(studio, pipeline, "drop", count=2)
    assert (job.state, kept) == ("cancelled", [])


def test_interrupting_keeps_it_as_it_stands(studio: Studio, pipeline: Pipeline) -> None:
    job, kept = painted(studio, pipeline, "keep", count=2)
    assert (job.state, len(kept)) == ("cancelled", 1)
    assert kept[0].parsed().notes[-1] == "interrupted after step 2 of 3"
    whole = pipeline.paint(Request.from_dict(SMALL))[0]
    assert pixels(studio, kept[0]) != whole.image.tobytes()
    assert kept[0].parsed().steps == whole.recipe.steps[:2]


@pytest.mark.parametrize("changes", [{}, {"subseed": 9, "subseed_strength": 0.4}])
def test_skipping_goes_on_with_the_next_picture_just_as_it_would_have_been(
    studio: Studio, pipeline: Pipeline, changes: dict[str, Any]
) -> None:
    job, kept = painted(studio, pipeline, "skip", picture=1, count=3, **changes)
    assert (job.state, [picture.number for picture in kept]) == ("done", [0, 1, 2])
    whole = pipeline.paint(Request.from_dict({**SMALL, "count": 3, **changes}))
    same = [pixels(studio, picture) == one.image.tobytes() for picture, one in zip(kept, whole, strict=True)]
    assert same == [True, False, True]
    assert [picture.seed for picture in kept] == [one.seed for one in whole]


def test_skipping_the_last_picture_ends_the_job(studio: Studio, pipeline: Pipeline) -> None:
    job, kept = painted(studio, pipeline, "skip", picture=1, count=2)
    assert (job.state, len(kept)) == ("cancelled", 2)


@pytest.mark.parametrize(("ending", "picture"), [("keep", 1), ("keep", 0), ("drop", 1)])
def test_a_retried_job_ends_with_exactly_its_pictures(
    studio: Studio, pipeline: Pipeline, ending: Ending, picture: int
) -> None:
    """What was finished stays, what was half painted is painted whole; nothing else is listed, or lies on the disk."""
    job, kept = painted(studio, pipeline, ending, picture=picture, count=3)
    before = {one.number: one.id for one in kept}
    assert len(kept) == picture + (ending == "keep")
    for one in kept:
        studio.thumbnail(one)
    assert studio.retry(job.id, "ada").state == "queued"
    assert [one.number for one in studio.pictures.of_job(job.id)] == list(range(picture))
    attempt(studio, Hand(pipeline, studio, "drop", 0, 0))
    done = studio.pictures.of_job(job.id)
    assert studio.jobs.get(job.id).state == "done"
    whole = pipeline.paint(Request.from_dict({**SMALL, "count": 3}))
    assert [pixels(studio, one) for one in done] == [one.image.tobytes() for one in whole]
    assert {path.name for path in (studio.settings.data / "pictures").iterdir()} == {one.file for one in done}
    assert len(list((studio.settings.data / "thumbnails").iterdir())) == picture
    # Browsers keep what they saw under an id: the half-painted picture had another.
    assert all((before.get(one.number) == one.id) == (one.number < picture) for one in done)


def test_a_retried_job_that_is_cancelled_again_keeps_nothing_half_painted(studio: Studio, pipeline: Pipeline) -> None:
    job, _ = painted(studio, pipeline, "keep", count=2)
    studio.retry(job.id, "ada")
    hand = Hand(pipeline, studio, "drop", 0, 2)
    hand.job = job.id
    attempt(studio, hand)
    assert (studio.jobs.get(job.id).state, studio.pictures.of_job(job.id)) == ("cancelled", [])


def test_a_skipped_picture_stays_as_it_is_when_the_worker_dies_after_it(studio: Studio, pipeline: Pipeline) -> None:
    job, _ = studio.jobs.submit(Request.from_dict({**SMALL, "count": 2}), owner="ada", source="v1")

    class Dying(Hand):
        def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
            for event in super().run(request, attachments):
                if request.count == 1:
                    raise KeyboardInterrupt
                yield event

    hand = Dying(pipeline, studio, "skip", 0, 2)
    hand.job = job.id
    with pytest.raises(KeyboardInterrupt):
        attempt(studio, hand)
    studio.leases.release("host:1:1")
    attempt(studio, Hand(pipeline, studio, "drop", 0, 0))
    kept = studio.pictures.of_job(job.id)
    assert [(one.number, one.id.endswith("p")) for one in kept] == [(0, True), (1, False)]
    assert studio.jobs.get(job.id).state == "done"


def test_a_preview_shows_what_is_transparent_as_white() -> None:
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    clear = noise.copy()
    clear.putalpha(0)
    shown = read_picture(_jpeg(clear), max_pixels=None).convert("RGB")
    assert min(low for low, _ in shown.getextrema()) >= 250  # type: ignore[misc]
    assert len(set(read_picture(_jpeg(noise), max_pixels=None).convert("L").tobytes())) > 50
