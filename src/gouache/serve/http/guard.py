"""What stands before every route: names, origins, users, rates, sizes, and the headers of every reply."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import ipaddress
import secrets
import time
from collections import Counter, OrderedDict
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gouache.serve.http.replies import refusal
from gouache.serve.settings import LOOPBACK, Limits, Settings
from gouache.serve.store.accounts import LOCAL, Accounts


class Buckets:
    """So many events a minute for each name, refilled evenly.

    Args:
        per_minute: events that a name may make in a minute.
    """

    _MOST = 10_000

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, name: str) -> float:
        """How many it may make now."""
        left, then = self._left.get(name, (float(self.per_minute), 0.0))
        return min(float(self.per_minute), left + (time.monotonic() - then) * self.per_minute / 60)

    def take(self, name: str) -> float:
        """Take one; gives 0, or the seconds until the next may be taken."""
        left = self.left(name)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.per_minute
        self._left[name] = (left if wait else left - 1, time.monotonic())
        self._left.move_to_end(name)
        if len(self._left) > self._MOST:
            self._left.popitem(last=False)
        return wait


OPEN_PATHS = ("/healthz", "/readyz", "/login")
SESSION = "gouache_session"
SESSION_SECONDS = 14 * 24 * 3600
LINK_SECONDS = 3600
"""How long a signed link to an image is good."""
RECENT_SECONDS = 5.0
"""How long a checked token or password counts without another look: pollers ask often, a password costs 50 ms."""
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
API_CSP = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class Guard:
    """ASGI middleware: everything is refused here that should never reach a route.

    Args:
        app: what it guards.
        settings: of the studio.
        accounts: who may come in.
        secret: signs sessions and links.
        failures: wrong tokens and passwords, by address.
    """

    def __init__(self, app: ASGIApp, settings: Settings, accounts: Accounts, secret: bytes, failures: Buckets) -> None:
        self.app, self.settings, self.accounts, self.secret = app, settings, accounts, secret
        self.failures = failures
        self.closed = accounts.any() or not settings.on_loopback
        self.requests = Buckets(settings.limits.requests_per_minute)
        self.held: Counter[str] = Counter()
        self._recent: dict[bytes, tuple[str, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refused(scope, headers)
        if answer is not None:
            await _send_refusal(answer, scope, receive, _with_headers(send, scope))
            return
        await _Capped(self.app, self.settings.limits, self.held)(scope, receive, _with_headers(send, scope))

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
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
        return self._stranger(scope, headers)

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse who isn't known; write down who is."""
        path = scope["path"]
        state = scope.setdefault("state", {})
        if path in OPEN_PATHS or signed_path(scope, self.secret):
            state["owner"] = None
            return None
        address = (scope.get("client") or ("?", 0))[0]
        owner = LOCAL if not self.closed else self._owner(headers, address)
        if isinstance(owner, float):
            return _slow(path, owner)
        if owner is None:
            return self._ask_who(scope, headers)
        state["owner"] = owner
        wait = self.requests.take(owner)
        return _slow(path, wait) if wait else None

    def _ask_who(self, scope: Scope, headers: Headers) -> Response:
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        said = "a token is needed" if "authorization" not in headers else "Incorrect username or password"
        answer = _no(scope["path"], 401, "Authorization", said)
        answer.headers["www-authenticate"] = 'Basic realm="gouache"'
        return answer

    def _owner(self, headers: Headers, address: str) -> str | float | None:
        """Who it is; None if unknown; seconds to wait after too many wrong tries."""
        given = headers.get("authorization", "") or f"Cookie {_cookie(headers.get('cookie', '')) or ''}"
        # A password's hash is slow on purpose, and Basic sends it with every request.
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        known = self._recent.get(digest)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        # What can't be guessed is looked at first, so that nobody waits for the wrong tries of others.
        owner = self._by_session(given) or self._by_token(given)
        if owner is None and not given.startswith("Cookie "):
            if self.failures.left(network_of(address)) < 1:
                return 60.0 / self.settings.limits.failed_logins_per_minute
            owner = self._by_password(given)
            if owner is None:
                self.failures.take(network_of(address))
        if owner is not None:
            self._recent = {digest: (owner, time.monotonic() + RECENT_SECONDS), **dict(list(self._recent.items())[:99])}
        return owner

    def _by_session(self, given: str) -> str | None:
        kind, _, sealed = given.partition(" ")
        value = open_seal(sealed, self.secret, "session", SESSION_SECONDS) if kind == "Cookie" and sealed else None
        since, _, owner = (value or "").partition(" ")
        return owner if owner and self.accounts.still_in(owner, float(since)) else None

    def _by_token(self, given: str) -> str | None:
        kind, _, value = given.partition(" ")
        if kind.lower() == "bearer":
            return self.accounts.owner_of_token(value.strip())
        name, password = _basic(given)
        return name if name and self.accounts.owner_of_token(password) == name else None

    def _by_password(self, given: str) -> str | None:
        name, password = _basic(given)
        return self.accounts.owner_of_password(name, password) if name else None

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
    request_id = secrets.token_hex(8)
    scope.setdefault("state", {})["request_id"] = request_id
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
        await send(message)

    return sent


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


def network_of(address: str) -> str:
    """What counts as one place to guess from: an address, or a network of 64 bits, of which many have one to spend."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed.packed, 64), strict=False))


def _basic(given: str) -> tuple[str, str]:
    """Name and password of HTTP Basic; empty if it is something else."""
    kind, _, value = given.partition(" ")
    if kind.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, password


def session_of(owner: str, secret: bytes) -> str:
    """What a browser keeps that has signed in: who, and since when."""
    return seal(f"{time.time():.3f} {owner}", secret, "session")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(text: str) -> str | None:
    try:
        found = SimpleCookie(text).get(SESSION)
    except CookieError:
        return None
    return None if found is None else found.value


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
