"""What Sphinx does again for every page, done once: the same pages in less time."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx


def titles_of(toc: nodes.Element) -> nodes.Element:
    """A page's table of contents without anything but its title and the lists of other pages."""
    pruned = toc.deepcopy()
    for top in pruned.children:
        if isinstance(top, nodes.Element) and len(top) > 1:
            inner = top[1]
            assert isinstance(inner, nodes.Element), "a list stands behind the title"
            if lists := list(inner.findall(toctree)):
                inner[:] = lists
            else:
                top.pop(1)
    return pruned


def navigate_by_titles(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:  # noqa: ARG001
    """Let the theme make its tree of all pages from titles alone.

    Sphinx copies every entry of every page, each class and method of the reference among them, for every page that it
    writes, and then throws away all but the titles: two fifths of the whole build.
    """
    whole = context.get("toctree")
    if whole is None:
        return
    env = app.env
    if not hasattr(app, "titles_only"):
        app.titles_only = {name: titles_of(toc) for name, toc in env.tocs.items()}  # type: ignore[attr-defined]

    def made(**options: Any) -> str:
        if not options.get("titles_only"):
            return str(whole(**options))
        entries, env.tocs = env.tocs, app.titles_only  # type: ignore[attr-defined]
        try:
            return str(whole(**options))
        finally:
            env.tocs = entries

    context["toctree"] = made


def leave_out_what_has_no_source(app: Sphinx) -> list[Any]:
    """Names whose module has no Python source get no page from viewcode, and yet a place in its index: a dead link."""
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, found in modules.items() if not found]:
        del modules[name]
    return []
