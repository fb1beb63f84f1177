"""`/v1/training/...`: sets of captioned pictures, and runs that learn from them. For administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field

from gouache.config import Config
from gouache.errors import NotFound
from gouache.serve.api.views import Plain
from gouache.serve.http.access import admin_of, studio_of
from gouache.serve.training.plan import Minutes, PlanStage
from gouache.serve.training.runs import Phase, TrainingRun
from gouache.serve.training.sets import DataSet

router = APIRouter(prefix="/v1/training", tags=["training"])
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RunName = Annotated[Plain, Field(min_length=1)]


class SetView(Config):
    """A set of pictures."""

    name: str
    pictures: int
    captioned: int
    bytes: int


class RunIn(Config):
    """A run to start."""

    name: RunName
    """Of the run and of the model it makes."""
    stage: PlanStage = "denoiser"
    """denoiser: teach a model these pictures. decoder: how it draws their details. vae: an autoencoder from nothing."""
    data: RunName
    """A set of pictures."""
    minutes: Minutes
    """Training time; preparing comes on top."""
    model: Plain | None = None
    """What denoiser or decoder starts from; your default model without it."""
    size: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] | None = None
    """Side of the pictures in pixels; the model's own without it."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8


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
    images_seen: int
    doing: str
    """The last line that its command printed while it prepares."""
    error: str
    samples: tuple[int, ...]
    """Images seen at each sample sheet."""


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


@router.get("/runs")
def runs(request: Request) -> list[RunView]:
    """Every run, the newest first."""
    admin_of(request)
    training = studio_of(request).training
    return [run_view(run, ()) for run in training.listing()]


@router.post("/runs", status_code=202)
def start(body: RunIn, request: Request) -> RunView:
    """Start a run; one at a time."""
    owner = admin_of(request)
    studio = studio_of(request)
    run = studio.training.start(
        owner=owner,
        name=body.name,
        stage=body.stage,
        data=body.data,
        minutes=body.minutes,
        model=body.model or studio.default_model(owner),
        size=body.size,
        learning_rate=body.learning_rate,
        batch_size=body.batch_size,
    )
    return run_view(run, ())


@router.get("/runs/{name}")
def get(name: str, request: Request) -> RunView:
    """One run."""
    admin_of(request)
    training = studio_of(request).training
    return run_view(training.get(name), tuple(int(path.stem) for path in training.samples(name)))


@router.get("/runs/{name}/log")
def log(name: str, request: Request) -> list[dict[str, float]]:
    """Its figures by images seen."""
    admin_of(request)
    return studio_of(request).training.log(name)


@router.get("/runs/{name}/samples/{images_seen}", response_class=Response)
def sample(name: str, images_seen: int, request: Request) -> FileResponse:
    """A sample sheet as a PNG."""
    admin_of(request)
    for path in studio_of(request).training.samples(name):
        if path.stem.isdecimal() and int(path.stem) == images_seen:
            return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})
    raise NotFound("sample", given=images_seen, expected="images seen at one of its sample sheets")


@router.post("/runs/{name}/stop")
def stop(name: str, request: Request) -> RunView:
    """Leave a checkpoint and end; what it learned so far can be painted with."""
    admin_of(request)
    return run_view(studio_of(request).training.stop(name), ())


@router.post("/runs/{name}/resume")
def resume(name: str, body: More, request: Request) -> RunView:
    """Go on with a run that ended or was stopped."""
    admin_of(request)
    return run_view(studio_of(request).training.resume(name, minutes=body.minutes), ())


@router.delete("/runs/{name}", status_code=204)
def delete(name: str, request: Request) -> None:
    """Remove a run; the model that it made stays."""
    admin_of(request)
    studio_of(request).training.delete(name)


def _set_view(found: DataSet) -> SetView:
    return SetView(name=found.name, pictures=found.pictures, captioned=found.captioned, bytes=found.bytes)


def run_view(run: TrainingRun, samples: tuple[int, ...]) -> RunView:
    """A run for the native interface; `samples` as `RunView` has them."""
    plan = run.plan
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
        images_seen=run.images_seen,
        doing=run.doing,
        error=run.error,
        samples=samples,
    )
