"""Who may use the studio: tokens, passwords and sessions, of which only hashes are kept.

A token or a password is a credential. A session remembers by which one it was opened and ends with it: with the token
that is revoked or expires, with the password that is changed, with the environment's token that is no longer set.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import unicodedata
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from gouache.errors import InvalidInput, NotFound
from gouache.serve.store.database import Database, ask, insert_missing, upsert
from gouache.serve.store.tables import accounts, sessions, tokens

LOCAL = "local"
"""The one user of a studio without accounts."""
ADMIN = "admin"
"""The user whom the environment's token belongs to."""
SHORTEST_PASSWORD = 8
SHORTEST_TOKEN = 16
LONGEST_SECRET = 512
LONGEST_NAME = 64
SESSION_SECONDS = 14 * 24 * 3600
SHOWN_DIGITS = 8
"""So many digits of a token's hash name it in lists: enough to choose it, nothing to guess it by."""
DAY = 24 * 3600.0
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_ALSO = "._+@-"
_LOOKALIKES = str.maketrans(
    "авгекмнопрстухіјѕһԁԛԝӏαγεηικνορτυχωϲϳɡɩı01l", "abrekmhonpctyxijshdqwiayenikvoptuxwcjgiioii"
)
"""Letters of other scripts, and digits, to the Latin letters that they are taken for (the common ones of Unicode's
Technical Standard 39)."""


@dataclass(frozen=True, slots=True)
class Credential:
    """By what somebody came in.

    Attributes:
        owner: who.
        key: sha256 of the token, or of the password's stored hash.
    """

    owner: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """One account as whoever runs the server sees it.

    Attributes:
        name: of the user.
        has_password: whether a password opens it.
        tokens: short name, time made and time of the end (None: never) of each token.
        sessions: how many browsers are signed in.
    """

    name: str
    has_password: bool
    tokens: tuple[tuple[str, float, float | None], ...]
    sessions: int


