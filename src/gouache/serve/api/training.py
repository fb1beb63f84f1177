"""`/v1/training/...`: sets of captioned pictures, and runs that learn from them. For administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, TypedDict

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import AfterValidator, Field

from gouache.config import Config
from gouache.errors import NotFound
from gouache.serve.api.views import ErrorView, Plain, plain_text
from gouache.serve.http.access import admin_of, studio_of
from gouache.serve.studio import Studio
from gouache.serve.training.plan import Minutes, PlanPart, PlanStage
from gouache.serve.training.run_process import parts_of_error
from gouache.serve.training.runs import Phase, TrainingRun
from gouache.serve.training.sets import DataSet
from gouache.training.tuning.planner import SMALL_SET

router = APIRouter(prefix="/v1/training", tags=["training"])
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RunName = Annotated[Plain, Field(min_length=1)]


class SetView(Config):
    """A set of pictures."""

    name: str
    pictures: int
    captioned: int
    bytes: int


class SetPictureView(Config):
    """A picture of a set."""

    file: str
    caption: str
    """What is said of it, one caption a line; empty if nothing."""
    bytes: int
    version: str
    """Changes with the picture."""


class CaptionIn(Config):
    """What a picture shows."""

    caption: Annotated[str, Field(max_length=4000), AfterValidator(plain_text)]
    """One caption a line; empty takes the captions away."""


class RunIn(Config):
    """A run to start."""

    name: RunName
    """Of the run and of the model it makes."""
    stage: PlanStage = "denoiser"
    """lora: teach a model these pictures by a small file beside it. denoiser: by a model of its own. decoder: how it
    draws their details. vae: an autoencoder from nothing."""
    data: RunName
    """A set of pictures."""
    minutes: Minutes
    """Training time; preparing comes on top."""
    model: Plain | None = None
    """What all but vae start from; your default model without it."""
    size: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] | None = None
    """Side of the pictures in pixels; the model's own without it."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None


class PlanView(Config):
    """What a run would do."""

    name: str
    stage: PlanStage
    data: str
    model: str
    pictures: int
    size: int
    minutes: float
    learning_rate: float
    batch_size: int
    parts: tuple[PlanPart, ...]
    """What is trained, one after the other, each for the same time."""
    held_out: bool
    """Whether some pictures are kept from training, to judge by; a small set is judged by what it is trained on."""


class Sheet(Config):
    """Where a sample sheet comes from."""

    part: PlanPart
    images_seen: int


class More(Config):
    """How to go on."""

    minutes: Annotated[float, Field(ge=0, le=60 * 24 * 30)] = 0.0
    """More training time than was planned."""


class RunView(Config):
    """A run as it stands."""

    name: str
    phase: Phase
    stage: PlanStage
    data: str
    model: str
    size: int
    minutes: float
    seconds: float
    """Trained so far."""
    progress: float
    parts: tuple[PlanPart, ...]
    """What is trained, one after the other."""
    part: PlanPart
    """Which of them is, or was last."""
    images_seen: int
    """That this part was trained on."""
    images_per_second: float
    doing: str
    """The last line that its command printed while it prepares."""
    error: str
    """The sentence that ended it; empty if none did."""
    problem: ErrorView | None
    """The same in its parts."""
    created: float
    has_model: bool
    """Whether there is a model, or a LoRA, of its name to paint with."""
    samples: tuple[int, ...]
    """Images seen at each sample sheet of this part."""
    sheets: tuple[Sheet, ...]
    """Every sample sheet, in the order in which they were drawn."""
    command: str
    """What one would type to train the same."""


@router.get("/sets")
def sets(request: Request) -> list[SetView]:
    """Folders below `training` in the data folder."""
    admin_of(request)
    return [_set_view(found) for found in studio_of(request).training.sets.listing()]


@router.put("/sets/{name}/{file}", openapi_extra={"requestBody": {"required": True, "content": BYTES}})
async def upload(name: str, file: str, request: Request) -> SetView:
    """Put a picture, a caption, a table of captions, or a zip of them into a set, as the plain body."""
    owner, studio = admin_of(request), studio_of(request)
    studio.file_store.check_room()
    data = await request.body()
    return _set_view(await studio.decoding.beside(studio.add_to_set, owner, name, file, data))


@router.get("/sets/{name}/pictures")
def set_pictures(name: str, request: Request) -> list[SetPictureView]:
    """The pictures of a set with their captions, by name."""
    admin_of(request)
    found = studio_of(request).training.sets.pictures(name)
    return [SetPictureView(**asdict(picture)) for picture in found]


@router.put("/sets/{name}/captions/{file:path}")
def set_caption(name: str, file: str, body: CaptionIn, request: Request) -> SetPictureView:
    """Say what a picture shows. Captions of a table are written beside their pictures first."""
    admin_of(request)
    studio = studio_of(request)
    studio.file_store.check_room()
    return SetPictureView(**asdict(studio.training.sets.caption(name, file, body.caption)))


@router.get("/sets/{name}/thumbnails/{file:path}", response_class=FileResponse)
async def set_thumbnail(name: str, file: str, request: Request) -> FileResponse:
    """A small WebP of a picture of a set."""
    owner, studio = admin_of(request), studio_of(request)
    path = await studio.decoding.beside(studio.set_thumbnail, owner, name, file)
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})


