"""Data sets by their name on the hub, against a loopback server that speaks as much of the hub's protocol as needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from gouache.data.packed import PackedPictures

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
FOLDER, TABLE = "painter/folder", "painter/table"


def png(colour: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", (12, 8), colour).save(stream, "PNG")
    return stream.getvalue()


PICTURES = {"a.png": png((200, 30, 30, 90)), "b.png": png((1, 2, 3)), "broken.png": png((9, 9, 9))[:40]}
CAPTIONS = {"a.png": "a red thing", "b.png": "dark", "broken.png": "lost"}


def table() -> bytes:
    """The pictures and captions as a parquet file with a row without a caption."""
    import datasets

    rows = {
        "image": [{"bytes": content, "path": name} for name, content in PICTURES.items()] + [None],
        "text": [*CAPTIONS.values(), ""],
    }
    stream = io.BytesIO()
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False)).to_parquet(stream)
    return stream.getvalue()


class Hub(ThreadingHTTPServer):
    """Two data sets; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in CAPTIONS.items()]
        self.repositories = {
            FOLDER: {**PICTURES, "metadata.jsonl": "\n".join(lines).encode()},
            TABLE: {"data/train-00000-of-00001.parquet": table(), "README.md": b"# pictures"},
        }
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def answer(self, given: bytes = b"") -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")
        for name, files in self.server.repositories.items():
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path.startswith(resolve) and (file := path.removeprefix(resolve).partition("/")[2]) in files:
                return self.send_file(files[file])
            if path.startswith(f"{api}/tree/"):
                return self.send_json(entries(files, path.removeprefix(f"{api}/tree/").partition("/")[2]))
            if path.startswith(f"{api}/paths-info/"):
                wanted = asked_paths(given)
                return self.send_json([e for e in entries(files, "") if e["path"] in wanted])
            if path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                facts = {"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "downloads": 0}
                return self.send_json({**facts, "disabled": False, "siblings": siblings})
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound" if "/resolve/" not in path else "EntryNotFound"})

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.send(200, data, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
        return self.send(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def entries(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """Everything below `folder`, as the hub lists it."""
    found: list[dict[str, object]] = [
        {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
        for name, data in files.items()
        if name.startswith(f"{folder}/" if folder else "")
    ]
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) not in (".", folder)}
    return found + [{"type": "directory", "path": name, "size": 0, "oid": digest(b"")} for name in sorted(folders)]


def asked_paths(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    text = body.decode()
    paths: list[str] = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
    return paths


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def gouache(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: where the hub is, its libraries settle at import."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    code = "import sys; from gouache.cli.main import main; sys.argv[0] = 'gouache'; main()"
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "GOUACHE_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**kept, "no_proxy": "127.0.0.1", **own},
    )


def test_pictures_on_the_hub_are_read_and_what_is_broken_is_counted(hub: Hub, tmp_path: Path) -> None:
    folder = gouache(hub, tmp_path, "data", "inspect", FOLDER, "--json")
    assert folder.returncode == 0, folder.stderr
    answer = json.loads(folder.stdout)
    assert (answer["pictures"], answer["broken"], answer["empty"], answer["with_alpha"]) == (2, 1, 0, 1)
    parquet = gouache(hub, tmp_path, "data", "inspect", TABLE, "--json")
    assert parquet.returncode == 0, parquet.stderr
    answer = json.loads(parquet.stdout)
    assert (answer["pictures"], answer["broken"], answer["empty"], answer["with_alpha"]) == (2, 1, 1, 1)


@pytest.mark.slow
def test_a_set_is_built_from_the_hub_and_never_from_a_name_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    built = gouache(
        hub,
        tmp_path / "home",
        "data",
        "build",
        "pictures",
        str(tmp_path / "set"),
        "--from",
        TABLE,
        "--size",
        "32",
        "--json",
    )
    assert built.returncode == 0, built.stderr
    assert PackedPictures.open(tmp_path / "set").manifest.counts == {"32x32": 2}
    absent = gouache(
        hub, tmp_path / "home", "data", "build", "pictures", str(tmp_path / "none"), "--from", "painter/nothing"
    )
    assert absent.returncode == 2
    assert "painter/nothing" in absent.stderr
    assert "Traceback" not in absent.stderr
    assert not (tmp_path / "none").exists()