class Accounts:
    """Users, their passwords, tokens and sessions.

    Nothing is remembered from one call to the next: what another process of the store changes counts at once.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lent: dict[str, str] = {}

    def any(self) -> bool:
        """Whether there is anybody but the one user of an open studio."""
        if self._lent:
            return True
        with self.database.read() as connection:
            return ask(connection, "SELECT 1 FROM accounts LIMIT 1").first() is not None

    def listing(self) -> list[AccountView]:
        """Every account by name, with what opens it."""
        now = time.time()
        with self.database.read() as connection:
            known = {row.name: row.password is not None for row in connection.execute(select(accounts))}
            held = list(connection.execute(select(tokens).order_by(tokens.c.created)))
            open_ = list(connection.execute(select(sessions).where(sessions.c.expires > now)))
        return [
            AccountView(
                name=name,
                has_password=known[name],
                tokens=tuple(
                    (row.digest[:SHOWN_DIGITS], row.created, row.expires) for row in held if row.owner == name
                ),
                sessions=sum(row.owner == name for row in open_),
            )
            for name in sorted(known)
        ]

    def new_token(self, owner: str, *, days: float | None = None) -> str:
        """Make a token, and the account if there is none; the token is shown this once.

        Args:
            owner: whose.
            days: until it ends; None for never.

        Raises:
            InvalidInput: a name that can't be a user's, or no time.
        """
        token = "gouache-" + secrets.token_urlsafe(32)
        self.add_token(owner, token, days=days)
        return token

    def add_token(self, owner: str, token: str, *, days: float | None = None) -> None:
        """Accept a token that was made elsewhere; arguments as `new_token`.

        Raises:
            InvalidInput: no secret, a name that can't be a user's, or no time.
        """
        check_token(token)
        if days is not None and not 0 < days <= 36_500:
            raise InvalidInput("days", given=days, expected="more than 0, at most 36500")
        now = time.time()
        values = {"owner": owner, "created": now, "expires": None if days is None else now + days * DAY}
        with self.database.write() as connection:
            self._make(connection, owner)
            insert_missing(connection, tokens, {"digest": digest_of(token), **values})

    def lend_token(self, owner: str, token: str) -> None:
        """Accept a token for as long as this process lives, in place of the user's last such; none of it is stored.

        Raises:
            InvalidInput: no secret.
        """
        check_token(token)
        self._lent = {digest: name for digest, name in self._lent.items() if name != owner}
        self._lent[digest_of(token)] = owner

    def set_password(self, name: str, password: str) -> None:
        """Make an account or change its password; sessions that the old one opened end.

        Raises:
            InvalidInput: too short, too long, or a name that can't be a user's.
        """
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_SECRET:
            expected = f"{SHORTEST_PASSWORD} to {LONGEST_SECRET} characters"
            raise InvalidInput("password", given=f"{len(password)} characters", expected=expected)
        with self.database.write() as connection:
            self._make(connection, name)
            changed = {"password": _hashed(password)}
            connection.execute(update(accounts).where(accounts.c.name == name).values(changed))

    def revoke_tokens(self, owner: str, token: str | None = None) -> int:
        """Forget a user's tokens and sessions; a password stays.

        Args:
            owner: whose.
            token: only the one of this short name, as `listing` gives it, and the sessions that it opened.

        Returns:
            How many there were.

        Raises:
            NotFound: the user has no such token, nor a session.
        """
        gone = delete(tokens).where(tokens.c.owner == owner)
        if token is not None:
            gone = gone.where(tokens.c.digest.startswith(token[:64], autoescape=True))
        with self.database.write() as connection:
            count = connection.execute(gone).rowcount if token is None or len(token) >= SHOWN_DIGITS else 0
            ended = 0
            if token is None:
                ended = connection.execute(delete(sessions).where(sessions.c.owner == owner)).rowcount
        if not count and not ended:
            given = f"user {owner!r}, who has none" if token is None else f"{token!r}, which {owner!r} does not have"
            raise NotFound("token", given=given, expected="a user with a token", cure="See `gouache accounts list`.")
        return count

    def revoke(self, owner: str) -> None:
        """Forget an account: its password, every token and every session. Pictures and jobs stay.

        Raises:
            NotFound: no such account.
        """
        with self.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.owner == owner))
            connection.execute(delete(tokens).where(tokens.c.owner == owner))
            if not connection.execute(delete(accounts).where(accounts.c.name == owner)).rowcount:
                raise NotFound("account", given=repr(owner), expected="a user of `gouache accounts list`")

    def by_token(self, token: str) -> Credential | None:
        """Whose token it is, unless it is over."""
        digest = digest_of(token)
        if digest in self._lent:
            return Credential(self._lent[digest], digest)
        row = self._row("SELECT owner, expires FROM tokens WHERE digest = ?", digest)
        return None if row is None or _is_over(row.expires) else Credential(str(row.owner), digest)

    def by_password(self, name: str, password: str) -> Credential | None:
        """The user, if the password is right. It takes as long where there is no such user."""
        stored = self.password_of(name)
        right = _matches(password[:LONGEST_SECRET], stored or _NOBODY)
        return Credential(name, digest_of(stored)) if right and stored else None

    def password_of(self, name: str) -> str | None:
        """The stored hash of a user's password; None if there is none."""
        row = self._row("SELECT password FROM accounts WHERE name = ?", name) if "\0" not in name else None
        return None if row is None or row.password is None else str(row.password)

    def by_session(self, session: str) -> Credential | None:
        """Who signed in with this browser, unless it was signed out or what opened it no longer counts."""
        found = self._row("SELECT owner, credential, expires FROM sessions WHERE digest = ?", digest_of(session))
        if found is None or _is_over(found.expires):
            return None
        credential = Credential(str(found.owner), str(found.credential))
        return credential if self.holds(credential) else None

    def holds(self, credential: Credential) -> bool:
        """Whether what was right before still is."""
        owner, key = credential.owner, credential.key
        if key in self._lent:
            return self._lent[key] == owner
        row = self._row("SELECT owner, expires FROM tokens WHERE digest = ?", key)
        if row is not None:
            return str(row.owner) == owner and not _is_over(row.expires)
        stored = self.password_of(owner)
        return stored is not None and hmac.compare_digest(digest_of(stored), key)

    def open_session(self, credential: Credential) -> str:
        """What a browser keeps that signs in now; only its hash is stored."""
        session, now = secrets.token_urlsafe(32), time.time()
        values = {"digest": digest_of(session), "owner": credential.owner, "credential": credential.key}
        with self.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires < now))
            connection.execute(insert(sessions).values(**values, created=now, expires=now + SESSION_SECONDS))
        return session

    def close_session(self, session: str) -> None:
        """Sign one browser out."""
        with self.database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == digest_of(session)))

    def _row(self, statement: str, value: str) -> Row[Any] | None:
        with self.database.read() as connection:
            return ask(connection, statement, value).first()

    def _make(self, connection: Connection, name: str) -> None:
        """Make the account if there is none; the name of a new one is checked."""
        known = set(connection.execute(select(accounts.c.name)).scalars())
        if name not in known:
            check_name(name, known)
            upsert(connection, accounts, {"name": name}, {"password": None, "created": time.time()})


