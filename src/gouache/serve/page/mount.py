"""Puts the tabs together and mounts the page, with a policy that lets the browser run only what the server sent.

Whoever imports this imports Gradio: `server.create_app` sets its environment first.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gouache.serve.http.access import is_open
from gouache.serve.page import parts
from gouache.serve.page.edit_tab import edit_tab
from gouache.serve.page.gallery_tab import Elsewhere, gallery_tab
from gouache.serve.page.job_view import BUSY_SECONDS, follow
from gouache.serve.page.models_tab import models_tab
from gouache.serve.page.paint_tab import paint_tab
from gouache.serve.page.requests import NAMES
from gouache.serve.page.train_tab import train_tab
from gouache.serve.page.words import said, translations
from gouache.serve.studio import Studio

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "sans-serif")
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
KEYS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
HEAD = '<script src="/page.js" defer></script>'
BRAND = (
    '<div class="g-brand"><svg viewBox="0 0 28 28" fill="none" aria-hidden="true">'
    '<path d="M4 22c3.5.6 6-.4 6.6-3 .5-2-.9-3.6-2.7-3.6-3.2 0-1.6 4.2-3.9 6.6Z" fill="currentColor"/>'
    '<path d="M11.6 15.6 22.4 4.8a1.9 1.9 0 0 1 2.7 2.7L13.9 17.7" stroke="currentColor" stroke-width="2.2"'
    ' stroke-linecap="round" stroke-linejoin="round"/></svg><strong>gouache</strong></div>'
)

COLOURS = {
    "body_background_fill": "var(--g-paper)",
    "body_background_fill_dark": "var(--g-paper)",
    "body_text_color": "var(--g-ink)",
    "body_text_color_dark": "var(--g-ink)",
    "body_text_color_subdued": "var(--g-soft)",
    "body_text_color_subdued_dark": "var(--g-soft)",
    "background_fill_primary": "var(--g-card)",
    "background_fill_primary_dark": "var(--g-card)",
    "background_fill_secondary": "var(--g-paper)",
    "background_fill_secondary_dark": "var(--g-paper)",
    "border_color_primary": "var(--g-line)",
    "border_color_primary_dark": "var(--g-line)",
    "color_accent": "var(--g-accent)",
    "color_accent_soft": "var(--g-accent-soft)",
    "color_accent_soft_dark": "var(--g-accent-soft)",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_text_color": "var(--g-ink)",
    "block_label_text_color_dark": "var(--g-ink)",
    "block_title_text_color": "var(--g-ink)",
    "block_title_text_color_dark": "var(--g-ink)",
    "block_info_text_color": "var(--g-soft)",
    "block_info_text_color_dark": "var(--g-soft)",
    "block_title_text_weight": "600",
    "input_background_fill": "var(--g-card)",
    "input_background_fill_dark": "var(--g-card)",
    "input_border_color": "var(--g-line)",
    "input_border_color_dark": "var(--g-line)",
    "input_border_width": "1px",
    "input_border_color_focus": "var(--g-accent)",
    "input_border_color_focus_dark": "var(--g-accent)",
    "input_placeholder_color": "var(--g-soft)",
    "input_placeholder_color_dark": "var(--g-soft)",
    "input_shadow": "none",
    "slider_color": "var(--g-accent)",
    "slider_color_dark": "var(--g-accent)",
    "button_primary_background_fill": "var(--g-accent)",
    "button_primary_background_fill_dark": "var(--g-accent)",
    "button_primary_background_fill_hover": "var(--g-ink)",
    "button_primary_background_fill_hover_dark": "var(--g-ink)",
    "button_primary_text_color": "var(--g-on-accent)",
    "button_primary_text_color_dark": "var(--g-on-accent)",
    "button_primary_text_color_hover": "var(--g-card)",
    "button_primary_text_color_hover_dark": "var(--g-card)",
    "button_secondary_background_fill": "var(--g-card)",
    "button_secondary_background_fill_dark": "var(--g-card)",
    "button_secondary_background_fill_hover": "var(--g-paper)",
    "button_secondary_background_fill_hover_dark": "var(--g-paper)",
    "button_secondary_border_color": "var(--g-line)",
    "button_secondary_border_color_dark": "var(--g-line)",
    "button_secondary_text_color": "var(--g-ink)",
    "button_secondary_text_color_dark": "var(--g-ink)",
    "button_cancel_background_fill": "var(--g-card)",
    "button_cancel_background_fill_dark": "var(--g-card)",
    "button_cancel_background_fill_hover": "var(--g-bad-soft)",
    "button_cancel_background_fill_hover_dark": "var(--g-bad-soft)",
    "button_cancel_border_color": "var(--g-line)",
    "button_cancel_border_color_dark": "var(--g-line)",
    "button_cancel_text_color": "var(--g-bad)",
    "button_cancel_text_color_dark": "var(--g-bad)",
    "button_border_width": "1px",
    "checkbox_background_color_selected": "var(--g-accent)",
    "checkbox_background_color_selected_dark": "var(--g-accent)",
    "checkbox_border_color": "var(--g-field)",
    "checkbox_border_color_dark": "var(--g-field)",
    "checkbox_border_color_selected": "var(--g-accent)",
    "checkbox_border_color_selected_dark": "var(--g-accent)",
}
"""What differs from the theme; frames are the panels' business, see `page.css`."""


