"""What a route asks of the request it answers."""

from __future__ import annotations

from fastapi import Request

from gouache.errors import NotFound
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
