"""Who may use the studio: tokens and passwords, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from sqlalchemy import delete, func, select

from gouache.errors import InvalidInput, NotFound
from gouache.serve.store.database import Database, insert_missing, upsert
from gouache.serve.store.tables import accounts, tokens

LOCAL = "local"
"""The one user of a studio without accounts."""
SHORTEST_PASSWORD = 8
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}


class Accounts:
    """Users, their passwords and tokens."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def any(self) -> bool:
        """Whether anybody has a token or a password."""
        for table in (tokens, accounts):
            row = self.database.row(select(func.count().label("known")).select_from(table))
            if row is not None and row.known:
                return True
        return False

    def new_token(self, owner: str) -> str:
        """Make a token; it is shown this once."""
        token = "gouache-" + secrets.token_urlsafe(32)
        self.add_token(owner, token)
        return token

    def add_token(self, owner: str, token: str) -> None:
        """Accept a token that was made elsewhere.

        Raises:
            InvalidInput: too short to be a secret.
        """
        if len(token) < 16:
            raise InvalidInput("token", given=f"{len(token)} characters", expected="at least 16 random ones")
        with self.database.write() as connection:
            insert_missing(connection, tokens, {"digest": _digest(token), "owner": owner, "created": time.time()})

    def revoke_tokens(self, owner: str) -> int:
        """Forget every token of a user, whose password stays; gives how many there were.

        Raises:
            NotFound: the user has no token.
        """
        with self.database.write() as connection:
            gone = connection.execute(delete(tokens).where(tokens.c.owner == owner)).rowcount
        if not gone:
            raise NotFound("token", given=f"user {owner!r}, who has none", expected="a user with a token")
        return gone

    def revoke(self, owner: str) -> None:
        """Forget every token and the password of a user."""
        with self.database.write() as connection:
            connection.execute(delete(tokens).where(tokens.c.owner == owner))
            connection.execute(delete(accounts).where(accounts.c.name == owner))

    def set_password(self, name: str, password: str) -> None:
        """Make an account or change its password.

        Raises:
            InvalidInput: too short, or a name with a colon (which HTTP Basic can't carry).
        """
        if len(password) < SHORTEST_PASSWORD or ":" in name or not name:
            raise InvalidInput(
                "account",
                given=f"name {name!r} and a password of {len(password)} characters",
                expected=f"a name without a colon and at least {SHORTEST_PASSWORD} characters",
            )
        with self.database.write() as connection:
            upsert(connection, accounts, {"name": name}, {"password": _hashed(password), "created": time.time()})

    def still_in(self, owner: str, since: float) -> bool:
        """Whether a session that began then still counts: its user is known, and the password is the same."""
        row = self.database.row(select(accounts.c.created).where(accounts.c.name == owner))
        if row is not None:
            return since >= float(row.created)
        return self.database.row(select(tokens.c.owner).where(tokens.c.owner == owner)) is not None

    def owner_of_token(self, token: str) -> str | None:
        """Whose token it is."""
        row = self.database.row(select(tokens.c.owner).where(tokens.c.digest == _digest(token)))
        return None if row is None else str(row.owner)

    def owner_of_password(self, name: str, password: str) -> str | None:
        """The user, if the password is right; a token counts as a password too."""
        if self.owner_of_token(password) == name:
            return name
        row = self.database.row(select(accounts.c.password).where(accounts.c.name == name))
        stored = _NOBODY if row is None or row.password is None else str(row.password)
        return name if _matches(password, stored) and row is not None else None


def _digest(token: str) -> str:
    """Tokens are long and random, so that a plain hash can't be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


def _hashed(password: str, salt: bytes | None = None) -> str:
    salt = salt or secrets.token_bytes(16)
    key = hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT)
    return f"scrypt${salt.hex()}${key.hex()}"


def _matches(password: str, stored: str) -> bool:
    salt = bytes.fromhex(stored.split("$")[1])
    return hmac.compare_digest(_hashed(password, salt), stored)


_NOBODY = f"scrypt${'00' * 16}${'00' * 64}"
"""Compared with when there is no such account, so that the answer takes as long."""
