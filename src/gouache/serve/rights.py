"""Who may train and fetch models: that costs hours and gigabytes, so it is not for every user of a shared studio."""

from __future__ import annotations

from fastapi import Request

from gouache.serve.access import owner_of, studio_of
from gouache.serve.accounts import LOCAL
from gouache.serve.replies import NotAllowed
from gouache.serve.studio import Studio


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
