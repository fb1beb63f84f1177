"""Writes the reference into docs/reference/ before Sphinx reads the pages: API, command line, configuration.

One page for every folder of `src/gouache`, one for every command, one for every group of settings.
All of it is made from the code; nothing is listed by hand but the layers of `docs/architecture.md`. The pages aren't
committed.
"""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import api_pages
import chinese_search
import command_pages
import faster
import setting_pages
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.locale import _
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

logger = logging.getLogger(__name__)
DOCS = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md")


def written(folder: Path, pages: dict[str, str]) -> None:
    """Make `folder` hold exactly these pages; Sphinx doesn't read an unchanged one again."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.glob("*.rst")) - {folder / f"{name}.rst" for name in pages}:
        old.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def write_pages(app: Sphinx) -> None:
    """Write all pages, in a build of the whole site."""
    if Path(app.srcdir) != DOCS:
        return
    # Before autodoc imports any: what it does to types on its way makes pydantic refuse classes of FastAPI's.
    for module in api_pages.modules():
        import_module(module)
    written(DOCS / "reference" / "api", api_pages.pages())
    written(DOCS / "reference" / "commands", command_pages.pages())
    written(DOCS / "reference" / "settings", setting_pages.pages())


def mend_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    """Docstrings are plain text with Google's sections, not reStructuredText."""
    paragraphs = "\n".join(lines).split("\n\n")
    mended = [one if one.lstrip().startswith(">>>") else api_pages.plain(one) for one in paragraphs]
    # Napoleon takes what stands before a colon in an attribute's first line for its type: an empty comment goes first.
    first = ["..", ""] if what in ("attribute", "data") else []
    lines[:] = first + "\n\n".join(mended).split("\n")


def imported_names(module: str) -> dict[str, str]:
    """Every name at the top of a module -> its full name, those imported for type checking alone too."""
    source = ModuleAnalyzer.for_module(module).code
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = f"{module}.{node.name}"
    return found


def name_types(app: Sphinx, doctree: nodes.document) -> None:
    """A type in a signature means what its module means by the name, not whatever has that name somewhere."""
    if not app.env.docname.startswith("reference/api/"):
        return
    names: dict[str, dict[str, str]] = {}
    for node in doctree.findall(pending_xref):
        module, target = node.get("py:module"), node.get("reftarget", "")
        if node.get("refdomain") != "py" or not module:
            continue
        # Otherwise Sphinx looks through all names for one that ends in this one, for every type anew.
        node.attributes.pop("refspecific", None)
        if "." in target:
            continue
        if module not in names:
            names[module] = imported_names(module)
        node["reftarget"] = names[module].get(target, f"{module}.{target}")


def bring_inside(app: Sphinx, docname: str, source: list[str]) -> None:  # noqa: ARG001
    """Links to CONTRIBUTING and CHANGELOG, right in the repository, lead to the pages that include them."""
    source[0] = OUTSIDE.sub(lambda found: f"]({found[1].lower()}.md", source[0])


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:  # noqa: ARG001
    """pydantic's own names say nothing about a class."""
    return True if name in ("model_config", "model_post_init", "elsewhere") else None


def canonical(target: str) -> str | None:
    """Where the object of a dotted name is defined, if it is imported into another module too."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        return f"{module}.{name}" if module and name else None
    return None


def resolve(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """A reference that nothing resolved: try where the object is defined; else the build fails."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("gouache"):
        return None
    docname = node.get("refdoc", "")
    if docname.startswith("reference/api/"):
        return None  # Types that only their own module knows stay plain text.
    inventory = getattr(env, "intersphinx_inventory", {})
    if any(target in names for kind, names in inventory.items() if kind.startswith("py:")):
        return None  # intersphinx links it
    home = canonical(target)
    if home and home != target:
        found = env.domains["py"].resolve_any_xref(env, docname, app.builder, home, node, content)
        if found:
            return found[0][1]
        if "sphinx.ext.intersphinx" in app.extensions:
            from sphinx.ext.intersphinx import missing_reference

            node["reftarget"] = home
            if (outer := missing_reference(app, env, node, content)) is not None:
                return outer
    whole = Path(app.srcdir) == DOCS or getattr(app.config, "intersphinx_mapping", None)
    if whole:
        logger.warning("no such object in the reference: %s", target, location=node, type="ref", subtype="gouache")
    return None


CHINESE = {
    "Next": "下一页",
    "Previous": "上一页",
    "Home": "首页",
    "On this page": "本页目录",
    "Back to top": "回到页首",
    "Skip to content": "跳到正文",
    "Made with": "主题 ",
}
"""The theme's words that neither it nor Sphinx has in Chinese."""


def speak_chinese(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:  # noqa: ARG001
    """Give the templates of the Chinese site the words that they lack."""
    if context.get("chinese"):
        context["_"] = context["gettext"] = lambda text: CHINESE.get(text.strip()) or str(_(text))


def say_levels(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:  # noqa: ARG001
    """Sphinx calls the captions of lists of pages headings, and screen readers want to know of what level."""
    for part in ("furo_navigation_tree", "body"):
        if part in context:
            context[part] = str(context[part]).replace('role="heading">', 'role="heading" aria-level="2">')


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry."""
    app.connect("builder-inited", write_pages, priority=100)
    if "sphinx.ext.autodoc" in app.extensions:
        app.connect("autodoc-process-docstring", mend_docstring, priority=100)
        app.connect("autodoc-skip-member", skip_member)
        app.connect("doctree-read", name_types)
        app.connect("html-collect-pages", faster.leave_out_what_has_no_source, priority=400)  # before viewcode
    app.connect("html-page-context", speak_chinese)
    app.connect("html-page-context", say_levels, priority=600)  # after the theme
    app.add_search_language(chinese_search.ChineseSearch)
    app.connect("source-read", bring_inside)
    app.connect("html-page-context", faster.navigate_by_titles, priority=400)  # The theme uses it at 500.
    app.connect("missing-reference", resolve, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
