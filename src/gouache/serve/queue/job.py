"""What a job is."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

from gouache.pipeline.request import Request
from gouache.serve.store.tables import jobs

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Source = Literal["v1", "a1111", "openai", "page", "cli", "edit", "explain"]
"""The interface that a job came through; "explain" is a job that keeps an explanation in place of a picture."""
Ending = Literal["drop", "keep", "skip"]
FINISHED: tuple[JobState, ...] = ("done", "failed", "cancelled")
OPEN: tuple[JobState, ...] = ("queued", "running")
MAX_ATTEMPTS = 3
"""A job that took its worker down so often is not given to a fourth."""
MAX_KEY = 255


@lru_cache(maxsize=256)
def parsed(text: str) -> Request:
    """A stored request. Requests are frozen, so that one object serves everybody who looks at the same job."""
    return Request.from_json(text, where="job")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the table; times are seconds since 1970."""

    seq: int
    id: str
    state: JobState
    owner: str
    source: Source
    label: str
    priority: int
    request: str
    attempts: int
    created: float
    started: float | None
    finished: float | None
    worker: str | None
    cancel_requested: bool
    picture: int
    pictures: int
    step: int
    steps: int
    error: str | None

    def parsed(self) -> Request:
        """What to paint."""
        return parsed(self.request)

    @property
    def fraction(self) -> float:
        """Done, 0..1."""
        if self.state == "done":
            return 1.0
        return min(1.0, (self.picture + (self.step / self.steps if self.steps else 0.0)) / self.pictures)

    def eta(self, now: float) -> float | None:
        """Seconds left at the pace so far; None before the first step."""
        if self.state != "running" or self.started is None or self.fraction <= 0:
            return None
        return max(0.0, (now - self.started) * (1 / self.fraction - 1))

    def error_parts(self) -> dict[str, str] | None:
        """The error as `GouacheError.to_dict` wrote it."""
        return None if self.error is None else dict(json.loads(self.error))


@dataclass(frozen=True, slots=True)
class EndedJob:
    """When a job that ended came, began and ended, in seconds since 1970."""

    id: str
    state: str
    created: float
    started: float | None
    finished: float


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job."""

    seq: int
    job: str
    time: float
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told between two steps."""

    held: bool
    cancel: bool
    watched: bool


COLUMNS = [jobs.c[field.name] for field in fields(Job)]
"""What a `Job` is read from."""
