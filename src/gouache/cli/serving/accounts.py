"""`gouache accounts`: who may use the studio. A running server acts on every change at once."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.serving.jobs import AsJson, Data, Store

if TYPE_CHECKING:
    from pathlib import Path

    from gouache.serve.store.accounts import Accounts

app = typer.Typer(help="Add, list and revoke the studio's users, tokens and passwords.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The user's name.", metavar="USER")]


def _accounts(data: Path | None, store: str | None) -> Accounts:
    from gouache.checkpoints.hub import data_folder
    from gouache.serve.settings import Settings
    from gouache.serve.store.accounts import Accounts
    from gouache.serve.store.database import Database

    return Accounts(Database(Settings(data=(data or data_folder()).expanduser(), store=store).store_url))


def _asked() -> str:
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


@app.command()
def add(
    name: Name,
    days: Annotated[float | None, typer.Option(help="Days until the token expires; without it, never.")] = None,
    password: Annotated[bool, typer.Option("--password", help="Ask for a password; print no token.")] = False,
    data: Data = None,
    store: Store = None,
) -> None:
    """Let a user in: print a new token, once. A user may have several."""
    accounts = _accounts(data, store)
    if password and days is not None:
        raise typer.BadParameter("a password has no last day", param_hint="--days")
    if password:
        accounts.set_password(name, _asked())
    else:
        typer.echo(accounts.new_token(name, days=days))


@app.command("list")
def listing(data: Data = None, store: Store = None, as_json: AsJson = False) -> None:
    """List users, with the short names of their tokens."""
    found = _accounts(data, store).listing()
    if as_json:
        typer.echo(json.dumps({"accounts": [dataclasses.asdict(one) for one in found]}, ensure_ascii=False))
        return
    for one in found:
        password = "password" if one.has_password else "no password"
        typer.echo(f"{one.name}  {password}, signed in {one.sessions} times")
        for short, created, expires in one.tokens:
            end = "never expires" if expires is None else f"expires {_day(expires)}"
            typer.echo(f"    token {short}  made {_day(created)}, {end}")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@app.command()
def revoke(
    name: Name,
    token: Annotated[str | None, typer.Option(help="Only the token of this short name, see `list`.")] = None,
    data: Data = None,
    store: Store = None,
) -> None:
    """Revoke a user's tokens and end their sessions. A password stays."""
    count = _accounts(data, store).revoke_tokens(name, token)
    typer.echo(f"{count} revoked")


@app.command()
def password(name: Name, data: Data = None, store: Store = None) -> None:
    """Change a user's password, which is asked for; sessions that the old one opened end."""
    from gouache.errors import NotFound

    accounts = _accounts(data, store)
    if name not in {one.name for one in accounts.listing()}:
        cure = "Make it with `gouache accounts add NAME --password`."
        raise NotFound("account", given=repr(name), expected="a user of `gouache accounts list`", cure=cure)
    accounts.set_password(name, _asked())


@app.command()
def delete(name: Name, data: Data = None, store: Store = None) -> None:
    """Delete an account with its password, tokens and sessions, and cancel its jobs; images stay in the store."""
    from gouache.serve.queue.queue import JobQueue
    from gouache.serve.settings import Limits

    accounts = _accounts(data, store)
    accounts.revoke(name)
    count = JobQueue(accounts.database, Limits()).cancel_all(name)
    told = f"deleted; {count} of its jobs cancelled" if count else "deleted"
    typer.echo(told if accounts.any() else f"{told}; no account is left, so a server on loopback is open again")
