"""What a notebook shows: several pictures side by side, and how far a painting is."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

from gouache.notebook import told
from gouache.pipeline.generate.generation import Event, Painted, Progress


class Pictures(list[Painted]):
    """Pictures in the order in which they were painted: a list that a notebook shows as pictures."""

    def _repr_html_(self) -> str:
        figures = []
        for one in self:
            data = base64.b64encode(one.encode("png")).decode("ascii")
            prompt = escape(one.recipe.request.prompt, quote=True)
            figures.append(
                f'<figure style="margin: 0"><img src="data:image/png;base64,{data}" alt="{prompt}" '
                f'style="max-width: 100%"><figcaption>seed {one.seed}</figcaption></figure>'
            )
        return f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{"".join(figures)}</div>'


def with_bar(events: Iterator[Event], *, progress: bool | None) -> Iterator[Event]:
    """The same events of a painting; a notebook shows a bar while they come.

    Args:
        events: of a painting.
        progress: whether; None for yes, unless `GOUACHE_PROGRESS` says off. Outside of notebooks nothing is shown.
    """
    return told(events, _told, progress=progress)


def _told(event: Event) -> tuple[float, str] | None:
    if not isinstance(event, Progress):
        return None
    text = f"step {event.step} of {event.steps}"
    if event.pictures > 1:
        text = f"picture {event.picture + 1} of {event.pictures}, {text}"
    return event.fraction, text
