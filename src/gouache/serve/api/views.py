"""What the native API takes and gives, as JSON, and what a finished job means to a caller that waited for it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gouache.config import Config
from gouache.errors import GouacheError
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import Request
from gouache.serve.http.replies import TookTooLong
from gouache.serve.queue.job import FINISHED, Job, JobState
from gouache.serve.store.gallery import Picture


def plain_text(value: str) -> str:
    """The same text, if any database and file can hold it."""
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("text should be valid Unicode, without NUL")
    return value


Plain = Annotated[str, Field(max_length=200), AfterValidator(plain_text)]
"""A short text that any database can hold."""
Tag = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(plain_text)]
Sequence = Annotated[int, Field(ge=0, le=2**62)]
_DAY = 10
"""Characters of a plain date."""


def _instant(value: str) -> str:
    try:
        seconds_of(value)
    except (ValueError, OverflowError) as error:
        raise ValueError("a date or time as in ISO 8601, such as 2026-03-01 or 2026-03-01T18:30:00Z") from error
    return value


def seconds_of(text: str, *, to_its_end: bool = False) -> float:
    """Seconds since 1970 of a date or time; in UTC unless it says otherwise.

    Args:
        text: as in ISO 8601.
        to_its_end: a plain date means the end of the day.

    >>> seconds_of("1970-01-02", to_its_end=True)
    172800.0
    """
    found = datetime.fromisoformat(text)
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return found.timestamp() + (_SECONDS_OF_DAY if to_its_end and len(text) == _DAY else 0)


_SECONDS_OF_DAY = 24 * 3600
Instant = Annotated[str, Field(max_length=40), AfterValidator(_instant)]
"""A date, or a time."""


class JobIn(Config):
    """A request for pictures."""

    request: Request
    """What to paint. Pictures in it are named `sha256:<hex>`, as `POST /v1/attachments` answers."""
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    """Higher goes first."""
    label: Plain = ""
    """A note of your own."""
    styles: Annotated[tuple[Plain, ...], Field(max_length=20)] = ()
    """Names of your styles, laid around the prompt one after the other."""
    choices: bool = False
    """Whether `{a|b}` and `__name__` in the prompt are chosen from, by each picture's seed; `name.txt` in the folder
    `wildcards` of the server's data has one choice a line. Several pictures become a job each, with its own prompt."""


class PositionIn(Config):
    """Where a waiting job is to go."""

    before: Annotated[str, Field(max_length=64), AfterValidator(plain_text)] | None
    """Id of the job that it goes before; null for the end."""


class ErrorView(Config):
    """Why a job failed."""

    kind: str
    message: str
    where: str
    given: str
    expected: str
    cure: str


class JobFacts(Config):
    """A job as it stands, without what it asks for."""

    id: str
    state: JobState
    source: str
    label: str
    priority: int
    created: float
    """Seconds since 1970."""
    started: float | None
    finished: float | None
    attempts: int
    cancel_requested: bool
    position: int | None
    """Jobs that go before it; null unless it waits."""
    progress: float
    """Done, 0..1."""
    eta_seconds: float | None
    """At the pace so far; null before the first step."""
    picture: int
    """Pictures finished."""
    picture_count: int
    step: int
    steps: int
    pictures: tuple[str, ...]
    """Ids of the finished pictures."""
    error: ErrorView | None
    seq: int
    """For `before` in the list."""


class JobView(JobFacts):
    """A job as it stands."""

    request: Request


class PictureView(Config):
    """A finished picture."""

    id: str
    job: str
    number: int
    created: float
    width: int
    height: int
    bytes: int
    sha256: str
    prompt: str
    seed: str
    """As text: it may be larger than JavaScript's numbers."""
    model: str
    sampler: str
    kind: str
    """What it was painted from: text, image, inpaint, outpaint, inversion, interpolation, control, edited."""
    starred: bool
    board: str | None
    tags: tuple[str, ...]
    file: str
    """Path of the PNG."""
    thumbnail: str
    seq: int
    score: float | None = None
    """In a search by meaning: cosine with what was looked for, -1..1."""


class Jobs(Config):
    """A page of jobs, newest first."""

    jobs: tuple[JobView, ...]


