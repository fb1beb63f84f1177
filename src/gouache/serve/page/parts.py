"""Pieces of HTML that several tabs share. Every text from outside goes through `plain`."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from gouache.serve.page.words import said
from gouache.serve.store.gallery import Picture

# Gradio fills templates in the browser: braces and backquotes in a prompt must not look like one.
_TEMPLATE_SIGNS = {"{": "&#123;", "}": "&#125;", "`": "&#96;", "$": "&#36;", "\\": "&#92;"}
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How every event is wired: no overlay, no public address."""
PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button && element.contains(button)) trigger('select', {index: 0, value: button.dataset.pick});
});
"""
BRUSH = (
    '<svg viewBox="0 0 44 44" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"'
    ' stroke-linejoin="round" aria-hidden="true"><rect x="5" y="8" width="34" height="28" rx="4"/>'
    '<circle cx="15" cy="17" r="3"/><path d="m6 32 9-8 7 6 7-9 9 10"/></svg>'
)


def plain(text: object) -> str:
    """Text that stands in HTML, and in Gradio's templates, as what it is."""
    escaped = html.escape(str(text))
    for sign, entity in _TEMPLATE_SIGNS.items():
        escaped = escaped.replace(sign, entity)
    return escaped


def picked(event: gr.EventData) -> str:
    """What was clicked in a list with `PICK`."""
    return str((event._data or {}).get("value", ""))


def heading(title: str, text: str = "") -> str:
    """A title, and a sentence below it."""
    return f'<h3 class="g-h">{plain(title)}</h3>' + (f'<p class="g-p">{plain(text)}</p>' if text else "")


def empty(title: str, text: str, *, low: bool = False) -> str:
    """What stands where nothing is yet."""
    kind = "g-empty g-low" if low else "g-empty"
    return f'<div class="{kind}">{BRUSH}<strong>{plain(title)}</strong><p>{plain(text)}</p></div>'


def progress(title: str, details: Iterable[str], fraction: float | None) -> str:
    """A line of text above a bar; without a fraction the bar only moves."""
    words = "".join(f"<span>{plain(detail)}</span>" for detail in details if detail)
    line = f'<div class="g-line"><strong>{plain(title)}</strong>{words}</div>'
    if fraction is None:
        bar = '<div class="g-bar g-wait"><i></i></div>'
    else:
        share = f"{100 * min(1.0, max(0.0, fraction)):.1f}"
        bar = (
            f'<div class="g-bar" role="progressbar" aria-valuenow="{share}" aria-valuemin="0" aria-valuemax="100">'
            f'<i style="width:{share}%"></i></div>'
        )
    return f'<div class="g-status" role="status">{line}{bar}</div>'


def notice(title: str, *details: str) -> str:
    """A line of text."""
    words = "".join(f"<span>{plain(detail)}</span>" for detail in details if detail)
    return f'<div class="g-status" role="status"><div class="g-line"><strong>{plain(title)}</strong>{words}</div></div>'


def trouble(title: str, text: str) -> str:
    """An error as it is."""
    return f'<div class="g-bad" role="alert"><strong>{plain(title)}</strong><p>{plain(text)}</p></div>'


def facts(rows: Mapping[str, object]) -> str:
    """Names and values, those without a value left out."""
    shown = "".join(f"<dt>{plain(name)}</dt><dd>{plain(value)}</dd>" for name, value in rows.items() if value)
    return f'<dl class="g-facts">{shown}</dl>'


def shot(picture: Picture, *, small: bool = False) -> str:
    """A finished picture that opens large."""
    address = f"/v1/pictures/{picture.id}/file"
    kind = "g-shot g-small" if small else "g-shot"
    return (
        f'<figure><a class="{kind}" data-large href="{address}" data-name="{picture.id}.png">'
        f'<img src="{address}" alt="{plain(picture.prompt[:200])}" width="{picture.width}" height="{picture.height}">'
        "</a></figure>"
    )


def shots(pictures: list[Picture]) -> str:
    """One picture large, several in a grid."""
    kind = "g-one" if len(pictures) == 1 else "g-grid"
    return f'<div class="{kind}">{"".join(shot(picture) for picture in pictures)}</div>'


def unfinished(jpeg: bytes, alt: str) -> str:
    """A preview, embedded so that it doesn't flicker."""
    data = base64.b64encode(jpeg).decode("ascii")
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{plain(alt)}">'
    return f'<div class="g-one"><figure><span class="g-shot g-busy">{image}</span></figure></div>'


def thumbs(pictures: Iterable[Picture], chosen: str) -> str:
    """The gallery's grid."""
    cells = [
        f'<button class="g-shot" data-pick="{picture.id}" aria-pressed="{str(picture.id == chosen).lower()}">'
        f'<img src="/v1/pictures/{picture.id}/thumbnail" alt="{plain(picture.prompt[:200])}" loading="lazy">'
        + ('<span class="g-star">★</span>' if picture.starred else "")
        + "</button>"
        for picture in pictures
    ]
    return f'<div class="g-grid g-thumbs">{"".join(cells)}</div>'


def item(
    key: str, title: str, below: str, *, chosen: bool = False, side: str = "", tag: str = "", kind: str = ""
) -> str:
    """One row of a list; `kind` colours the tag: "", "g-red" or "g-grey"."""
    label = f' <span class="g-tag {kind}">{plain(tag)}</span>' if tag else ""
    return (
        f'<button class="g-item" data-pick="{plain(key)}" aria-pressed="{str(chosen).lower()}">'
        f'<b>{plain(title)}{label}</b><small class="g-side">{plain(side)}</small><small>{plain(below)}</small></button>'
    )


def items(rows: Iterable[str]) -> str:
    """A list of rows."""
    return f'<div class="g-list">{"".join(rows)}</div>'


def size_of(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def time_of(seconds: float, request: gr.Request) -> str:
    """A span of time for people."""
    if seconds < 90:
        return said("seconds", request, round(seconds))
    if seconds < 5400:
        return said("minutes_of", request, round(seconds / 60))
    return said("hours_of", request, seconds / 3600)
