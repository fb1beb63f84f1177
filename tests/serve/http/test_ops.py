"""Health, metrics, logs, and the commands that look at the queue."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from typer.testing import CliRunner

from gouache.cli.serving.jobs import app
from gouache.errors import InvalidInput
from gouache.pipeline.request import Request
from gouache.serve.logs import JsonLines
from gouache.serve.start import make_settings
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import Server, StartServer


def test_health_readiness_and_metrics(client: httpx.Client, server: Server) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    job = client.post("/v1/jobs", json={"request": {"prompt": "x", "num_inference_steps": 1}}).json()["id"]
    server.wait(job)
    assert client.get("/readyz").json() == {"status": "ready", "engine": "torch"}
    client.get(f"/v1/jobs/{job}")
    text = client.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['gouache_jobs{state="done"}']) >= 1
    assert float(figures["gouache_workers"]) == 1
    assert float(figures['gouache_resident_bytes{process="workers"}']) > 10**7
    assert float(figures["gouache_steps_per_second"]) > 0
    assert 'route="/v1/jobs/{job_id}"' in text
    for name in ("wait", "paint"):
        assert float(figures[f"gouache_job_{name}_duration_seconds_count"]) >= 1
        assert 0 <= float(figures[f"gouache_job_{name}_duration_seconds_sum"]) < 600
    ended = float(figures['gouache_jobs_ended_total{state="done"}'])
    assert ended >= 1
    assert 'gouache_http_request_duration_seconds_bucket{le="0.1",route="/v1/jobs"}' in figures
    # Each job is counted once, however often is asked; what the guard refuses is counted too.
    client.get("/v1/jobs", headers={"origin": "https://evil.example"})
    again = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(again['gouache_jobs_ended_total{state="done"}']) == ended
    assert float(again['gouache_http_requests_total{method="GET",route="other",status="403"}']) >= 1
    assert job not in text


def test_not_ready_without_a_worker(start_server: StartServer) -> None:
    server = start_server(workers=0)
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
    assert httpx.get(f"{server.url}/metrics", timeout=60).status_code == 200


def test_logs_are_json_with_the_jobs_id() -> None:
    record = logging.makeLogRecord({"name": "gouache.worker", "msg": "job %s", "args": ("left",), "job": "42"})
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["job"], line["logger"]) == ("job left", "42", "gouache.worker")


def test_the_jobs_command_lists_cancels_retries_and_exports(tmp_path: Path) -> None:
    studio = make_studio(tmp_path)
    job, _ = studio.submit(Request(prompt="a fox", seed=1), owner="ada", source="v1")
    studio.close()

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--data", str(tmp_path)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert job.id in run("list")
    assert json.loads(run("list", "--json"))["jobs"][0]["prompt"] == "a fox"
    assert run("cancel", job.id).strip() == "cancelled"
    assert run("retry", job.id).strip() == "queued"
    assert run("export", str(tmp_path / "out")).strip() == "0 pictures"
    assert (tmp_path / "out" / "index.jsonl").read_text() == ""
    assert run("backup", str(tmp_path / "all.tar")).strip() == "0 pictures"


def make_studio(folder: Path) -> Studio:
    return Studio(
        make_settings({"data": folder, "host": "127.0.0.1", "port": 0, "workers": 0, "threads": 1, "page": False})
    )


def test_a_taken_port_is_an_error_with_a_cure(server: Server, tmp_path: Path) -> None:
    from gouache.serve.server import run

    studio = make_studio(tmp_path)
    taken = studio.settings.model_copy(update={"port": server.port})
    studio.settings = taken
    with pytest.raises(InvalidInput, match="--port"):
        run(studio, announce=lambda _: None)
    studio.close()
