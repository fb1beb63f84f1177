"""JSON bodies that don't say that they are: curl's `-d` says it sends a form, others say nothing or plain text.

The kind: what a client's habit, not its user, writes into Content-Type. Pages of other sites are refused before, by
their Origin, and the limits for JSON hold whatever it is called.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Server

BODY = json.dumps({"request": {"prompt": "a cup", "num_inference_steps": 1, "seed": 1}})
FORM = "application/x-www-form-urlencoded"
KINDS: dict[str, tuple[str | None, str]] = {
    "said": ("application/json", BODY),
    "nothing": (None, BODY),
    "empty": ("", BODY),
    "a form": (FORM, BODY),
    "a form with a charset": (f"{FORM}; charset=utf-8", BODY),
    "in capitals": (FORM.upper(), BODY),
    "text": ("text/plain", BODY),
    "text with a charset": ("text/plain;charset=UTF-8", BODY),
    "blanks before": (FORM, f"\n  {BODY}"),
    "json of a kind": ("application/vnd.api+json", BODY),
}


def post(client: httpx.Client, path: str, kind: str | None, body: str | bytes) -> httpx.Response:
    headers = {} if kind is None else {"content-type": kind}
    request = client.build_request("POST", path, content=body, headers=headers)
    if kind is None:
        request.headers.pop("content-type", None)
    return client.send(request)


@pytest.mark.parametrize("name", KINDS)
def test_json_is_read_whatever_it_is_called(client: httpx.Client, name: str) -> None:
    answer = post(client, "/v1/jobs", *KINDS[name])
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("kind", [FORM, None, "text/plain"])
@pytest.mark.parametrize("body", ["prompt=a+cup", "a cup", '"a"', "12", "\xff\xfe", "{'prompt': 'a'}", '{"request":'])
def test_what_is_no_json_is_told_so(client: httpx.Client, kind: str | None, body: str) -> None:
    answer = post(client, "/v1/jobs", kind, body.encode("latin-1"))
    assert answer.status_code in (415, 422), answer.text
    assert "JSON" in answer.json()["error"]["message"], answer.text


def test_openai_s_route_reads_it_too(client: httpx.Client) -> None:
    answer = post(client, "/v1/images/generations", FORM, json.dumps({"prompt": "a cup", "size": "100000x1"}))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


def test_another_site_s_form_is_refused(client: httpx.Client) -> None:
    headers = {"content-type": "text/plain", "origin": "https://elsewhere.example"}
    assert client.post("/v1/jobs", content=BODY, headers=headers).status_code == 403


def test_the_limit_on_parts_holds(client: httpx.Client) -> None:
    deep = '{"request": ' + "[" * 400_000
    for kind in ("application/json", FORM, None):
        assert post(client, "/v1/jobs", kind, deep).status_code == 413


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_without_a_header(server: Server) -> None:
    command = ["curl", "-s", "-o", "-", "-w", "%{http_code}", f"{server.url}/v1/jobs", "-d", BODY]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("202")