class Compared(Config):
    """How a search by meaning was done."""

    by: Literal["pictures", "prompts"]
    """pictures: a picture tower looked at them; prompts: only the texts they were painted from were compared."""
    model: str
    """sha256 of the model that compared."""


class Pictures(Config):
    """A page of pictures, newest first; in a search by meaning nearest first."""

    pictures: tuple[PictureView, ...]
    meaning: Compared | None = None
    """Null unless it was a search by meaning."""


class PictureCounts(Config):
    """How many pictures fit, and for each filter how many would by its choices, the most frequent first."""

    total: int
    starred: int
    models: dict[str, int]
    samplers: dict[str, int]
    kinds: dict[str, int]
    """What they were painted from: text, image, inpaint, outpaint, inversion, interpolation, control, edited."""
    boards: dict[str, int]
    """By id; an empty one stands for pictures on none."""
    tags: dict[str, int]


class Change(Config):
    """What to change about a picture; what is left out stays."""

    starred: bool | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=50)] | None = None
    board: Annotated[str, Field(max_length=32), AfterValidator(plain_text)] | None = None
    """Id of a board; an empty text takes the picture off its board."""


class BoardIn(Config):
    """A new board."""

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(plain_text)]


class Board(Config):
    """A board."""

    id: str
    name: str
    pictures: int = 0
    """How many are on it."""


class TagCount(Config):
    """A tag and how many pictures have it."""

    tag: str
    pictures: int


class PresetIn(Config):
    """A style: texts that are laid around a prompt; `{prompt}` stands for it."""

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(plain_text)]
    prompt: Annotated[str, Field(max_length=10_000), AfterValidator(plain_text)] = ""
    negative_prompt: Annotated[str, Field(max_length=10_000), AfterValidator(plain_text)] = ""


class Attachment(Config):
    """An uploaded picture."""

    name: str
    """What to write into a request."""
    width: int
    height: int


class Model(Config):
    """A model; the first four keys are those that OpenAI's clients know."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gouache"
    title: str
    size: int
    sha256: str | None


def job_view(job: Job, pictures: list[str], position: int | None) -> JobView:
    """A job for the native interface."""
    error = job.error_parts()
    return JobView(
        id=job.id,
        state=job.state,
        source=job.source,
        label=job.label,
        priority=job.priority,
        created=job.created,
        started=job.started,
        finished=job.finished,
        attempts=job.attempts,
        cancel_requested=job.cancel_requested,
        position=position,
        progress=job.fraction,
        eta_seconds=job.eta(time.time()),
        picture=len(pictures),
        picture_count=job.pictures,
        step=job.step,
        steps=job.steps,
        pictures=tuple(pictures),
        request=job.parsed(),
        error=None if error is None else ErrorView(**error),
        seq=job.seq,
    )


def picture_view(picture: Picture, tags: list[str], score: float | None = None) -> PictureView:
    """A picture for the native interface."""
    return PictureView(
        id=picture.id,
        job=picture.job,
        number=picture.number,
        created=picture.created,
        width=picture.width,
        height=picture.height,
        bytes=picture.bytes,
        sha256=picture.sha256,
        prompt=picture.prompt,
        seed=str(picture.seed),
        model=picture.model,
        sampler=picture.sampler,
        kind=picture.kind,
        starred=picture.starred,
        board=picture.board,
        tags=tuple(tags),
        file=f"/v1/pictures/{picture.id}/file",
        thumbnail=f"/v1/pictures/{picture.id}/thumbnail",
        seq=picture.seq,
        score=None if score is None else round(score, 4),
    )


def recipe_of(picture: Picture) -> Recipe:
    """A picture's recipe without the place where the model lay, which is nobody's business outside."""
    values = json.loads(picture.recipe)
    values["model"]["path"] = None
    return Recipe.from_dict(values, where=f"picture {picture.id}")


def raise_unless_painted(job: Job) -> None:
    """Raise what a job that is not done stands for; a cancelled one is answered with what there is."""
    if job.state not in FINISHED:
        raise TookTooLong(
            f"job {job.id}",
            given="a job that still runs",
            expected="its end",
            cure=f"It goes on; GET /v1/jobs/{job.id} tells when it is done.",
        )
    parts = job.error_parts()
    if job.state == "failed" and parts is not None:
        raise GouacheError.from_dict(parts)
