"""The page's files: what lies under `static/`, as the browser gets it, and what goes into one file on the way.

There is no build step: a module is served as it lies there, under an address with the version of all of them in it, so
that a browser keeps it for good and still sees a change at the next load. Two things are put together here, because
each view brings its own: the style sheets, and the words.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from functools import cached_property
from pathlib import Path

STATIC = Path(__file__).parent / "static"
LANGUAGES = ("en", "zh")
MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
LIBRARIES = {
    "preact": "vendor/preact.mjs",
    "preact/hooks": "vendor/preact-hooks.mjs",
    "htm": "vendor/htm.mjs",
    "@preact/signals-core": "vendor/signals-core.mjs",
    "@preact/signals": "vendor/preact-signals.mjs",
}
"""What a module imports by name, and where it lies."""
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)
_IMPORT = re.compile(
    r"""(?:^|[\s;}])(?:import|export)\b[^"'();]*?\bfrom\s*["']([^"']+)["']"""
    r"""|import\s*["']([^"']+)["']"""
)


_COMMENT = re.compile(r"^\s*(?://|/?\*).*$", re.MULTILINE)


def imports_of(module: str) -> list[str]:
    """What the text of a module imports when it is loaded, as it names it; examples in comments are none."""
    return [match[1] or match[2] for match in _IMPORT.finditer(_COMMENT.sub("", module))]


class PageFiles:
    """All files as they are now; a changed one makes a new object, see `current`.

    Args:
        stamp: what identifies the state of the folder.
    """

    def __init__(self, stamp: tuple[tuple[str, int, int], ...]) -> None:
        self.stamp = stamp
        content = hashlib.sha256()
        for name, _, _ in stamp:
            content.update(name.encode() + b"\0" + (STATIC / name).read_bytes())
        self.version = content.hexdigest()[:12]
        """Of what they contain, so that several servers agree."""
        self._packed: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """The content of a file by its name under the version; None if there is none.

        Args:
            name: a path below `static/`, `style.css`, or `words.LANGUAGE.js`.
        """
        if name == "style.css":
            return self.style
        language = name.removeprefix("words.").removesuffix(".js")
        if name == f"words.{language}.js" and language in LANGUAGES:
            return self._words_module(language)
        path = (STATIC / name).resolve()
        known = path.is_relative_to(STATIC) and path.suffix in MEDIA_TYPES and path.is_file()
        return path.read_bytes() if known else None

    def packed(self, name: str) -> bytes | None:
        """The same, compressed by gzip; made once."""
        if name not in self._packed:
            content = self.read(name)
            if content is None:
                return None
            self._packed[name] = gzip.compress(content, 9, mtime=0)
        return self._packed[name]

    @cached_property
    def style(self) -> bytes:
        """Every style sheet, the shared one first."""
        sheets = [*sorted((STATIC / "styles").glob("*.css")), *sorted((STATIC / "ui").glob("*.css"))]
        sheets += sorted((STATIC / "views").glob("*/*.css"))
        return b"\n".join(sheet.read_bytes() for sheet in sheets)

    @cached_property
    def words(self) -> dict[str, dict[str, str]]:
        """Texts of the page: key to language to text, from every `words.json`."""
        merged: dict[str, dict[str, str]] = {}
        for path in sorted(STATIC.glob("**/*words.json")):
            merged |= json.loads(path.read_text(encoding="utf-8"))
        return merged

    def _words_module(self, language: str) -> bytes:
        texts = {key: text[language] for key, text in self.words.items()}
        return f"export default {json.dumps(texts, ensure_ascii=False)};\n".encode()

    def import_map(self, language: str) -> str:
        """What the browser resolves the names of libraries and of the words with, as JSON."""
        places = {**LIBRARIES, "gouache/words": f"words.{language}.js"}
        return json.dumps({"imports": {name: f"/page/{self.version}/{place}" for name, place in places.items()}})

    def needed_by(self, module: str) -> list[str]:
        """A module and all that it imports, each once: fetched at once, they don't wait for one another.

        Args:
            module: its path below `static/`.
        """
        found: list[str] = []
        wanted = [module]
        while wanted:
            name = wanted.pop(0)
            path = (STATIC / name).resolve()
            if name in found or not path.is_file():
                continue
            found.append(name)
            for match in _IMPORT.finditer(_COMMENT.sub("", path.read_text(encoding="utf-8"))):
                target = match[1] or match[2]
                if target in LIBRARIES:
                    wanted.append(LIBRARIES[target])
                elif target.startswith("."):
                    wanted.append((path.parent / target).resolve().relative_to(STATIC).as_posix())
        return found


_lock = threading.Lock()
_kept: PageFiles | None = None


def current() -> PageFiles:
    """The page's files as they lie there now."""
    global _kept
    paths = sorted(path for path in STATIC.rglob("*") if path.suffix in (*MEDIA_TYPES, ".json"))
    facts = ((path.relative_to(STATIC).as_posix(), path.stat()) for path in paths)
    stamp = tuple((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)
    with _lock:
        if _kept is None or _kept.stamp != stamp:
            _kept = PageFiles(stamp)
        return _kept


def digest(script: str) -> str:
    """How a policy names an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
