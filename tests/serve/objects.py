"""An object store that speaks S3, as a process of its own on this machine, and one that has no room."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectService:
    """moto's server on a free port. What is in it goes with it. Stop it in the end."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkstemp(prefix="gouache-moto-")[1])
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, **CREDENTIALS, "PYTHONWARNINGS": "ignore"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(self.url, timeout=5)
                return
            time.sleep(0.05)
        raise TimeoutError(f"moto did not start: {self.log.read_text()[-2000:]}")

    @property
    def environment(self) -> dict[str, str]:
        """What tells every client of S3 where it is."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def new_bucket(self) -> str:
        """URL of an empty bucket's prefix."""
        name = f"bucket{uuid.uuid4().hex[:12]}"
        assert httpx.put(f"{self.url}/{name}", timeout=30).status_code == 200
        return f"s3://{name}/studio"

    def processes(self) -> list[psutil.Process]:
        """The server."""
        return [psutil.Process(self.process.pid)]

    def stop(self) -> None:
        """End it, as a crash does."""
        self.process.kill()
        self.process.wait()
        self.log.unlink(missing_ok=True)


_NO_ROOM = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold.</Message>
</Error>"""


class _Full(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Older ones tell nobody to go on and send the body.

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(507)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(_NO_ROOM)))
        self.end_headers()
        self.wfile.write(_NO_ROOM)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def full_service() -> Iterator[str]:
    """URL of a service that refuses every object as MinIO does when its disks are full."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Full)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