def check_name(name: str, known: set[str]) -> None:
    """Refuse a name that can't be a user's: it stands in lists, logs and HTTP Basic, and nobody should be taken for
    somebody else.

    Args:
        name: of a new user.
        known: who is there.

    Raises:
        InvalidInput: empty, too long, with other signs than letters, digits and a few more, of mixed scripts, or too
            like another user's.
    """
    fits = 0 < len(name) <= LONGEST_NAME and name[0].isalnum() and all(char.isalnum() or char in _ALSO for char in name)
    if not fits or unicodedata.normalize("NFKC", name) != name:
        signs = " ".join(_ALSO)
        expected = f"1 to {LONGEST_NAME} letters, digits and {signs}, a letter or digit first"
        raise InvalidInput("user", given=repr(name)[: LONGEST_NAME + 16], expected=expected)
    scripts = {unicodedata.name(char, "?").split()[0] for char in name if char.isalpha()}
    if len(scripts & {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}) > 1:
        raise InvalidInput(
            "user", given=f"{name!r}, which mixes {' and '.join(sorted(scripts))}", expected="one script"
        )
    for other in {*known, ADMIN, LOCAL} - {name}:
        if _skeleton(other) == _skeleton(name):
            given = f"{name!r}, which looks like {other!r}"
            raise InvalidInput("user", given=given, expected="a name that nobody takes for another user's")


def check_token(token: str) -> None:
    """Refuse what can't be a secret in a header.

    Raises:
        InvalidInput: too short, too long, or with blanks or other than ASCII's signs.
    """
    if not (SHORTEST_TOKEN <= len(token) <= LONGEST_SECRET and all("!" <= char <= "~" for char in token)):
        expected = f"{SHORTEST_TOKEN} to {LONGEST_SECRET} random letters, digits and signs of ASCII, without blanks"
        raise InvalidInput("token", given=f"{len(token)} characters", expected=expected)


def _skeleton(name: str) -> str:
    """What a name looks like: names with the same one are taken for each other."""
    return unicodedata.normalize("NFKD", name.casefold()).translate(_LOOKALIKES)


def digest_of(secret: str) -> str:
    """Tokens are long and random, so that a plain hash can't be searched."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _is_over(expires: float | None) -> bool:
    return expires is not None and float(expires) <= time.time()


def _hashed(password: str, salt: bytes | None = None) -> str:
    salt = salt or secrets.token_bytes(16)
    key = hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, **_SCRYPT)
    return f"scrypt${salt.hex()}${key.hex()}"


def _matches(password: str, stored: str) -> bool:
    salt = bytes.fromhex(stored.split("$")[1])
    return hmac.compare_digest(_hashed(password, salt), stored)


_NOBODY = f"scrypt${'00' * 16}${'00' * 64}"
"""Compared with when there is no such account, so that the answer takes as long."""
