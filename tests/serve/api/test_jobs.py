"""The native interface from the outside: a real server, a real worker process, real pictures."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

if TYPE_CHECKING:
    from tests.serve.conftest import Server


def submit(client: httpx.Client, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    return client.post("/v1/jobs", json={"request": {"prompt": "a red fox", **fields}}, headers=headers)


def test_a_job_is_accepted_painted_and_served_with_its_recipe(client: httpx.Client, server: Server) -> None:
    answer = submit(client, seed=7, count=2, num_inference_steps=3)
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert server.wait(job["id"]).state == "done"
    seen = client.get(answer.headers["location"]).json()
    assert (seen["state"], seen["progress"], seen["error"]) == ("done", 1.0, None)
    assert len(seen["pictures"]) == 2
    file = client.get(f"/v1/pictures/{seen['pictures'][1]}/file")
    picture = Image.open(io.BytesIO(file.content))
    assert picture.size == (32, 32)
    assert json.loads(picture.info["gouache"])["request"]["seed"] == 8
    recipe = client.get(f"/v1/pictures/{seen['pictures'][1]}/recipe").json()
    assert recipe["request"]["prompt"] == "a red fox"
    assert recipe["model"]["path"] is None
    thumbnail = client.get(f"/v1/pictures/{seen['pictures'][0]}/thumbnail")
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).format == "WEBP"


def test_the_same_seed_gives_the_same_picture_twice(client: httpx.Client, server: Server) -> None:
    digests = []
    for _ in range(2):
        job = submit(client, seed=3, num_inference_steps=2).json()
        server.wait(job["id"])
        picture = client.get(f"/v1/jobs/{job['id']}").json()["pictures"][0]
        digests.append(client.get(f"/v1/pictures/{picture}/recipe").json()["pixels"])
    assert digests[0] == digests[1]


def events_of(client: httpx.Client, job: str, **query: bool) -> list[tuple[str, dict[str, Any]]]:
    with client.stream("GET", f"/v1/jobs/{job}/events", params=query) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith(("event:", "data:"))]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]


def test_who_follows_a_job_gets_previews_if_they_ask_for_them(client: httpx.Client) -> None:
    job = submit(client, seed=4, num_inference_steps=90).json()["id"]
    told = events_of(client, job, previews=True)
    assert [kind for kind, _ in told if kind not in ("progress", "preview")] == ["queued", "running", "picture", "done"]
    first = next(data for kind, data in told if kind == "preview")
    assert first["job"] == job
    assert Image.open(io.BytesIO(base64.b64decode(first["jpeg"]))).format == "JPEG"
    job = submit(client, seed=4, num_inference_steps=90).json()["id"]
    assert "preview" not in [kind for kind, _ in events_of(client, job)]
