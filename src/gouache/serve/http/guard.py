"""What stands before every route: names, origins, users, rates, sizes, and the headers of every reply."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import secrets
import time
from collections import Counter
from urllib.parse import urlsplit

from itsdangerous import BadData, URLSafeTimedSerializer
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gouache.errors import StoreAway, StoreError
from gouache.serve.http.replies import refusal, reply_to
from gouache.serve.http.visitors import Buckets, NoLongerWelcome, Visitors, address_of, while_welcome
from gouache.serve.settings import LOOPBACK, Limits, Settings
from gouache.serve.store.accounts import LOCAL, Accounts
from gouache.serve.store.outages import away

OPEN_PATHS = ("/healthz", "/readyz", "/login", "/logout")
LINK_SECONDS = 3600
"""How long a signed link to an image is good."""
PARTS = (b",", b"[", b"{")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
log = logging.getLogger("gouache.access")
API_CSP = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class Guard:
    """ASGI middleware: everything is refused here that should never reach a route.

    Args:
        app: what it guards.
        settings: of the studio.
        accounts: who may come in.
        secret: signs links.
        failures: wrong tokens and passwords, by address.
    """

    def __init__(self, app: ASGIApp, settings: Settings, accounts: Accounts, secret: bytes, failures: Buckets) -> None:
        self.app, self.settings, self.secret = app, settings, secret
        self.visitors = Visitors(accounts, settings, failures)
        self.requests = Buckets(settings.limits.requests_per_minute)
        self.held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})["request_id"] = secrets.token_hex(8)
        send = _with_headers(send, scope)
        answer = await self._refused(scope, headers)
        if answer is not None:
            await _send_refusal(answer, scope, receive, send)
            return
        credential = scope["state"].get("credential")
        if credential is not None:

            async def refuse() -> None:
                await self._ask_who(scope, headers)(scope, receive, plain)

            plain = send
            send = while_welcome(send, lambda: self.visitors.holds(credential, headers), refuse)
        try:
            await _Capped(self.app, self.settings.limits, self.held)(scope, receive, send)
        except (NoLongerWelcome, ClientDisconnect):  # Starlette takes the first for the second.
            log.info("answer not sent", extra={"request": scope["state"]["request_id"]})

    async def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        path = scope["path"]
        host = headers.get("host", "")
        if not self._host_is_ours(host):
            return _no(path, 403, "Host", f"the host {host[:80]!r} is not one of this server's names")
        if not _origin_fits(scope, headers, host):
            return _no(path, 403, "Origin", "the request comes from another site")
        if b"%00" in scope.get("raw_path", b"") or b"%00" in scope.get("query_string", b"") or "\0" in path:
            return _no(path, 400, "url", "a NUL character in the address")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.settings.limits.body_bytes:
            return _too_large(path, self.settings.limits.body_bytes)
        try:
            return await self._stranger(scope, headers)
        except StoreAway as error:  # Nobody can be known just now.
            return reply_to(path, error)
        except (StoreError, SQLAlchemyError):
            log.exception("the store does not answer", extra={"request": scope["state"]["request_id"]})
            return reply_to(path, away("no answer"))

    async def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse who isn't known; write down who is."""
        path, state = scope["path"], scope["state"]
        if path in OPEN_PATHS or signed_path(scope, self.secret):
            state["owner"] = None
            return None
        if await self.visitors.is_open():
            state["owner"] = LOCAL
        else:
            found = await self.visitors.of(headers, address_of(scope), state["request_id"])
            if isinstance(found, float):
                return _slow(path, found)
            if found is None:
                return self._ask_who(scope, headers)
            state["owner"], state["credential"] = found.owner, found
        wait = self.requests.take(state["owner"])
        return _slow(path, wait) if wait else None

    def _ask_who(self, scope: Scope, headers: Headers) -> Response:
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        said = "a token is needed" if "authorization" not in headers else "Incorrect username or password"
        answer = _no(scope["path"], 401, "Authorization", said)
        answer.headers["www-authenticate"] = 'Basic realm="gouache"'
        return answer

    def _host_is_ours(self, host: str) -> bool:
        """Loopback names, names that were allowed, and, off loopback, plain addresses: a page on another site can
        make its own name point here, but not an address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in LOOPBACK or name in self.settings.allowed_hosts:
            return True
        return not self.settings.on_loopback and (name == self.settings.host or _is_address(name))


class _Capped:
    """Stops reading a body that is longer than allowed, whatever its length header says, that comes too slowly, or
    that is too much together with its user's others.

    Args:
        held: bytes of all bodies that are held now, by user.
    """

    def __init__(self, app: ASGIApp, limits: Limits, held: Counter[str]) -> None:
        self.app, self.limits, self.held = app, limits, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen, parts, whole, started = 0, 0, False, False
        first: Message | None = None
        is_json = "json" in Headers(scope=scope).get("content-type", "").lower()
        owner = str(scope["state"].get("owner") or "")
        until = time.monotonic() + self.limits.body_seconds
        no: Response | None = None

        async def counted() -> Message:
            nonlocal seen, whole, no, parts, first
            if first is not None:
                message, first = first, None
                return message
            if whole:  # Now it only waits for the client to go away.
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError as error:
                no = _no(scope["path"], 408, "body", f"the body took longer than {self.limits.body_seconds:g} s")
                raise _BadBody("a body that comes too slowly") from error
            seen += len(message.get("body", b""))
            self.held[owner] += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            parts += sum(map(message.get("body", b"").count, PARTS)) if is_json else 0
            if parts > self.limits.json_parts:
                no = _too_large(scope["path"], self.limits.json_parts, "commas and brackets")
                raise _BadBody(f"a JSON body of more than {self.limits.json_parts} parts")
            if seen > self.limits.body_bytes:
                no = _too_large(scope["path"], self.limits.body_bytes)
                raise _BadBody(f"a body of more than {self.limits.body_bytes} bytes")
            if self.held[owner] > self.limits.bodies_bytes:
                no = _busy(scope["path"])
                raise _BadBody("more than all of a user's bodies may have")
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            if no is not None and not started:
                return
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            with contextlib.suppress(_BadBody):
                if _says_no_kind(scope):
                    first = await counted()
                    if (start := first.get("body", b"")).lstrip()[:1] in (b"{", b"["):
                        scope, is_json, parts = _as_json(scope), True, sum(map(start.count, PARTS))
                await self.app(scope, counted, sent)
        finally:
            self.held[owner] -= seen
            if not self.held[owner]:
                del self.held[owner]
        if no is not None and not started:
            no.headers["connection"] = "close"
            await no(scope, receive, send)


NO_KIND = ("", "application/x-www-form-urlencoded", "text/plain")
"""What a client says that says nothing: the second is what curl's `-d` adds by itself."""


