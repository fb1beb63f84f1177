"""A server on this machine that speaks enough of the hub's protocol, with one repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "painter/tiny"
CHUNK = 1 << 14


class Hub(ThreadingHTTPServer):
    """One repository, gated or not; remembers what it was asked.

    Attributes:
        token: asked for, if there is one.
        lie: a file of which another sha256 is told.
        break_after: bytes after which the next answer is cut off.
        pause: seconds before each chunk of a weight file.
        card: the metadata of its README, such as the licence.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        self.token: str | None = None
        self.lie: str | None = None
        self.break_after: int | None = None
        self.asked: list[tuple[str, str, str | None]] = []
        self.sent: set[str] = set()
        self.pause = 0.0
        self.card: dict[str, object] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def was_sent(self, name: str) -> bool:
        """Whether a file was answered to its end."""
        return name in self.sent

    def sum_of(self, name: str) -> str:
        return hashlib.sha256(b"other" if name == self.lie else self.files[name]).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.send(
                401 if "other" in path else 403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}
            )
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.server.files.items()
            ]
            return self.send(200, json.dumps(entries).encode())
        if path.startswith(f"/api/models/{REPO}"):
            return self.send(200, json.dumps(self.info()).encode())
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name in self.server.files:
            return self.send_file(name)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def info(self) -> dict[str, object]:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            | (
                {"lfs": {"sha256": self.server.sum_of(name), "size": len(data), "pointerSize": 1}}
                if "tensors" in name
                else {}
            )
            for name, data in self.server.files.items()
        ]
        known = {"id": REPO, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings}
        return known | ({"cardData": self.server.card} if self.server.card else {})

    def send_file(self, name: str) -> None:
        data = self.server.files[name]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{self.server.sum_of(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.break_after
        if limit is not None and len(body) > limit:
            self.server.break_after = None
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        slow = self.server.pause if len(body) > CHUNK else 0.0
        with contextlib.suppress(ConnectionError):  # A pull that was cancelled.
            for start in range(0, len(body), CHUNK if slow else max(1, len(body))):
                time.sleep(slow)
                self.wfile.write(body[start : start + CHUNK] if slow else body)
            self.server.sent.add(self.path.rsplit("/", 1)[-1])


@contextmanager
def served_hub(folder: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the files of a folder, which this process takes for the hub; its caches lie apart."""
    import huggingface_hub.constants

    served = Hub(folder)
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(caches / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(caches / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(caches / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("GOUACHE_OFFLINE", raising=False)
    monkeypatch.setenv("GOUACHE_MODELS", str(caches / "models"))
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
