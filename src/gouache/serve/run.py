"""Starts the server: checks that it may listen where it should, and stops it gracefully."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from gouache.checkpoints.hub import data_folder, model_folders
from gouache.errors import InvalidInput, ModelNotFound
from gouache.pipeline.request import Request
from gouache.serve.connections import listen, uvicorn_config
from gouache.serve.embedding import missing_tower
from gouache.serve.logs import log_to_stderr
from gouache.serve.settings import Settings
from gouache.serve.studio import Studio

TOKEN_VARIABLE = "GOUACHE_TOKEN"
log = logging.getLogger("gouache.server")


def make_settings(
    *,
    data: Path | None,
    host: str,
    port: int,
    store: str | None,
    models: Sequence[Path],
    default_model: str | None,
    allowed_hosts: Sequence[str],
    workers: int,
    device: str | None,
    threads: int,
    page: bool,
    admins: Sequence[str] = (),
    search_tower: Path | None = None,
    safety: str = "off",
    safety_checker: Path | None = None,
    watermark: str | None = None,
) -> Settings:
    """Settings from the command line; errors as `Config.from_dict`, and `ModelNotFound` for a file that isn't there."""
    if search_tower is not None and not search_tower.expanduser().is_file():
        raise missing_tower(search_tower)
    if safety_checker is not None and not safety_checker.expanduser().exists():
        raise ModelNotFound("safety checker", given=str(safety_checker), expected="a folder or file that exists")
    if watermark is not None:
        Request.from_dict({"watermark": watermark}, where="serve")
    folder = (data or data_folder()).expanduser()
    shelves = [*model_folders(), *(path.expanduser() for path in models)]
    return Settings.from_dict(
        {
            "data": folder, "host": host, "port": port, "store": store, "models": tuple(shelves),
            "default_model": default_model, "allowed_hosts": tuple(allowed_hosts), "workers": workers,
            "device": device, "threads": threads, "page": page,
            "admins": ("admin", *admins),
            "search_tower": None if search_tower is None else search_tower.expanduser().resolve(),
            "safety_checker": None if safety_checker is None else safety_checker.expanduser().resolve(),
            "safety": safety, "watermark": watermark,
        },
        where="serve",
    )  # fmt: skip


def check_openness(studio: Studio) -> None:
    """Refuse to listen where others can reach it without a token.

    Raises:
        InvalidInput: no account and not on loopback.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        studio.accounts.add_token("admin", token)
    if not studio.settings.on_loopback and not studio.accounts.any():
        raise InvalidInput(
            "host", given=f"{studio.settings.host} without any account", expected="127.0.0.1, or a token",
            cure=f"Make one with `gouache serve --new-token NAME`, or set {TOKEN_VARIABLE}.",
        )  # fmt: skip


def run(studio: Studio, announce: Callable[[str], object]) -> None:
    """Serve until a signal asks for the end.

    Args:
        studio: what to serve.
        announce: told the address once it listens.

    Raises:
        InvalidInput: it may not, or can't, listen there.
    """
    from gouache.serve.app import create_app

    check_openness(studio)
    settings = studio.settings
    listener = listen(settings)
    log_to_stderr()
    address = listener.getsockname()
    announce(f"http://{settings.host}:{address[1]}")
    config = uvicorn_config(create_app(studio), settings)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        studio.close()
        listener.close()