@router.delete("/sets/{name}/pictures/{file:path}")
def delete_set_picture(name: str, file: str, request: Request) -> SetView:
    """Delete a picture of a set with its captions."""
    admin_of(request)
    return _set_view(studio_of(request).training.sets.remove(name, file))


@router.delete("/sets/{name}", status_code=204)
def delete_set(name: str, request: Request) -> None:
    """Delete a set with all its pictures; what runs have learnt from it stays."""
    admin_of(request)
    studio_of(request).training.delete_set(name)


@router.get("/runs")
def runs(request: Request) -> list[RunView]:
    """Every run, the newest first."""
    admin_of(request)
    studio = studio_of(request)
    return [run_view(studio, run) for run in studio.training.listing()]


@router.post("/plan")
def plan(body: RunIn, request: Request) -> PlanView:
    """What `POST /v1/training/runs` would do with the same body; nothing is started, and errors are the same."""
    owner, studio = admin_of(request), studio_of(request)
    made = studio.training.plan(**_wanted(body, owner, studio))
    return PlanView(
        name=made.name,
        stage=made.stage,
        data=made.data,
        model=made.model,
        pictures=made.pictures,
        size=made.size,
        minutes=made.minutes,
        learning_rate=made.learning_rate,
        batch_size=made.batch_size,
        parts=made.parts,
        held_out=made.pictures >= SMALL_SET,
    )


@router.post("/runs", status_code=202)
def start(body: RunIn, request: Request) -> RunView:
    """Start a run; one at a time."""
    owner, studio = admin_of(request), studio_of(request)
    return run_view(studio, studio.training.start(studio.training.plan(**_wanted(body, owner, studio))))


@router.get("/runs/{name}")
def get(name: str, request: Request) -> RunView:
    """One run."""
    admin_of(request)
    studio = studio_of(request)
    return run_view(studio, studio.training.get(name))


@router.get("/runs/{name}/log")
def log(name: str, request: Request, part: PlanPart | None = None) -> list[dict[str, float]]:
    """The figures of a part by images seen; of the latest without one."""
    admin_of(request)
    return studio_of(request).training.log(name, part)


@router.get("/runs/{name}/samples/{images_seen}", response_class=Response)
def sample(name: str, images_seen: int, request: Request, part: PlanPart | None = None) -> FileResponse:
    """A sample sheet of a part as a PNG; of the latest without one."""
    admin_of(request)
    for path in studio_of(request).training.samples(name, part):
        if path.stem.isdecimal() and int(path.stem) == images_seen:
            return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})
    raise NotFound("sample", given=images_seen, expected="images seen at one of its sample sheets")


@router.post("/runs/{name}/stop")
def stop(name: str, request: Request) -> RunView:
    """Leave a checkpoint and end; what it learned so far can be painted with."""
    admin_of(request)
    studio = studio_of(request)
    return run_view(studio, studio.training.stop(name))


@router.post("/runs/{name}/resume")
def resume(name: str, body: More, request: Request) -> RunView:
    """Go on with a run that ended or was stopped."""
    admin_of(request)
    studio = studio_of(request)
    return run_view(studio, studio.training.resume(name, minutes=body.minutes))


@router.delete("/runs/{name}", status_code=204)
def delete(name: str, request: Request) -> None:
    """Remove a run; the model that it made stays."""
    admin_of(request)
    studio_of(request).training.delete(name)


def _set_view(found: DataSet) -> SetView:
    return SetView(name=found.name, pictures=found.pictures, captioned=found.captioned, bytes=found.bytes)


class _Wanted(TypedDict):
    owner: str
    name: str
    stage: PlanStage
    data: str
    minutes: float
    model: str
    size: int | None
    learning_rate: float | None
    batch_size: int | None


def _wanted(body: RunIn, owner: str, studio: Studio) -> _Wanted:
    return {
        "owner": owner,
        "name": body.name,
        "stage": body.stage,
        "data": body.data,
        "minutes": body.minutes,
        "model": body.model or studio.default_model(owner),
        "size": body.size,
        "learning_rate": body.learning_rate,
        "batch_size": body.batch_size,
    }


def run_view(studio: Studio, run: TrainingRun) -> RunView:
    """A run as others may see it."""
    plan, training, hidden = run.plan, studio.training, studio.settings.hide_places
    sheets = tuple(
        Sheet(part=part, images_seen=int(path.stem))
        for part in plan.parts
        for path in training.samples(plan.name, part)
        if path.stem.isdecimal()
    )
    return RunView(
        name=plan.name,
        phase=run.phase,
        stage=plan.stage,
        data=plan.data,
        model=plan.model,
        size=plan.size,
        minutes=plan.minutes,
        seconds=run.seconds,
        progress=run.fraction,
        parts=plan.parts,
        part=run.part,
        images_seen=run.images_seen,
        images_per_second=run.rate,
        doing=hidden(run.doing),
        error=hidden(run.error),
        problem=ErrorView(**parts_of_error(hidden(run.error))) if run.error else None,
        created=plan.created,
        has_model=training.result(plan).exists(),
        samples=tuple(sheet.images_seen for sheet in sheets if sheet.part == run.part),
        sheets=sheets,
        command=hidden(training.command(run)),
    )