def theme() -> gr.themes.Base:
    """Warm paper, dark ink, one strong colour; frames are the panels' business, see `page.css`."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=list(SYSTEM),
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(**COLOURS)


def build_page(studio: Studio) -> tuple[gr.Blocks, gr.I18n]:
    """The page and its words."""
    say = translations()
    with gr.Blocks(title="gouache", analytics_enabled=False, fill_width=True, delete_cache=(3600, 7200)) as page:
        timer = gr.Timer(BUSY_SECONDS)
        brand = gr.HTML(BRAND, elem_id="title")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(say("paint"), id="paint", elem_id="paint-tab"):
                fields, paint_view = paint_tab(studio, say, page, timer)
            with gr.Tab(say("edit"), id="edit", elem_id="edit-tab"):
                canvas, frame, edit_view = edit_tab(studio, say, page, timer)
            with gr.Tab(say("gallery"), id="gallery", elem_id="gallery-tab") as tab:
                elsewhere = Elsewhere([fields[name] for name in NAMES], canvas, frame, tabs)
                gallery_tab(studio, say, page, tab, elsewhere)
            with gr.Tab(say("models"), id="models", elem_id="models-tab") as tab:
                models_tab(studio, say, page, tab, fields, tabs)
            with gr.Tab(say("train"), id="train", elem_id="train-tab") as tab:
                train_tab(studio, say, page, tab)
        follow(studio, page, timer, (paint_view, edit_view))

        def branded(request: gr.Request) -> str:
            return _brand(studio, request)

        page.load(branded, None, brand, **parts.QUIET)
    return page, say


def _brand(studio: Studio, request: gr.Request) -> str:
    """The line above the tabs; in a studio with accounts also who is signed in, and the way out."""
    named = BRAND.replace("</strong>", f"</strong><span>{parts.plain(said('tagline', request))}</span>")
    if is_open(studio):
        return named
    name, label = parts.plain(request.username), parts.plain(said("signed_in_as", request, request.username))
    out = f'<button type="submit" id="sign-out">{parts.plain(said("sign_out", request))}</button>'
    who = f'<form class="g-who" method="post" action="/logout"><b title="{label}" id="user">{name}</b>{out}</form>'
    return named.removesuffix("</div>") + who + "</div>"


_INLINE = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def mount_page(api: FastAPI, studio: Studio) -> None:
    """Serve the page at /."""

    @api.get("/page.js", include_in_schema=False)
    def keys() -> Response:
        return Response(KEYS, media_type="text/javascript")

    page, words = build_page(studio)
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        theme=theme(),
        css=CSS,
        head=HEAD,
        i18n=words,
        auth_dependency=_owner,
        ssr_mode=False,
        footer_links=[],
        max_file_size="32mb",
        pwa=False,
        enable_monitoring=False,
        allowed_paths=_shown(studio),
        blocked_paths=[str(studio.settings.data / "studio.sqlite3")],
        # Errors that are meant to be shown are `gr.Error`; what else is raised may name files.
        show_error=False,
    )


def _shown(_studio: Studio) -> list[str]:
    """Nothing is served by its path; Gradio copies what a tab shows into its cache."""
    return []


def _owner(request: Request) -> str | None:
    return getattr(request.state, "owner", None)


class PagePolicy:
    """ASGI middleware: gives every HTML page a content security policy with the hashes of its inline scripts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold an HTML reply back until its scripts are known."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def sent(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_html(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    headers = MutableHeaders(scope=start)
                    headers["content-security-policy"] = policy(body)
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, sent)


def _is_html(message: Message) -> bool:
    headers = MutableHeaders(scope=message)
    own = "content-security-policy" in headers or "content-encoding" in headers
    return headers.get("content-type", "").startswith("text/html") and not own


def policy(html: bytes) -> str:
    """What a page may load: this server's files, its own inline scripts, and styles.

    The canvas of the Edit tab compiles its shaders' bindings with `Function`, which is why eval stays allowed; a script
    that was written into the page by somebody else still does not run.
    """
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in _INLINE.findall(html) if script)
    parts: dict[str, Any] = {
        "default-src": "'self'",
        "script-src": f"'self' 'unsafe-eval' {hashes}".strip(),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "media-src": "'self' blob:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _digest(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")
