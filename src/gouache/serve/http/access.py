"""What a route asks of the request it answers: the studio, the user, and the right to train and fetch models."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from gouache.errors import NotFound
from gouache.serve.http.replies import NotAllowed
from gouache.serve.settings import LOOPBACK
from gouache.serve.store.accounts import LOCAL
from gouache.serve.studio import Studio


def studio_of(request: Request) -> Studio:
    """The studio behind the application."""
    studio = request.app.state.studio
    if not isinstance(studio, Studio):
        raise TypeError("the application was made without create_app")
    return studio


def owner_of(request: Request) -> str:
    """Who asks; the guard wrote it down."""
    owner = request.state.owner
    if not isinstance(owner, str):
        raise NotFound("owner", given="nobody", expected="a known user")
    return owner


def is_open(studio: Studio) -> bool:
    """Whether everybody on this machine is the one user: on loopback, as long as there is no account."""
    return studio.settings.on_loopback and not studio.accounts.any()


def is_admin(studio: Studio, owner: str) -> bool:
    """Whether a user may train and fetch models: those named in the settings, or the one user of a closed studio."""
    return owner in studio.settings.admins or (owner == LOCAL and not studio.accounts.any())


def check_admin(studio: Studio, owner: str) -> None:
    """Refuse who may not.

    Raises:
        NotAllowed: no administrator.
    """
    if not is_admin(studio, owner):
        cure = "Ask whoever runs the server: gouache serve --admin NAME."
        raise NotAllowed("user", given=owner, expected=f"one of {', '.join(studio.settings.admins)}", cure=cure)


def admin_of(request: Request) -> str:
    """Who asks, if they may; errors as `check_admin`."""
    owner = owner_of(request)
    check_admin(studio_of(request), owner)
    return owner


FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""What a proxy adds to the requests that it passes on."""


def check_here(request: Request) -> None:
    """Refuse who doesn't sit at the server's own machine: what a folder there is called is their affair only.

    Raises:
        NotAllowed: the request comes from another machine, or through a proxy.
    """
    settings = studio_of(request).settings
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    through_proxy = settings.behind_proxy or any(name in request.headers for name in FORWARDED)
    if not settings.on_loopback or through_proxy or host not in LOOPBACK:
        cure = "Start the server with --models FOLDER, or open the page on that machine."
        raise NotAllowed(
            "folder", given="a request from elsewhere", expected="one from the server's machine", cure=cure
        )
