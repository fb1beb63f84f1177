"""`/v1/events`: everything that concerns a user, over one connection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gouache.config import Config
from gouache.errors import QueueFull
from gouache.serve.api.models import pull_view
from gouache.serve.api.training import run_view
from gouache.serve.http.access import is_admin, owner_of, studio_of
from gouache.serve.live.feed import follow
from gouache.serve.store.outages import away
from gouache.serve.studio import Studio
from gouache.serve.training.plan import OUTPUT, STATE, STOP
from gouache.serve.training.runs import RUNNING

router = APIRouter(prefix="/v1/events", tags=["events"])
LastEvent = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20, pattern=r"^\d{0,18}$")]


class PreviewsIn(Config):
    """Whether a stream is to have previews."""

    wanted: bool


@router.get("", response_class=StreamingResponse)
async def events(
    request: Request,
    previews: Annotated[bool, Query(description="Send previews too; drawing them takes the worker's time.")] = False,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="As the header Last-Event-ID.")] = None,
    last_event_id: LastEvent = None,
) -> StreamingResponse:
    """Server-sent events, as long as you listen. Each has JSON as its data.

    `hello` comes first: `stream`, the id of this stream; `user`; `admin`; `jobs`, your open ones in the order in which
    they run; `queue`; `afresh`, whether more was missed since the last event than is told again. After it come

    - `job`, a job whenever anything about it changes: `JobView` with `prompt`, its beginning, in place of `request`;
    - `picture`, a `PictureView` as soon as it is listed;
    - `preview`: `job`, `picture`, its number, and `jpeg` in base64, if previews are wanted;
    - `queue`: `mine_waiting`, `mine_running`, `others_waiting`, `others_running`, `paused`, and `order`, your
      waiting jobs with `id` and `eta_seconds`;
    - `gallery`: `ids` of pictures and `change`, one of star, unstar, tags, board, delete, restore;
    - `alive` every fifteen seconds in which nothing else is sent;
    - `outage` when the store is away, `back` when it can be used again;
    - for administrators `training` and `pull`: the runs, and the downloads.

    A client that comes back with the number of the last event is told what it missed.
    """
    studio, owner = studio_of(request), owner_of(request)
    check_streams(studio, owner)
    if studio.database.away and studio.feed.is_away:
        raise away("no answer")
    seen = int(last_event_id) if last_event_id else after
    stream, first = await studio.feed.open(owner, previews=previews, is_admin=is_admin(studio, owner), after=seen)
    return CountedStream(studio.streams, owner, follow(studio.feed, stream, first))


@router.put("/{stream}/previews", status_code=204)
async def previews(stream: str, body: PreviewsIn, request: Request) -> None:
    """Whether a stream is to have previews from now on."""
    studio_of(request).feed.want_previews(stream, owner_of(request), body.wanted)


def check_streams(studio: Studio, owner: str) -> None:
    """Refuse a stream too many.

    Raises:
        QueueFull: the user follows as many as they may.
    """
    if studio.streams[owner] >= studio.settings.limits.streams:
        raise QueueFull(
            "event streams",
            given=studio.streams[owner],
            expected=f"fewer than {studio.settings.limits.streams}",
            cure="Close one, or ask for the jobs themselves.",
        )


class CountedStream(StreamingResponse):
    """A stream that counts among its owner's from the moment it is allowed until it is over.

    Args:
        streams: the counts.
        owner: whose it is.
        stream: what is sent.
    """

    def __init__(self, streams: Counter[str], owner: str, stream: AsyncIterator[str]) -> None:
        # Proxies are asked to pass each line on.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(stream, media_type="text/event-stream", headers=headers)
        self._streams, self._owner = streams, owner
        streams[owner] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and count it no longer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams[self._owner] -= 1


def beside(studio: Studio) -> Callable[[], Mapping[str, str]]:
    """What administrators are told of training runs and downloads; the files of runs are read when they changed."""
    known: dict[str, str] = {}
    seen: tuple[object, ...] = ()

    def look() -> Mapping[str, str]:
        nonlocal seen
        found = _signs(studio.training.root)
        if found != seen:
            runs = studio.training.listing()
            views = [run_view(studio, run).model_dump(mode="json") for run in runs]
            busy = any(run.phase in RUNNING for run in runs)
            known["training"] = json.dumps({"runs": views})
            seen = () if busy else found
        pulls = [pull_view(pull).model_dump(mode="json") for pull in studio.pulls.listing()]
        return {"training": known["training"], "pull": json.dumps({"pulls": pulls})}

    return look


def _signs(root: Path) -> tuple[object, ...]:
    """What changes whenever a run does, without reading its files."""
    found: list[object] = [()]
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        for name in (STATE, STOP, OUTPUT):
            try:
                found.append((folder.name, name, (folder / name).stat().st_mtime_ns))
            except OSError:
                found.append((folder.name, name, 0))
    return tuple(found)
