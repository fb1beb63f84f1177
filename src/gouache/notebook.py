"""How far something is, as a bar in the cell of a notebook that waits for it. Elsewhere nothing is shown."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import ParamSpec, TypeVar

from gouache.environment import Variable

Show = Callable[[float | None, str], None]
"""Takes the share that is done, None where that isn't known, and what to say beside it."""
REDRAW_SECONDS = 0.1
"""A bar isn't drawn again before: what a cell shows is kept by the notebook's server, every time."""
Event = TypeVar("Event")
Parameters = ParamSpec("Parameters")


def in_notebook() -> bool:
    """Whether a kernel runs this code for a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def bar(*, progress: bool | None = None) -> Iterator[Show]:
    """A bar while the block runs; it is taken away at the end, however that comes.

    Args:
        progress: whether; None for yes, unless `GOUACHE_PROGRESS` says off. Outside of notebooks nothing is shown.
    """
    wanted = not Variable.PROGRESS.is_off if progress is None else progress
    if not wanted or not in_notebook():
        yield lambda _done, _text: None
        return
    shown = import_module("IPython.display")  # There is a kernel, so its package is there; nothing else needs it.
    handle = shown.display(shown.HTML(_drawn(0.0, "")), display_id=True)
    drawn_at = 0.0

    def show(done: float | None, text: str) -> None:
        nonlocal drawn_at
        if (now := time.monotonic()) - drawn_at >= REDRAW_SECONDS:
            drawn_at = now
            handle.update(shown.HTML(_drawn(done, text)))

    try:
        yield show
    finally:
        handle.update(shown.HTML(""))


def told(
    events: Iterator[Event], tell: Callable[[Event], tuple[float | None, str] | None], *, progress: bool | None = None
) -> Iterator[Event]:
    """The same events, with a bar while they come.

    Args:
        events: of something that takes long.
        tell: what an event says of it: the share that is done and a text; None for nothing.
        progress: as `bar` takes it.
    """
    with bar(progress=progress) as show:
        for event in events:
            if (said := tell(event)) is not None:
                show(*said)
            yield event


def telling(
    tell: Callable[[Event], tuple[float | None, str] | None],
) -> Callable[[Callable[Parameters, Iterator[Event]]], Callable[Parameters, Iterator[Event]]]:
    """Makes a function whose events come with a bar of one that only gives events; `tell` as in `told`."""

    def changed(function: Callable[Parameters, Iterator[Event]]) -> Callable[Parameters, Iterator[Event]]:
        @functools.wraps(function)
        def _told(*args: Parameters.args, **options: Parameters.kwargs) -> Iterator[Event]:
            yield from told(function(*args, **options), tell)

        return _told

    return changed


def _drawn(done: float | None, text: str) -> str:
    value = "" if done is None else f' value="{min(done, 1.0):.3f}"'
    return f'<progress max="1"{value} style="width: 20em"></progress> {escape(text)}'
