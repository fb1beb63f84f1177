"""Who asks: from a session, a token or a password to a user, and whether that still holds while an answer is sent."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from gouache.serve.settings import Settings
from gouache.serve.store.accounts import Accounts, Credential, digest_of

SESSION = "gouache_session"
RECHECK_SECONDS = 1.0
"""How often a long answer looks whether its reader may still read."""
MOST_REMEMBERED = 100
Found = TypeVar("Found")
log = logging.getLogger("gouache.access")


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
        self._keep(name, left if wait else left - 1)
        return wait

    def give_back(self, name: str) -> None:
        """Undo one `take`."""
        self._keep(name, min(float(self.per_minute), self.left(name) + 1))

    def _keep(self, name: str, left: float) -> None:
        self._left[name] = (left, time.monotonic())
        self._left.move_to_end(name)
        if len(self._left) > self._MOST:
            self._left.popitem(last=False)


class Visitors:
    """Finds out who sends a request.

    Args:
        accounts: who is known.
        settings: of the studio.
        failures: wrong tokens and passwords, by network.
    """

    def __init__(self, accounts: Accounts, settings: Settings, failures: Buckets) -> None:
        self.accounts, self.settings, self.failures = accounts, settings, failures
        # A password's hash is slow on purpose, and Basic sends it with every request: digest of the header -> digest
        # of the stored hash that it was right for. The stored one is read each time, so a change counts at once.
        self._right: OrderedDict[bytes, str] = OrderedDict()

    async def is_open(self) -> bool:
        """Whether everybody on this machine is the one user: on loopback, as long as there is no account."""
        return self.settings.on_loopback and not await self.ask(self.accounts.any)

    async def of(self, headers: Headers, address: str, request_id: str) -> Credential | float | None:
        """Who it is; None if unknown; seconds to wait after too many wrong tries.

        Args:
            headers: of the request.
            address: it comes from.
            request_id: for the log.
        """
        given = headers.get("authorization", "")
        if not given:
            session = session_in(headers)
            return await self.ask(self.accounts.by_session, session) if session else None
        # What can't be guessed is looked at first, so that nobody waits for the wrong tries of others.
        known = await self.ask(self._known, given)
        if known is not None:
            return known
        network = network_of(address)
        # Taken before the check and given back after a right one: tries that come at the same moment count too.
        if self.failures.take(network):
            return 60.0 / self.settings.limits.failed_logins_per_minute
        name, password = _basic(given)
        found = await asyncio.to_thread(self.accounts.by_password, name, password) if name else None
        if found is None:
            log_failure(name, address, request_id)
            return None
        self.failures.give_back(network)
        self._right[_digest(given)] = found.key
        while len(self._right) > MOST_REMEMBERED:
            self._right.popitem(last=False)
        return found

    async def holds(self, credential: Credential, headers: Headers) -> bool:
        """Whether a request that was let in still would be: its session is not signed out, its credential not revoked.

        Args:
            credential: by which it was let in.
            headers: of the request.
        """
        session = session_in(headers) if not headers.get("authorization") else None
        if session is not None:
            return await self.ask(self.accounts.by_session, session) == credential
        return await self.ask(self.accounts.holds, credential)

    async def ask(self, question: Callable[..., Found], *values: object) -> Found:
        """Ask the store: SQLite here, which keeps no reader waiting; another in a thread."""
        if self.accounts.database.sqlite:
            return question(*values)
        return await asyncio.to_thread(question, *values)

    def _known(self, given: str) -> Credential | None:
        """By a token, or by a password that was right before."""
        kind, _, value = given.partition(" ")
        if kind.lower() == "bearer":
            return self.accounts.by_token(value.strip())
        name, password = _basic(given)
        if not name:
            return None
        found = self.accounts.by_token(password)
        if found is not None and found.owner == name:
            return found
        right = self._right.get(_digest(given))
        stored = self.accounts.password_of(name) if right else None
        return Credential(name, right) if right and stored and digest_of(stored) == right else None


class NoLongerWelcome(OSError):
    """Whoever reads an answer was signed out, or their token revoked, before it was sent."""


def while_welcome(send: Send, holds: Callable[[], Awaitable[bool]], refuse: Callable[[], Awaitable[None]]) -> Send:
    """Send an answer as long as its reader may read it; a long one ends where that changes.

    Args:
        send: sends.
        holds: whether the reader may still read.
        refuse: sends a refusal in place of the answer.
    """
    looked, started, measured, over = time.monotonic(), False, True, False

    async def sent(message: Message) -> None:
        nonlocal looked, started, measured, over
        # Half of a file whose length was told can't be ended properly; its reader was let in when it began.
        if not over and not (started and measured) and time.monotonic() - looked > RECHECK_SECONDS:
            looked, over = time.monotonic(), not await holds()
            if over:
                await (send({"type": "http.response.body", "body": b"", "more_body": False}) if started else refuse())
                raise NoLongerWelcome("no longer signed in")
        if over:  # What Starlette says to the exception.
            return
        if message["type"] == "http.response.start":
            started = True
            measured = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        await send(message)

    return sent


def log_failure(name: str, address: str, request_id: str) -> None:
    """Write down that somebody came with a wrong token or password."""
    log.warning("log-in failed", extra={"request": request_id, "user": name[:80], "address": address})


def address_of(scope: Scope) -> str:
    """Where a request comes from."""
    return str((scope.get("client") or ("?", 0))[0])


def network_of(address: str) -> str:
    """What counts as one place to guess from: an address, or a network of 64 bits, of which many have one to spend."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed.packed, 64), strict=False))


def session_in(headers: Headers) -> str | None:
    """The session that a browser sends, if it sends one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(SESSION)
    except CookieError:
        return None
    return None if found is None else found.value


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


def _digest(given: str) -> bytes:
    return hashlib.sha256(given.encode("utf-8", "replace")).digest()
