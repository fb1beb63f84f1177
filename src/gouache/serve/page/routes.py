"""Serves the page, and keeps what a user left on it."""

from __future__ import annotations

import contextlib
import json
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse

from gouache import __version__
from gouache.config import Config
from gouache.errors import GouacheError, InvalidInput, NotFound
from gouache.pipeline.request import Safety
from gouache.serve.http.access import is_admin, is_open, owner_of, studio_of
from gouache.serve.models.abilities import Abilities, abilities_of
from gouache.serve.models.uploads import free_bytes
from gouache.serve.page import files
from gouache.serve.settings import Limits
from gouache.serve.studio import Studio

router = APIRouter(prefix="/v1/page", tags=["page"])
pages = APIRouter(include_in_schema=False)
"""What a browser opens; absent where the studio has no page."""
VIEWS = ("paint", "edit", "gallery", "queue", "explain", "models", "train", "settings")
STATE_BYTES = 256 * 2**10
"""Most that one part of a page's state may have."""
StateName = Annotated[str, Path(pattern=r"^[a-z_]{1,32}$")]
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


class PageState(Config):
    """What the page knows when it opens."""

    version: str
    user: str
    admin: bool
    """Whether this user may train and fetch models."""
    open: bool
    """Whether everybody on this machine is the one user, without signing in."""
    language: str
    model: str
    """Name of the model of requests that name none."""
    facts: Abilities | None
    """What that model is set to by itself and can be asked for; null if it isn't there any more."""
    only_shipped: bool
    """Whether there is no other model than the one inside the package."""
    limits: Limits
    state: dict[str, Any]
    """What the page stored with `PUT /v1/page/state/NAME`, by name."""


@router.get("")
def page_state(request: Request) -> PageState:
    """What the page shows when it opens: who is signed in, the limits, and what was left in its fields."""
    studio, owner = studio_of(request), owner_of(request)
    state = kept_state(request)
    model = studio.default_model(owner)
    return PageState(
        version=__version__,
        user=owner,
        admin=is_admin(studio, owner),
        open=is_open(studio),
        language=_language(request, state),
        model=model,
        facts=_facts(studio, model),
        only_shipped=all(entry.path is None for entry in studio.catalog.models()),
        limits=studio.settings.limits,
        state=state,
    )


class Library(Config):
    """A library that the page brings along."""

    file: str
    name: str
    version: str
    licence: str


class About(Config):
    """What the page says of itself and of the server."""

    version: str
    libraries: tuple[Library, ...]
    watermark: bool
    """Whether images whose request names none get the server's."""
    safety: Safety
    """The least done to images that the safety checker finds."""
    free: int | None
    """Bytes that the disk of the images has; null for whom that is no business."""


@router.get("/about")
def about(request: Request) -> About:
    """What the settings show: libraries and their licences, what is done to images, room on the disk."""
    studio, owner = studio_of(request), owner_of(request)
    return About(
        version=__version__,
        libraries=tuple(Library(file=file, name=line[0], version=line[1], licence=line[2]) for file, line in VENDORED),
        watermark=studio.settings.watermark is not None,
        safety=studio.settings.safety,
        free=free_bytes(studio.settings.data) if is_admin(studio, owner) else None,
    )


_PREACT, _SIGNALS = "Copyright (c) 2015-present Jason Miller", "Copyright (c) 2022-present Preact Team"
VENDORED = (
    ("preact.mjs", ("preact", "11.2.0", f"MIT, {_PREACT}")),
    ("preact-hooks.mjs", ("preact/hooks", "11.2.0", f"MIT, {_PREACT}")),
    ("htm.mjs", ("htm", "3.1.1", "Apache-2.0, Copyright 2018 Google Inc.")),
    ("signals-core.mjs", ("@preact/signals-core", "1.14.5", f"MIT, {_SIGNALS}")),
    ("preact-signals.mjs", ("@preact/signals", "2.11.4", f"MIT, {_SIGNALS}")),
    (
        "konva.min.js",
        ("konva", "10.9.1", "MIT, Copyright (C) 2011 - 2013 by Eric Rowell, (C) 2014 - present by Anton Lavrenov"),
    ),
)
"""Name, version and licence of each file in `static/vendor`, as the NOTICE has them, which an installation may lack."""


