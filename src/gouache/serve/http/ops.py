"""Health, metrics, and signing in."""

from __future__ import annotations

import asyncio
import threading
import time
from html import escape
from typing import Annotated

from fastapi import APIRouter, Form, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gouache.errors import StoreAway
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.http.visitors import SESSION, address_of, log_failure, network_of, session_in
from gouache.serve.queue.job import EndedJob
from gouache.serve.store.accounts import SESSION_SECONDS
from gouache.serve.studio import Studio

router = APIRouter(tags=["ops"])
JOB_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Edges of the histograms of jobs."""
LATE_SECONDS = 30.0


class Metrics:
    """What one server process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gouache_http_requests", "HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "gouache_http_request_duration_seconds", "Time until an answer begins.", ["route"], registry=self.registry
        )
        self.ended = Counter(
            "gouache_jobs_ended", "Jobs that ended since the server began.", ["state"], registry=self.registry
        )
        self.waited, self.painted = (
            Histogram(f"gouache_job_{name}_duration_seconds", text, buckets=JOB_SECONDS, registry=self.registry)
            for name, text in (("wait", "From handing in to the start."), ("paint", "From the start to the end."))
        )
        self._since, self._seen, self._lock = 0.0, set[EndedJob](), threading.Lock()
        self.jobs = Gauge("gouache_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self.pictures = Gauge("gouache_pictures", "Pictures in the gallery.", registry=self.registry)
        self.workers = Gauge("gouache_workers", "Workers that run.", registry=self.registry)
        self.memory = Gauge("gouache_resident_bytes", "Resident memory.", ["process"], registry=self.registry)
        self.pace = Gauge("gouache_steps_per_second", "Steps of the jobs of the last minute.", registry=self.registry)
        self.wait = Gauge("gouache_oldest_wait_seconds", "Age of the oldest waiting job.", registry=self.registry)
        self.uptime = Gauge("gouache_uptime_seconds", "Since the start.", registry=self.registry)

    def _count_ended(self, studio: Studio) -> None:
        """Workers are other processes: what they ended is read from the store, each job once."""
        # What was committed late has an earlier time than what was read: looked for a little into the past.
        with self._lock:
            ended = studio.jobs.ended_since(max(studio.started, self._since - LATE_SECONDS))
            for job in ended:
                if job not in self._seen:
                    self.ended.labels(job.state).inc()
                    if job.started is not None:
                        self.waited.observe(max(0.0, job.started - job.created))
                        self.painted.observe(max(0.0, job.finished - job.started))
            self._seen = set(ended)
            self._since = max((job.finished for job in ended), default=self._since)

    def text(self, studio: Studio) -> bytes:
        """Everything in Prometheus' text format."""
        for state, count in studio.jobs.counts().items():
            self.jobs.labels(state).set(count)
        self._count_ended(studio)
        self.pictures.set(studio.pictures.count())
        self.workers.set(studio.supervisor.alive())
        self.memory.labels("server").set(resident_bytes(None))
        self.memory.labels("workers").set(sum(resident_bytes(pid) for pid in studio.supervisor.processes()))
        self.pace.set(studio.jobs.steps_per_second(60.0))
        self.wait.set(studio.jobs.oldest_wait())
        self.uptime.set(time.time() - studio.started)
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts replies by route, so that ids don't become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(_method(scope["method"]), route, message["status"]).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
            await send(message)

        await self.app(scope, receive, sent)


def _method(name: str) -> str:
    return name if name in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"


def resident_bytes(pid: int | None) -> int:
    """Resident memory of a process, 0 where /proc isn't there."""
    try:
        with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0


STORE_SECONDS = 1.8
"""A store that has not answered by then is away."""


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz(request: Request, response: Response) -> dict[str, str]:
    """The process answers, and whatever should run in it runs."""
    if not studio_of(request).supervisor.is_sound():
        response.status_code = 503
        return {"status": "nobody watches the workers"}
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(request: Request, response: Response) -> dict[str, str]:
    """The store answers, and a worker lives that has its model on its device (or workers run elsewhere); also what
    runs the networks of this machine's workers, as `gouache serve --engine` says."""
    studio = studio_of(request)
    try:
        await asyncio.wait_for(asyncio.to_thread(studio.database.check), STORE_SECONDS)
        status = studio.supervisor.readiness()
    except StoreAway as error:
        status = f"the store has {error.given}"
    except TimeoutError:
        status = "the store does not answer"
    response.status_code = 200 if status == "ready" else 503
    here = studio.settings
    return {"status": status, **({"engine": here.engine} if here.workers else {})}


@router.options("/healthz", include_in_schema=False)
@router.options("/readyz", include_in_schema=False)
async def probe_methods() -> Response:
    """What may be asked of the two."""
    return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS"})


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """For Prometheus. A token is needed where the studio has accounts."""
    owner_of(request)
    counted: Metrics = request.app.state.metrics
    return Response(counted.text(studio_of(request)), media_type=CONTENT_TYPE_PLAIN_0_0_4)


_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>gouache</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:22rem;margin:15vh auto;padding:0 1rem}}
label,input,button{{display:block;width:100%;box-sizing:border-box;margin:.4rem 0}}
input,button{{padding:.6rem;font:inherit}}
p{{color:#a11}}</style><h1>gouache</h1>
<form method="post" action="/login"><label>Name · 用户名<input name="name" autocomplete="username"></label>
<label>Password or token · 密码或令牌<input name="password" type="password" autocomplete="current-password"></label>
<button>Sign in · 登录</button></form><p role="alert">{note}</p></html>"""
_LOGIN_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def _login_page(note: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(_LOGIN.format(note=escape(note)), status, {"Content-Security-Policy": _LOGIN_CSP})


@router.get("/login", response_class=HTMLResponse, include_in_schema=False)
def login_page() -> HTMLResponse:
    """A form for browsers."""
    return _login_page("")


@router.post("/login", include_in_schema=False)
def login(
    request: Request,
    name: Annotated[str, Form(max_length=128)] = "",
    password: Annotated[str, Form(max_length=512)] = "",
) -> Response:
    """Check name and password (or a token alone) and give a session."""
    studio = studio_of(request)
    network = network_of(address_of(request.scope))
    # Taken before the check and given back after a right one, so that tries of the same moment count too.
    if studio.failures.take(network):
        return _login_page("Too many tries; wait a minute. · 尝试次数过多，请稍候。", 429)
    found = studio.accounts.by_token(password) or studio.accounts.by_password(name, password)
    if found is None:
        log_failure(name, address_of(request.scope), request.state.request_id)
        return _login_page("Wrong name, password or token. · 用户名、密码或令牌不正确。", 401)
    studio.failures.give_back(network)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        SESSION,
        studio.accounts.open_session(found),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout", include_in_schema=False)
def logout(request: Request) -> Response:
    """End this browser's session, here and not only in the browser."""
    session = session_in(request.headers)
    if session:
        studio_of(request).accounts.close_session(session)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(SESSION, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer
