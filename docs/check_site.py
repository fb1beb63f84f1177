"""Follow every link of the built sites, without a network: `make docs` fails where one leads nowhere.

    python docs/check_site.py [FOLDER]    build/docs by default; exit code 1 if there is a fault

A fault is a link, picture, style or script whose file isn't there, an anchor that its page doesn't have, a page without
a title or language, and anything but a link that would be loaded from another host.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
LOADED = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
"""Elements that load what they name."""
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}
"""Kinds of <link> that do so too; others only say where something is."""
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)['\"]?\s*\)|@import\s+['\"]([^'\"]+)['\"]")


@dataclass
class Page:
    """What one page names.

    Attributes:
        links: places that a reader may go to.
        loaded: files that the browser gets by itself.
        anchors: places of its own.
        title: of the page.
        language: what its <html> says.
    """

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    title: str = ""
    language: str = ""


class Reader(HTMLParser):
    """Collects a `Page`."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element names."""
        given = {name: value or "" for name, value in attrs}
        page = self.page
        self._inside = tag
        page.anchors |= {given[name] for name in ("id", *(["name"] if tag == "a" else [])) if given.get(name)}
        if tag == "html":
            page.language = given.get("lang", "")
        elif tag in ("a", "area") and "href" in given:
            page.links.append(given["href"])
        elif tag == "link" and "href" in given:
            kinds = set(given.get("rel", "").lower().split())
            (page.loaded if kinds & LOADED_LINKS else page.links).append(given["href"])
        elif LOADED.get(tag) in given:
            page.loaded.append(given[LOADED[tag]])
        page.loaded += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]
        page.loaded += css_addresses(given.get("style", ""))

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        """Texts behind it belong to nothing that is read."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Keep the title, and look into styles."""
        if self._inside == "title" and not self.page.title:
            self.page.title = data.strip()
        elif self._inside == "style":
            self.page.loaded += css_addresses(data)


def css_addresses(text: str) -> list[str]:
    """What a style sheet loads."""
    return [found[1] or found[2] for found in CSS_URL.finditer(text)]


def read(file: Path) -> Page:
    """One page."""
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.page


class Site:
    """All pages below a folder.

    Args:
        folder: of the built sites.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.pages = {file.resolve(): read(file) for file in sorted(folder.rglob("*.html"))}

    def fault_of(self, file: Path, address: str, *, loaded: bool) -> str:
        """What is wrong with an address that a file names; empty if nothing is.

        Args:
            file: page or style sheet.
            address: as it stands there.
            loaded: the browser would get it by itself.
        """
        parts = urlsplit(address)
        if parts.scheme in ("data", "mailto", "javascript"):
            return ""
        if parts.scheme or parts.netloc:
            return "would be loaded from another host" if loaded else ""
        if address.startswith("/"):
            return "begins at the top of the server, where the site needn't lie"
        goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        if goal.is_dir():
            goal /= "index.html"
        if not goal.is_relative_to(self.folder):
            return "leads out of the site"
        if not goal.is_file():
            return "no such file"
        anchor = unquote(parts.fragment)
        if anchor and goal in self.pages and anchor not in self.pages[goal].anchors and anchor != "top":
            return "no such place on that page"
        return ""

    def faults(self) -> list[str]:
        """Every fault of every page and style sheet, once."""
        found: dict[str, None] = {}
        for file, page in self.pages.items():
            where = file.relative_to(self.folder)
            for wanting in ("title", "language"):
                if not getattr(page, wanting):
                    found[f"{where}: no {wanting}"] = None
            for loaded, addresses in ((False, page.links), (True, page.loaded)):
                for address in addresses:
                    if fault := self.fault_of(file, address, loaded=loaded):
                        found[f"{where}: {address}: {fault}"] = None
        for file in sorted(self.folder.rglob("*.css")):
            for address in css_addresses(file.read_text(encoding="utf-8")):
                if fault := self.fault_of(file.resolve(), address, loaded=True):
                    found[f"{file.resolve().relative_to(self.folder)}: {address}: {fault}"] = None
        return list(found)


def main() -> int:
    """Print all faults; 0 if there are none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs", help="of the built sites")
    folder = parser.parse_args().folder
    site = Site(folder)
    faults = site.faults() if site.pages else [f"{folder}: no pages: run `make docs`"]
    links = sum(len(page.links) + len(page.loaded) for page in site.pages.values())
    print(*faults, f"{len(site.pages)} pages, {links} links, {len(faults)} faults", sep="\n")  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