def _says_no_kind(scope: Scope) -> bool:
    """Whether a body for this interface comes without a word, or with a habit, on what it is. Origin and host have been
    checked by now, so that no page of another site is behind it."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return scope["path"].startswith("/v1/") and scope["method"] not in SAFE_METHODS and kind in NO_KIND


def _as_json(scope: Scope) -> Scope:
    """The same request, whose body begins as JSON does, with that said."""
    others = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


class _BadBody(Exception):
    """Raised inside the reading of a body."""


async def _send_refusal(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    await answer(scope, receive, send)


def _with_headers(send: Send, scope: Scope) -> Send:
    request_id = scope["state"]["request_id"]
    start = time.perf_counter()

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for key, value in HEADERS.items():
                headers.setdefault(key, value)
            if "content-security-policy" not in headers:
                headers["content-security-policy"] = API_CSP
            headers["x-request-id"] = request_id
            headers["x-process-time"] = f"{time.perf_counter() - start:.4f}"
            if message["status"] >= 400:
                _log_refusal(scope, message["status"])
        await send(message)

    return sent


def _log_refusal(scope: Scope, status: int) -> None:
    """The query is left out: signatures stand there."""
    facts = {"status": status, "method": scope.get("method"), "path": scope["path"][:200]}
    who = {"owner": scope["state"].get("owner"), "address": address_of(scope)}
    log.info("request refused", extra={"request": scope["state"]["request_id"], **facts, **who})


def _origin_fits(scope: Scope, headers: Headers, host: str) -> bool:
    """A browser names the page's origin; other clients send none. Only our own may call."""
    origin = headers.get("origin")
    if origin is None:
        fetched_from = headers.get("sec-fetch-site", "none")
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        return not (unsafe and fetched_from in ("cross-site", "same-site"))
    try:
        parts = urlsplit(origin)
    except ValueError:  # Such as http://[::
        return False
    return parts.netloc.lower() == host.lower() and parts.scheme in ("http", "https")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def seal(value: str, secret: bytes, purpose: str) -> str:
    """A text that only this store can have made, with the time at which it was."""
    return str(_sealer(secret, purpose).dumps(value))


def open_seal(text: str, secret: bytes, purpose: str, seconds: float) -> str | None:
    """The value inside, or None if the signature is wrong or it is older than so many seconds."""
    try:
        return str(_sealer(secret, purpose).loads(text, max_age=int(seconds)))
    except BadData:
        return None


def _sealer(secret: bytes, purpose: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret, salt=purpose, signer_kwargs={"digest_method": hashlib.sha256})


def signed_path(scope: Scope, secret: bytes) -> bool:
    """Whether the request carries a link that was signed for exactly this path."""
    query = scope.get("query_string", b"").decode("latin-1")
    if scope["type"] != "http" or scope["method"] != "GET" or not query.startswith("link="):
        return False
    return open_seal(query.removeprefix("link="), secret, "link", LINK_SECONDS) == str(scope["path"])


def _no(path: str, status: int, where: str, message: str) -> Response:
    return refusal(path, status, {"where": where, "message": message})


def _slow(path: str, seconds: float) -> Response:
    after = str(max(1, round(seconds)))
    return refusal(path, 429, {"where": "rate", "message": "too many requests"}, {"Retry-After": after})


def _busy(path: str) -> Response:
    parts = {"where": "body", "message": "too many of your bodies are being worked on"}
    return refusal(path, 503, parts, {"Retry-After": "5"})


def _too_large(path: str, limit: int, unit: str = "bytes") -> Response:
    return refusal(path, 413, {"where": "body", "message": f"the body has more than {limit} {unit}"})
