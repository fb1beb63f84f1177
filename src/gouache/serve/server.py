"""The ASGI application, and what starts it where it may listen, bounds its connections and stops it gracefully."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp

from gouache import __version__
from gouache.environment import Variable
from gouache.errors import GouacheError, InvalidInput
from gouache.serve.api import bulk as api_bulk
from gouache.serve.api import editing as api_editing
from gouache.serve.api import events as api_events
from gouache.serve.api import explanations as api_explanations
from gouache.serve.api import forms as api_forms
from gouache.serve.api import jobs as api_jobs
from gouache.serve.api import model_files as api_model_files
from gouache.serve.api import models as api_models
from gouache.serve.api import pictures as api_pictures
from gouache.serve.api import presets as api_presets
from gouache.serve.api import queue as api_queue
from gouache.serve.api import recipes as api_recipes
from gouache.serve.api import training as api_training
from gouache.serve.api.a1111 import listings as a1111_listings
from gouache.serve.api.a1111 import routes as a1111
from gouache.serve.api.a1111 import units as a1111_control
from gouache.serve.api.openai import routes as openai_images
from gouache.serve.http import ops
from gouache.serve.http.guard import Guard
from gouache.serve.http.ops import Counted, Metrics
from gouache.serve.http.replies import refusal, reply_to, validation_reply
from gouache.serve.http.schema import describe
from gouache.serve.http.slow_headers import patient
from gouache.serve.logs import log_to_stderr
from gouache.serve.page import routes as page
from gouache.serve.settings import Settings
from gouache.serve.start import check_can_paint
from gouache.serve.store.accounts import ADMIN
from gouache.serve.store.file_store import disk_error, is_of_disk
from gouache.serve.studio import Studio
from gouache.serve.worker.supervisor import ARENAS


def create_app(studio: Studio) -> ASGIApp:
    """The whole server as one ASGI application.

    Args:
        studio: what it serves; started and stopped with the application.
    """
    api = create_api(studio)
    guarded = Guard(api, studio.settings, studio.accounts, studio.secret, studio.failures)
    # Outermost: what the guard refuses is counted too.
    return Counted(guarded, api.state.metrics)


def create_api(studio: Studio) -> FastAPI:
    """The routes without the guard; for the schema."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        studio.notifier.bind()
        studio.supervisor.start()
        studio.training.resume_all()
        studio.housekeeping.start()
        try:
            yield
        finally:
            studio.housekeeping.stop()
            studio.training.suspend_all()
            studio.supervisor.stop()

    api = FastAPI(
        title="gouache", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    api.state.studio = studio
    api.state.metrics = Metrics()
    studio.feed.beside = api_events.beside(studio)
    for part in (
        api_jobs,
        api_queue,
        api_events,
        api_bulk,  # Its fixed paths before those with an id in them.
        api_pictures,
        api_recipes,
        api_explanations,
        api_editing,
        api_forms,
        api_presets,
        api_models,
        api_model_files,
        api_training,
        a1111,
        a1111_listings,
        a1111_control,
        openai_images,
        ops,
        page,
    ):
        api.include_router(part.router)
    _add_error_replies(api)
    describe(api)
    if studio.settings.page:
        api.include_router(page.pages)
    for prefix in API_PREFIXES:
        api.add_api_route(prefix + "/{rest:path}", _unknown, methods=METHODS, include_in_schema=False)
    return api


API_PREFIXES = ("/v1", "/sdapi", "/controlnet")
"""Paths that belong to an interface, whose errors have its shape."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def _unknown(request: Request) -> None:
    """What no route serves, told in the shape of the interface that the path belongs to.

    Raises:
        HTTPException: 404, or 405 where another method would be served.
    """
    served = [route for route in request.app.routes if getattr(route, "endpoint", None) is not _unknown]
    scope = dict(request.scope)
    allowed = [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in served)
    ]
    if allowed:
        raise HTTPException(405, "Method Not Allowed", {"Allow": ", ".join(allowed)})
    raise HTTPException(404, f"Unknown path {request.url.path}")


def _add_error_replies(api: FastAPI) -> None:
    @api.exception_handler(GouacheError)
    async def _known(request: Request, error: GouacheError) -> Response:
        return reply_to(request.url.path, api.state.studio.hidden(error))

    @api.exception_handler(OSError)
    async def _of_disk(request: Request, error: OSError) -> Response:
        if not is_of_disk(error):
            raise error
        log.warning("disk", extra={"error": str(error)})
        return reply_to(request.url.path, disk_error(error))

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return validation_reply(request.url.path, error.errors())

    @api.exception_handler(HTTPException)
    async def _plain(request: Request, error: HTTPException) -> Response:
        return refusal(request.url.path, error.status_code, {"message": str(error.detail)}, error.headers)


SPARE_FILES = 256
"""Open files that the store, the pictures and the workers need beside the connections."""

BACKLOG = 2048


class WebServer(uvicorn.Server):
    """The web server of one studio, whose stop ends the event streams: they would never end by themselves.

    Args:
        studio: what it serves.
    """

    def __init__(self, studio: Studio) -> None:
        super().__init__(uvicorn_config(create_app(studio), studio.settings))
        self.studio = studio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is being answered, and stop."""
        self.studio.feed.close()
        await super().shutdown(sockets)


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How the web server runs.

    What proxies say of a request's address and scheme counts from those in the settings only. Headers come within
    `header_seconds` and 64 KiB; beyond `connections` the answer is 503; nothing here speaks
    WebSocket.
    """
    most = min(settings.limits.connections, max(1, allow_open_files() - SPARE_FILES))
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        forwarded_allow_ips=list(settings.behind_proxy),
        http=patient(settings.limits.header_seconds),
        limit_concurrency=most,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )


def allow_open_files() -> int:
    """Raise the soft limit of open files to the hard one, as far as a busy server needs; gives the limit."""
    try:
        import resource
    except ImportError:  # Not a Unix.
        return 2**16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**16
    wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def listen(settings: Settings) -> socket.socket:
    """A socket that listens: who comes while the server still starts waits, and is not refused.

    Raises:
        InvalidInput: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it small replies take 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A client that asks for a picture and reads nothing of it is cut off, by the kernel.
        wait = round(1000 * settings.limits.body_seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wait)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidInput(
            "port",
            given=f"{settings.host}:{settings.port}",
            expected="a free port of this machine",
            cure=f"{error.strerror}. Choose another with --port.",
        ) from error
    return listener


log = logging.getLogger("gouache.server")


def check_openness(studio: Studio) -> None:
    """Refuse to listen where others can reach it without a token.

    The environment's token counts while this process lives: it is not stored.

    Raises:
        InvalidInput: no account and not on loopback, or a token that is no secret.
    """
    token = os.environ.get(Variable.TOKEN)
    if token:
        studio.accounts.lend_token(ADMIN, token)
    if not studio.settings.on_loopback and not studio.accounts.any():
        raise InvalidInput(
            "host",
            given=f"{studio.settings.host} without any account",
            expected="127.0.0.1, or a token",
            cure=f"Make one with `gouache accounts add NAME`, or set {Variable.TOKEN}.",
        )


def share_heaps() -> None:
    """As many heaps for this process's threads as the workers get; nothing where the C library is not glibc."""
    if Variable.MALLOC_ARENA_MAX not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, ARENAS)


_M_ARENA_MAX = -8
"""From glibc's malloc.h."""


def run(studio: Studio, announce: Callable[[str], object]) -> None:
    """Serve until a signal asks for the end.

    Args:
        studio: what to serve.
        announce: told the address once it listens.

    Raises:
        InvalidInput: it may not, or can't, listen there.
        GouacheError: as `check_can_paint`.
    """
    share_heaps()
    check_openness(studio)
    # Nothing decodes a picture in this process; should anything ever, it refuses what is over the limit of uploads
    # (Pillow raises at twice its own).
    Image.MAX_IMAGE_PIXELS = studio.upload_pixels // 2
    settings = studio.settings
    check_can_paint(studio.catalog, settings, workers=settings.workers)
    listener = listen(settings)
    log_to_stderr()
    address = listener.getsockname()
    announce(f"http://{settings.host}:{address[1]}")
    try:
        WebServer(studio).run(sockets=[listener])
    finally:
        studio.close()
        listener.close()
