"""The HTTP application: routes, errors, and the guard around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from gouache import __version__
from gouache.errors import GouacheError
from gouache.serve.api import jobs as api_jobs
from gouache.serve.api import models as api_models
from gouache.serve.api import openai as openai_images
from gouache.serve.api import pictures as api_pictures
from gouache.serve.api import training as api_training
from gouache.serve.api.a1111 import control as a1111_control
from gouache.serve.api.a1111 import listings as a1111_listings
from gouache.serve.api.a1111 import routes as a1111
from gouache.serve.http import ops
from gouache.serve.http.errors import refusal, reply_to, validation_reply
from gouache.serve.http.guard import Guard
from gouache.serve.http.ops import Counted, Metrics
from gouache.serve.studio import Studio


def create_app(studio: Studio) -> ASGIApp:
    """The whole server as one ASGI application.

    Args:
        studio: what it serves; started and stopped with the application.
    """
    api = create_api(studio)
    if studio.settings.page:
        from gouache.serve.page.mount import PagePolicy, mount_page

        mount_page(api, studio)
        counted: ASGIApp = PagePolicy(Counted(api, api.state.metrics))
    else:
        counted = Counted(api, api.state.metrics)
    return Guard(counted, studio.settings, studio.accounts, studio.secret, studio.failures)


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
    for part in (
        api_jobs,
        api_pictures,
        api_models,
        api_training,
        a1111,
        a1111_listings,
        a1111_control,
        openai_images,
        ops,
    ):
        api.include_router(part.router)
    _add_error_replies(api)
    return api


def _add_error_replies(api: FastAPI) -> None:
    @api.exception_handler(GouacheError)
    async def _known(request: Request, error: GouacheError) -> Response:
        return reply_to(request.url.path, error)

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return validation_reply(request.url.path, error.errors())

    @api.exception_handler(HTTPException)
    async def _plain(request: Request, error: HTTPException) -> Response:
        return refusal(request.url.path, error.status_code, {"message": str(error.detail)}, error.headers)
