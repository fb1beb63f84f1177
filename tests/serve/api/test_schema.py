"""The OpenAPI schema is under lock, and nothing that fits it, or doesn't, makes the server fail."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from gouache.serve.server import create_api, create_app
from gouache.serve.settings import Limits, Settings
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

STORED = Path(__file__).parent / "openapi.json"
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore:Using `httpx` with `starlette.testclient`",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No generated name of a model is asked for on the network."""
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")


def test_the_stored_schema_is_what_the_server_says(studio: Studio) -> None:
    """After a wanted change: UPDATE_SCHEMA=1 python -m pytest tests/serve/api/test_schema.py, and read the diff."""
    said = json.dumps(create_api(studio).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SCHEMA"):
        STORED.write_text(said, encoding="utf-8")
    stored = STORED.read_text(encoding="utf-8")
    changes = list(difflib.unified_diff(stored.splitlines(), said.splitlines(), "stored", "said", lineterm="", n=2))
    assert not changes, "\n".join(changes[:60])


def test_every_route_says_who_may_ask_how_it_refuses_and_what_it_answers(studio: Studio) -> None:
    schema = create_api(studio).openapi()
    assert {one["type"] for one in schema["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    known = schema["components"]["schemas"]
    operations = [(path, one) for path, methods in schema["paths"].items() for one in methods.values()]
    assert len(operations) > 60
    for path, operation in operations:
        answers = operation["responses"]
        (good,) = (status for status in answers if status.startswith("2"))
        assert good == "204" or answers[good]["content"], path
        for answer in answers.values():
            for content in answer.get("content", {}).values():
                assert content["schema"], path
        if path in ("/healthz", "/readyz"):
            assert operation["security"] == []
            continue
        assert "security" not in operation, path
        for status in ("401", "403", "413", "429", "503", "400" if path.startswith("/v1/images/") else "422"):
            named = answers[status]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert named in known
    assert "HTTPValidationError" not in json.dumps(schema)


@pytest.mark.parametrize("path", ["/v1/jobs/0", "/sdapi/v1/img2img", "/v1/images/generations"])
def test_refusals_have_the_shape_that_the_schema_says(make_client: MakeClient, path: str) -> None:
    client = make_client()
    schema = client.app.app.app.openapi()  # type: ignore[attr-defined]
    for body in ({}, {"prompt": 3}, {"prompt": "x", "size": "1x"}):
        answer = client.get(path) if path == "/v1/jobs/0" else client.post(path, json=body)
        operation = next(iter(schema["paths"][path.replace("/0", "/{job_id}")].values()))
        told = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        jsonschema_rs.validator_for({"components": schema["components"], **told}).validate(answer.json())
        if path == "/v1/jobs/0":
            break


def fuzz(folder: Path, *, examples: int) -> Counter[int]:
    """Send generated requests to every operation; gives how many answers there were of each status."""
    from hypothesis import HealthCheck, Phase, given, settings

    # Nobody paints here: blocking calls give up at once, with 504, which the schema's clients know how to wait for.
    limits = Limits(queue=1_000_000, queue_per_user=1_000_000, jobs_per_minute=10**9, requests_per_minute=10**9)
    studio = Studio(Settings(data=folder, workers=0, page=False, wait=0.001, limits=limits))
    app = create_app(studio)
    schema = schemathesis.openapi.from_dict(create_api(studio).openapi())
    schema.app = app
    answers: Counter[int] = Counter()
    try:
        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            if operation.path.endswith("/events"):
                continue

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def run(case: Any) -> None:
                response = case.call(base_url="http://127.0.0.1", headers={"host": "127.0.0.1"})
                answers[response.status_code] += 1
                if response.status_code != 504:
                    case.validate_response(response, checks=[not_a_server_error])

            given(case=operation.as_strategy())(run)()
    finally:
        studio.close()
    return answers


def test_no_generated_request_makes_the_server_fail(tmp_path: Path) -> None:
    answers = fuzz(tmp_path, examples=2)
    assert answers[200] + answers[201] + answers[202] > 20
    assert answers[422] + answers[404] > 20
    assert answers[401] + answers[403] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_generated_request_makes_the_server_fail_at_length(tmp_path: Path) -> None:
    assert fuzz(tmp_path, examples=200).total() > 5000
