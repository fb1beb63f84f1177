"""The limit on slow headers: there with uvicorn as it is, and served without it where its parts are missing."""

from __future__ import annotations

import logging

import httpx
import pytest
import uvicorn.protocols.http.h11_impl as implementation

from gouache.serve.http.slow_headers import patient


def test_the_protocol_is_uvicorns_with_a_limit() -> None:
    assert issubclass(patient(3.0), implementation.H11Protocol)


@pytest.mark.parametrize("missing", ["H11Protocol", "on_response_complete"])
def test_without_its_parts_uvicorns_own_serves(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        holder = implementation if missing == "H11Protocol" else implementation.H11Protocol
        patched.delattr(holder, missing)
        assert patient(3.0) == "h11"
        assert "slow headers are not limited" in caplog.text
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gouache.serve.http.slow_headers.NEEDED", ("nothing_of_the_kind",))
        server = request.getfixturevalue("start_server")(workers=0)
        assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
