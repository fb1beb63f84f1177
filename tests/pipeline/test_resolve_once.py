"""A request is resolved once a run, for the picture that it starts from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from gouache.cli import main as command_line
from gouache.pipeline import resolve
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import NAME, Pipeline, untrained_bundle
from gouache.pipeline.request import Request

START = Request(prompt="x", init_image="start.png", seed=3, num_inference_steps=2)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", name="pipeline")
def _pipeline() -> Pipeline:
    return Pipeline(untrained_bundle())


def test_resolve_knows_the_starting_picture_s_size(pipeline: Pipeline) -> None:
    attachments = {"start.png": png(96, 64)}
    resolved = pipeline.resolve(START, attachments)
    (painted,) = pipeline.paint(START, attachments)
    assert (resolved.width, resolved.height) == painted.image.size == (96, 64)
    assert painted.recipe.request == resolved


def test_a_plan_paints_what_its_request_does(pipeline: Pipeline) -> None:
    attachments = {"start.png": png(97, 64)}
    plan = pipeline.plan(START, attachments)
    *_, planned = pipeline.run(plan, attachments)
    (painted,) = pipeline.paint(START, attachments)
    assert plan.notes == ("size 97x64 was rounded to 96x64",)
    assert isinstance(planned, Painted)
    assert planned.recipe == painted.recipe


def test_the_command_resolves_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Request] = []
    resolve_request = resolve.resolve_request

    def counted(request: Request, *rest: object) -> Request:
        calls.append(request)
        return resolve_request(request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(resolve, "resolve_request", counted)
    monkeypatch.chdir(tmp_path)
    command = ["gouache", "paint", "x", "--model", NAME, "--steps", "1", "--size", "32"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert not stop.value.code
    assert len(calls) == 1
    assert list(tmp_path.glob("*.png"))