def _facts(studio: Studio, model: str) -> Abilities | None:
    with contextlib.suppress(GouacheError):
        return abilities_of(studio.catalog.find(model))
    return None


@router.put("/state/{name}", status_code=204)
async def keep_state(name: StateName, request: Request) -> None:
    """Keep a part of the page's state for this user: any JSON object; a reload or another browser finds it."""
    body = await request.body()
    if len(body) > STATE_BYTES:
        raise InvalidInput("state", given=f"{len(body)} bytes", expected=f"at most {STATE_BYTES}")
    try:
        value = json.loads(body)
    except ValueError as error:
        raise InvalidInput("state", given="no JSON", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidInput("state", given=type(value).__name__, expected="a JSON object")
    studio_of(request).set_options(owner_of(request), {f"{PREFIX}{name}": json.dumps(value)})


PREFIX = "page."
"""Of the options that are the page's."""


def kept_state(request: Request) -> dict[str, Any]:
    """What this user's page stored, by name."""
    stored = studio_of(request).options(owner_of(request))
    return {key.removeprefix(PREFIX): json.loads(text) for key, text in stored.items() if key.startswith(PREFIX)}


@pages.get("/page/{version}/{name:path}")
def file(version: str, name: str, request: Request) -> Response:
    """One of the page's files. Under an address with another version the newest is served, but not kept."""
    found = files.current()
    media_type = files.MEDIA_TYPES.get(name[name.rfind(".") :], "")
    compressed = "gzip" in request.headers.get("accept-encoding", "")
    content = found.packed(name) if compressed else found.read(name)
    if content is None or not media_type:
        raise NotFound("file", given=name[:100], expected="a file of the page")
    headers = dict(FOREVER) if version == found.version else {"Cache-Control": "no-cache"}
    headers["Vary"] = "Accept-Encoding"
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=media_type, headers=headers)


@pages.get("/", response_class=HTMLResponse)
def page(request: Request) -> HTMLResponse:
    """The page; which view it shows is read from its address."""
    state = page_state(request)
    found = files.current()
    view = request.url.path.strip("/").partition("/")[0] or VIEWS[0]
    base = f"/page/{found.version}"
    needed = [*found.needed_by("app/main.js"), *found.needed_by(f"views/{view}/{view}.js")]
    preloads = [f"{base}/{name}" for name in dict.fromkeys(needed)]
    import_map = found.import_map(state.language)
    theme = state.state.get("settings", {}).get("theme", "system")
    text = (files.STATIC / "index.html").read_text(encoding="utf-8")
    values = {
        "LANGUAGE": escape(state.language),
        "THEME": escape(str(theme)),
        "BASE": base,
        "IMPORT_MAP": import_map,
        # In a script element only this could end it early.
        "BOOT": state.to_json().replace("<", "\\u003c"),
        "PRELOADS": "".join(f'<link rel="modulepreload" href="{address}">' for address in preloads),
    }
    for key, value in values.items():
        text = text.replace(f"%{key}%", value)
    headers = {"Content-Security-Policy": policy(import_map), "Cache-Control": "no-store"}
    return HTMLResponse(text, headers=headers)


for _view in VIEWS:
    pages.add_api_route(f"/{_view}", page, response_class=HTMLResponse)
    pages.add_api_route(f"/{_view}/{{rest:path}}", page, response_class=HTMLResponse)


def policy(import_map: str) -> str:
    """What the page may load: this server's files, and the one inline script that names its modules."""
    parts = {
        "default-src": "'none'",
        "script-src": f"'self' '{files.digest(import_map)}'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "worker-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _language(request: Request, state: dict[str, Any]) -> str:
    """The chosen language, else the first of the browser's that the page has."""
    chosen = state.get("settings", {}).get("language")
    if chosen in files.LANGUAGES:
        return str(chosen)
    for part in request.headers.get("accept-language", "").split(","):
        name = part.split(";")[0].strip().lower().partition("-")[0]
        if name in files.LANGUAGES:
            return name
    return files.LANGUAGES[0]
