"""What a notebook shows: several pictures side by side, and how far a painting is."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from html import escape
from importlib import import_module

from gouache.environment import Variable
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


def in_notebook() -> bool:
    """Whether a kernel runs this code for a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def with_bar(events: Iterator[Event], *, progress: bool | None) -> Iterator[Event]:
    """The same events; a notebook shows a bar while they come, and takes it away after the last.

    Args:
        events: of a painting.
        progress: whether; None for yes, unless `GOUACHE_PROGRESS` says off. Outside of notebooks nothing is shown.
    """
    wanted = not Variable.PROGRESS.is_off if progress is None else progress
    if not wanted or not in_notebook():
        yield from events
        return
    shown = import_module("IPython.display")  # There is a kernel, so its package is there; nothing else needs it.
    handle = shown.display(shown.HTML(_bar(0.0, "")), display_id=True)
    try:
        for event in events:
            if isinstance(event, Progress):
                text = f"step {event.step} of {event.steps}"
                if event.pictures > 1:
                    text = f"picture {event.picture + 1} of {event.pictures}, {text}"
                handle.update(shown.HTML(_bar(event.fraction, text)))
            yield event
    finally:
        handle.update(shown.HTML(""))


def _bar(done: float, text: str) -> str:
    return f'<progress max="1" value="{min(done, 1.0):.3f}" style="width: 20em"></progress> {text}'
