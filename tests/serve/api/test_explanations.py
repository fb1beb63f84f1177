"""`/v1/explanations`: a job like any other that keeps what each part of the model did."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gouache.pipeline.explain.data import ExplanationData
from gouache.serve.store.upkeep import ATTACHMENT_SECONDS

if TYPE_CHECKING:
    from tests.serve.conftest import Server

SMALL: dict[str, Any] = {"prompt": "a red <u>fox</u>", "seed": 3, "num_inference_steps": 3}


def explained(server: Server, client: httpx.Client, **fields: Any) -> str:
    """The id of a job that is done."""
    answer = client.post("/v1/explanations", json={"request": {**SMALL, **fields}})
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    job = server.wait(answer.json()["id"])
    assert job.state == "done", job.error
    return job.id


def test_an_explanation_shows_the_picture_that_the_same_request_paints(server: Server, client: httpx.Client) -> None:
    job = explained(server, client)
    data = ExplanationData.from_json(client.get(f"/v1/explanations/{job}").text)
    painted = client.post("/v1/jobs", json={"request": SMALL}).json()["id"]
    server.wait(painted)
    (picture,) = client.get(f"/v1/jobs/{painted}").json()["pictures"]
    recipe = client.get(f"/v1/pictures/{picture}/recipe").json()
    assert data.recipe["pixels"] == recipe["pixels"]
    assert data.recipe["model"]["path"] is None
    assert (data.seed, len(data.steps), data.prompt) == ("3", 3, SMALL["prompt"])
    assert all(token.attention for token in data.tokens)


def test_it_is_a_job_whose_picture_is_not_in_the_gallery(server: Server, client: httpx.Client) -> None:
    before = client.get("/v1/pictures").json()["pictures"][:1]
    job = client.get(f"/v1/jobs/{explained(server, client)}").json()
    assert (job["source"], job["state"], job["progress"], job["pictures"]) == ("explain", "done", 1.0, [])
    assert client.get("/v1/pictures").json()["pictures"][:1] == before


@pytest.mark.parametrize("language", ["en", "zh"])
def test_its_page_is_a_file_in_an_origin_of_its_own(server: Server, client: httpx.Client, language: str) -> None:
    job = explained(server, client)
    page = client.get(f"/v1/explanations/{job}/page", params={"language": language})
    assert page.headers["content-disposition"] == 'attachment; filename="a-red-u-fox-u.html"'
    assert "sandbox allow-scripts;" in page.headers["content-security-policy"] + ";"
    assert "allow-same-origin" not in page.headers["content-security-policy"]
    assert "<u>" not in page.text
    assert f'lang="{"zh-CN" if language == "zh" else "en"}"' in page.text
    assert not re.findall(r"https?://|<link|<script[^>]* src", page.text)


@pytest.mark.parametrize("fields", [{"count": 2}, {"hires": {"scale": 2.0}}])
def test_what_takes_several_passes_is_refused_at_once(client: httpx.Client, fields: dict[str, object]) -> None:
    answer = client.post("/v1/explanations", json={"request": {**SMALL, **fields}})
    assert answer.status_code == 422
    assert "explained" in answer.json()["error"]["expected"]
    assert answer.json()["error"]["param"] == next(iter(fields))


def test_a_job_that_paints_has_none_and_an_old_one_is_gone(server: Server, client: httpx.Client) -> None:
    painted = client.post("/v1/jobs", json={"request": SMALL}).json()["id"]
    server.wait(painted)
    job = explained(server, client)
    assert client.get(f"/v1/explanations/{painted}").status_code == 404
    assert client.get("/v1/explanations/0123").status_code == 404
    finished = server.studio.jobs.get(job).finished
    assert finished is not None
    server.studio.housekeeping.clean(finished + ATTACHMENT_SECONDS - 60)
    assert client.get(f"/v1/explanations/{job}").status_code == 200
    server.studio.housekeeping.clean(finished + ATTACHMENT_SECONDS + 60)
    answer = client.get(f"/v1/explanations/{job}")
    assert answer.status_code == 404
    assert answer.json()["error"]["cure"] == "Explain it again."


def test_a_key_makes_one_job_of_two_calls(client: httpx.Client) -> None:
    twice = [
        client.post("/v1/explanations", json={"request": SMALL}, headers={"Idempotency-Key": "explain-1"})
        for _ in range(2)
    ]
    assert twice[0].json()["id"] == twice[1].json()["id"]
    assert twice[1].headers["Idempotent-Replayed"] == "true"


def test_a_cancelled_one_ends_between_two_steps(server: Server, client: httpx.Client) -> None:
    job = client.post("/v1/explanations", json={"request": {**SMALL, "num_inference_steps": 100}}).json()["id"]
    client.post(f"/v1/jobs/{job}/cancel")
    assert server.wait(job).state == "cancelled"
    assert client.get(f"/v1/explanations/{job}").status_code == 404
